"""Fused kernels of a discrete cell against the same cell, one operation at a time.

Most tests run the traced kernels without compiling them (`force_eager`), which is what they compute but for the
compiler's rounding; a few compile.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from actsearch.activation import Activation, LazyActivation, for_sites
from actsearch.compare import contestant
from actsearch.config import RetrainConfig
from actsearch.genotype import Choice, Genotype
from actsearch.ops import Clip, elementary, fused, kernels
from actsearch.space import SearchSpace
from actsearch.swap import swap

SWISH = Genotype(
    {"gate": Choice("beta_mul", ("x",), {"beta": 1.5}), "out": Choice("sigmoid_mul", ("gate", "x"))}, "out", scale=0.7
)
GRAFS = SearchSpace.load("grafs")
# Kinks, clip edges, and far beyond: the hard clip is at 10.
EDGES = torch.tensor([0.0, -0.0, 1.0, -1.0, 10.0, -10.0, 1e-3, -1e-3, 28.0, -28.0, 1e4, -1e4, 3e38, -3e38])
WIDE = torch.cat([torch.linspace(-6, 6, 6001), torch.linspace(-1e4, 1e4, 2001), EDGES])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run as they were traced, and what was compiled stays out of the way; nothing is tabulated."""
    monkeypatch.setattr(fused, "_is_fixed", lambda *given: False)
    known = dict(kernels._kernels)
    kernels._kernels.clear()
    with torch.compiler.set_stance("force_eager"):
        yield
    kernels._kernels.clear()
    kernels._kernels.update(known)


def pair(genotype: Genotype, trainable: bool = True, **options: object) -> tuple[Activation, Activation]:
    """One operation at a time, and fused."""
    return tuple(Activation(genotype, trainable, compiled=compiled, **options) for compiled in (False, True))  # type: ignore[return-value, arg-type]


def gradients(activation: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    x = x.detach().requires_grad_()
    y = activation(x)
    return y, list(torch.autograd.grad(y, [x, *activation.parameters()], g, allow_unused=True))


def is_fused(y: Tensor) -> bool:
    return "_Fused" in type(y.grad_fn).__name__


def check(genotype: Genotype, x: Tensor, tolerance: float) -> None:
    """Values within `tolerance` of 1 + |y|; gradients too, but where rounding decides on which side of a kink x is."""
    plain, compiled = pair(genotype)
    g = torch.cos(x).to(x.dtype)
    (expected, exact), (y, found) = (gradients(a, x, g) for a in (plain, compiled))
    assert y.dtype == x.dtype
    assert ((y - expected).abs() <= tolerance * (1 + expected.abs())).all()
    for k, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        assert (ours is None) == (theirs is None)
        if ours is None or theirs is None:
            continue
        if k == 0:
            off = (ours - theirs).abs() > 10 * tolerance * (1 + theirs.abs())
            assert off.sum() <= 4
        else:
            assert torch.isclose(ours, theirs, rtol=1e-3, atol=1e-2)  # sums of thousands that cancel, less a kink's


# -- values and gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_random_functions_agree_to_rounding_from_zero_to_far_beyond_the_clip(traced: None, seed: int) -> None:
    check(GRAFS.random(seed), WIDE, 5e-6)
    check(GRAFS.random(seed), WIDE.double(), 1e-13)


@pytest.mark.parametrize(
    ("op", "bound"),
    [
        ("tanh", 3.5),
        ("sinh", 2.5),
        ("cosh", 2.5),
        ("atan", 2.5),
        ("asinh", 2.5),
        ("expm1", 2.5),
        ("log1p", 2.5),
        ("erf", 3.5),
        ("log_sigmoid", 2.5),
        ("elu", 2.5),
    ],
)
def test_elementary_functions_are_within_units_in_the_last_place(op: str, bound: float) -> None:
    x = torch.cat([torch.linspace(-80, 80, 40_001), torch.linspace(-2, 2, 40_001), torch.logspace(-30, -1, 2001)])
    if op == "log1p":
        x = torch.cat([x.abs(), torch.logspace(0, 30, 2001)])
    if op in ("atan", "asinh"):
        x = torch.cat([x, torch.logspace(0, 18, 2001), -torch.logspace(0, 18, 2001)])
    reference = (
        getattr(torch, op, None) or getattr(nn.functional, op.replace("_", ""), None) or getattr(nn.functional, op)
    )
    exact = reference(x.double())
    unit = (torch.nextafter(exact.abs().float(), torch.tensor(torch.inf)) - exact.abs().float()).double()
    found = getattr(elementary, op)(x)
    assert ((found - exact).abs() / unit).max() <= bound
    assert getattr(elementary, op)(torch.tensor(torch.nan)).isnan()


def test_gelu_is_within_3e_7_as_torchs_is() -> None:
    x = torch.linspace(-28, 28, 100_001)
    wide = x.double().requires_grad_()
    y = nn.functional.gelu(wide)
    (slope,) = torch.autograd.grad(y.sum(), wide)
    assert ((elementary.gelu(x) - y).abs() <= 3e-7 * (1 + y.abs())).all()
    assert ((elementary.gelu_backward(torch.ones_like(x), x) - slope).abs() <= 5e-7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_rounded_float32_result(traced: None, dtype: torch.dtype) -> None:
    plain, compiled = pair(SWISH)
    x, g = torch.randn(2, 5000).to(dtype)
    y, (d_x, d_beta) = gradients(compiled, x, g)
    expected, (e_x, e_beta) = gradients(plain, x.float(), g.float())
    assert y.dtype == d_x.dtype == dtype  # type: ignore[union-attr]
    assert torch.allclose(y.float(), expected.to(dtype).float(), rtol=1e-2, atol=1e-6)
    assert (y == expected.to(dtype)).float().mean() > 0.99  # but where a tie was rounded the other way
    assert (d_x == e_x.to(dtype)).float().mean() > 0.99  # type: ignore[union-attr]
    assert d_beta.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.allclose(d_beta, e_beta, rtol=1e-4)  # type: ignore[arg-type]


# -- shapes and formats ------------------------------------------------------------------------------------------------


def formats() -> dict[str, Tensor]:
    x = torch.randn(8, 6, 16, 12)
    return {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "gaps": torch.randn(8, 6, 16, 24)[..., ::2],
        "expanded": torch.randn(8, 6, 16, 1).expand(8, 6, 16, 12),
        "offset": torch.randn(9, 6, 16, 12)[1:],
        "one image": torch.randn(1, 6, 40, 40),
        "one pixel": torch.randn(1000, 6, 1, 1),
    }


@pytest.mark.parametrize("name", formats())
@pytest.mark.parametrize("channels", [False, True])
def test_every_memory_format_stays_what_it_is(traced: None, name: str, channels: bool) -> None:
    x = formats()[name]
    options = {"channels": x.shape[1], "channel_axis": 1} if channels else {}
    plain, compiled = pair(SWISH, **options)
    if channels:
        for activation in (plain, compiled):
            activation.load_state_dict({"gate_beta": torch.linspace(0.5, 2, x.shape[1])})
    g = torch.randn(x.shape)
    (expected, exact), (y, found) = (gradients(a, x, g) for a in (plain, compiled))
    assert is_fused(y)
    assert y.stride() == expected.stride()
    assert torch.allclose(y, expected, atol=1e-6)
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
    y.add_(1)  # the output is nobody's view


@pytest.mark.parametrize("axis", [1, -1])
def test_tokens_and_features_have_their_own_parameters_too(traced: None, axis: int) -> None:
    x = torch.randn(70, 9, 11) if axis == -1 else torch.randn(900, 11)
    plain, compiled = pair(SWISH, channels=11, channel_axis=axis)
    for ours, theirs in zip(gradients(compiled, x, x)[1], gradients(plain, x, x)[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_gradients_of_any_format_are_taken(traced: None) -> None:
    plain, compiled = pair(SWISH)
    x = torch.randn(8, 6, 16, 12).contiguous(memory_format=torch.channels_last)
    for g in (torch.ones(()).expand(x.shape), torch.randn(8, 12, 6, 16).permute(0, 2, 3, 1)):
        d, e = (gradients(a, x, g)[1][0] for a in (compiled, plain))
        assert torch.allclose(d, e, atol=1e-6)  # type: ignore[arg-type]


def test_only_the_input_and_the_parameters_are_saved(traced: None) -> None:
    activation = Activation(SWISH, trainable=True, compiled=True)
    x = torch.randn(5000, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        activation(x)
    assert saved == [x.data_ptr(), activation.gate_beta.data_ptr()]  # type: ignore[union-attr, operator]


def test_what_is_not_asked_for_is_not_computed(traced: None) -> None:
    activation = Activation(SWISH, trainable=True, compiled=True)
    x = torch.randn(5000)
    activation(x).sum().backward()
    activation.requires_grad_(False)
    activation(x.requires_grad_()).sum().backward()
    wanted = [signature.wanted for _, signature in kernels._kernels]
    assert wanted == [None, (False, True), (True, False)]


# -- where there is no kernel ------------------------------------------------------------------------------------------


def unfused() -> dict[str, Tensor]:
    return {
        "few elements": torch.randn(100),
        "none": torch.empty(0, 3),
        "a number": torch.tensor(0.3),
        "float64 with float32 parameters": torch.randn(5000).double(),
    }


@pytest.mark.parametrize("name", unfused())
def test_elsewhere_it_is_the_same_bits(traced: None, name: str) -> None:
    plain, compiled = pair(SWISH)
    x = unfused()[name]
    (expected, exact), (y, found) = (gradients(a, x, torch.ones_like(x)) for a in (plain, compiled))
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))  # type: ignore[arg-type]
    assert not kernels._kernels


@pytest.mark.parametrize("op", ["identity", "beta"])
def test_a_cell_that_ignores_its_input_or_hands_it_through_needs_no_kernel(traced: None, op: str) -> None:
    plain, compiled = pair(
        Genotype({"a": Choice(op, ("x",), {"beta": 2.0} if op == "beta" else {})}, "a", Clip("none"))
    )
    x = torch.randn(5000)
    assert torch.equal(compiled(x), plain(x))
    assert list(kernels._kernels.values()) == [None]


def test_a_wrong_number_of_channels_is_the_same_error(traced: None) -> None:
    for activation in pair(SWISH, channels=4, channel_axis=1):
        with pytest.raises(RuntimeError, match="must match the size"):
            activation(torch.randn(1000, 6))


def test_second_derivatives_are_exact(traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_LEAST", 2)
    smooth = Genotype({"a": Choice("tanh", ("x",)), "b": Choice("beta_mul", ("a",), {"beta": 1.5})}, "b", scale=2.0)
    activation = Activation(smooth, trainable=True, compiled=True).double()
    (beta,) = activation.parameters()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    apply = lambda x, beta: torch.func.functional_call(activation, {"b_beta": beta}, x)  # noqa: E731
    assert is_fused(apply(x, beta))
    assert torch.autograd.gradcheck(apply, (x, beta))
    assert torch.autograd.gradgradcheck(apply, (x, beta))


def test_second_derivatives_through_sites_that_share_parameters_count_each_once(
    traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_LEAST", 2)
    found = []
    for activation in pair(SWISH):
        activation = activation.double()
        x = torch.linspace(-2, 2, 7, dtype=torch.float64, requires_grad=True)
        inputs = [x, *activation.parameters()]
        y = activation(activation(activation(x)))
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_functional_transforms_see_the_operations(traced: None) -> None:
    plain, compiled = pair(SWISH, trainable=False)
    x = torch.randn(3, 5000)
    for transform in (
        lambda f: torch.func.vmap(f)(x),
        lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f: torch.func.jvp(f, (x,), (x,))[1],
        lambda f: torch.func.hessian(lambda s: f(s * x).sum())(torch.tensor(1.0)),
    ):
        assert torch.equal(transform(compiled), transform(plain))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        tangents = [torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (plain, compiled)]
    assert torch.equal(*tangents)
    assert "sigmoid" in make_fx(compiled)(x).code
    assert not kernels._kernels


def test_batched_gradients_and_anomaly_detection_work(traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_LEAST", 2)
    plain, compiled = pair(SWISH, trainable=False)
    x = torch.randn(6, requires_grad=True)
    for create_graph in (False, True):
        jacobians = [
            torch.autograd.grad(f(x), x, torch.eye(6), is_grads_batched=True, create_graph=create_graph)[0]
            for f in (plain, compiled)
        ]
        assert torch.equal(*jacobians)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly():
            compiled(x).sum().backward()
    assert torch.allclose(x.grad, jacobians[0].diagonal())  # type: ignore[arg-type]
    assert {signature.wanted for _, signature in kernels._kernels} == {None, (True, False)}


# -- as a module -------------------------------------------------------------------------------------------------------


def test_copies_pickles_inference_autocast_and_checkpointing_work(traced: None) -> None:
    plain, compiled = pair(SWISH)
    x = torch.randn(5000)
    expected = plain(x)
    for other in (compiled, copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert is_fused(other(x))
        assert torch.allclose(other(x), expected, atol=1e-6)
    with torch.inference_mode():
        for entry in (x, x.clone()):
            assert torch.allclose(compiled(entry), expected, atol=1e-6)
    with torch.autocast("cpu"):
        y = compiled(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    again = torch.utils.checkpoint.checkpoint(compiled, x.requires_grad_(), use_reentrant=False)
    again.sum().backward()
    assert torch.allclose(x.grad, gradients(plain, x, torch.ones_like(x))[1][0], atol=1e-6)  # type: ignore[arg-type]


def test_sites_and_parameter_values_share_their_kernels(traced: None) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    swap(model, for_sites(SWISH, "site", compiled=True))
    model(torch.randn(100, 8)).sum().backward()
    with torch.no_grad():
        model[1].gate_beta.fill_(3.0)
    model(torch.randn(200, 8)).sum().backward()
    renamed = Genotype({"u": SWISH.slots["gate"], "v": Choice("sigmoid_mul", ("u", "x"))}, "v", scale=0.7)
    Activation(renamed, trainable=True, compiled=True)(torch.randn(5000))
    assert len(kernels._kernels) == 2


def test_every_scope_can_be_compiled(traced: None) -> None:
    x = torch.randn(100, 6, 4, 4)
    for scope in ("frozen", "network", "site", "channel"):
        activation = for_sites(SWISH, scope, 1, compiled=True)(None)  # type: ignore[arg-type]
        assert activation.compiled
        assert torch.allclose(activation(x), Activation(SWISH)(x), atol=1e-6)
    lazy = LazyActivation(SWISH, 1, compiled=True)
    assert is_fused(lazy(x))
    assert Activation(SWISH, compiled=True).rescaled().compiled


def test_a_contestant_says_that_it_is_compiled() -> None:
    assert not RetrainConfig().compile
    usual, compiled = (contestant("silu", compiled=c) for c in (False, True))
    assert compiled.identity == usual.identity + " | compiled"
    assert compiled.make(None).compiled  # type: ignore[arg-type, union-attr]
    assert not usual.make(None).compiled  # type: ignore[arg-type, union-attr]


def test_export_sees_the_operations() -> None:
    activation = Activation(SWISH, compiled=True)
    program = torch.export.export(activation, (torch.randn(5000),))
    assert "sigmoid" in program.graph_module.code
    assert not any(isinstance(module, torch.autograd.Function) for module in program.graph_module.modules())
    x = torch.randn(5000)
    assert torch.equal(program.module()(x), Activation(SWISH)(x))


# -- compiled in earnest -----------------------------------------------------------------------------------------------


def test_one_compilation_serves_all_shapes_formats_and_parameter_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_kernels", {})
    plain, compiled = pair(SWISH)
    gradients(compiled, torch.randn(5000), torch.ones(5000))
    with torch.compiler.set_stance("fail_on_recompile"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (torch.randn(4097), torch.randn(3, 4, 50, 50), torch.randn(40_000, 2), *formats().values()):
            with torch.no_grad():
                for activation in (plain, compiled):
                    activation.gate_beta.mul_(0.9)  # type: ignore[union-attr, operator]
            g = torch.randn(x.shape)
            (expected, exact), (y, found) = (gradients(a, x, g) for a in (plain, compiled))
            assert is_fused(y)
            assert torch.allclose(y, expected, atol=1e-6)
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(found, exact, strict=True))  # type: ignore[arg-type]
    assert len(kernels._kernels) == 2
    assert None not in kernels._kernels.values()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_compiled_random_functions_agree_to_rounding(seed: int) -> None:
    check(GRAFS.random(seed), WIDE, 5e-6)


@pytest.mark.slow
def test_compiled_double_half_and_channels_agree() -> None:
    check(SWISH, WIDE.double(), 1e-13)
    check(SWISH, WIDE[:-2].bfloat16(), 2**-8)
    for x in formats().values():
        plain, compiled = pair(SWISH, channels=x.shape[1], channel_axis=1)
        y, (d_x, d_beta) = gradients(compiled, x, x)
        expected, (e_x, e_beta) = gradients(plain, x, x)
        assert torch.allclose(y, expected, atol=1e-6)
        assert torch.allclose(d_x, e_x, atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(d_beta, e_beta, rtol=1e-4, atol=1e-3)  # type: ignore[arg-type]


def test_a_compiled_model_is_traced_through() -> None:
    plain, compiled = pair(SWISH)
    whole = torch.compile(nn.Sequential(compiled), fullgraph=True, backend="aot_eager")
    x = torch.randn(5000)
    (y, found), (expected, exact) = (gradients(a, x, x) for a in (whole, plain))
    assert torch.allclose(y, expected, atol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, exact, strict=True))  # type: ignore[arg-type]


_WITHOUT_COMPILER = """
import warnings, torch
from actsearch.activation import Activation
from actsearch.genotype import Genotype
told = []
warnings.showwarning = lambda message, *rest: told.append(str(message))
warnings.simplefilter("always")
x = torch.randn(5000, requires_grad=True)
for op in ("tanh", "silu"):
    plain, compiled = (Activation(Genotype.of_op(op), compiled=c) for c in (False, True))
    (g,), (h,) = (torch.autograd.grad(f(x).sum(), x) for f in (plain, compiled))
    assert torch.equal(plain(x), compiled(x)) and torch.equal(g, h)
ours = [m for m in told if "could not be compiled" in m]
assert len(ours) == 1 and "compiler" in ours[0], told
"""


@pytest.mark.slow
def test_without_a_compiler_there_is_one_warning_and_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_COMPILER], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr


def test_a_failure_to_compile_is_one_warning_and_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> object:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "_warned", False)
    monkeypatch.setattr(torch, "compile", lambda *args, **options: broken)
    plain, compiled = pair(SWISH)
    x = torch.randn(5000)
    with pytest.warns(RuntimeWarning, match="one operation at a time, slower, with the same values.*no compiler here"):
        compiled(x)
    (y, found), (expected, exact) = (gradients(a, x, x) for a in (compiled, plain))
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))  # type: ignore[arg-type]


def test_a_backward_kernel_that_fails_gives_the_exact_gradient(monkeypatch: pytest.MonkeyPatch, traced: None) -> None:
    plain, compiled = pair(SWISH)
    x = torch.randn(5000).requires_grad_()
    y = compiled(x)
    monkeypatch.setattr(kernels, "_warned", True)
    monkeypatch.setattr(kernels, "_compile", lambda structure, signature: None)
    (found,) = torch.autograd.grad(y, x, x.detach())
    (expected,) = torch.autograd.grad(plain(x), x, x.detach())
    assert torch.equal(found, expected)
