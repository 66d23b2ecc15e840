"""A fixed function as a table, against the same function in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from actsearch import load, native, zoo
from actsearch.activation import Activation, for_sites
from actsearch.genotype import Choice, Genotype
from actsearch.ops import Clip, fused, tabulated
from actsearch.ops.spec import registry
from actsearch.ops.tabulated import Tabulated, tabulate
from actsearch.space import SearchSpace

SWISH = Genotype(
    {"gate": Choice("beta_mul", ("x",), {"beta": 1.5}), "out": Choice("sigmoid_mul", ("gate", "x"))}, "out", scale=0.7
)


def numbers() -> Tensor:
    scales = torch.tensor([1e-30, 1e-6, 1e-3, 0.1, 1.0, 4.0, 30.0])
    edges = 2.0 ** torch.arange(-16.0, 7.0)
    x = torch.cat([(torch.randn(20_000) * scale) for scale in scales])
    return torch.cat([x, edges, -edges, edges * (1 - 2**-24), torch.tensor([0.0, -0.0, 1e-40])])


def both(activation: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = activation(x)
    if not y.requires_grad:  # a constant
        return y, torch.zeros_like(x)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


def is_tabulated(y: Tensor) -> bool:
    return "_Tabulated" in type(y.grad_fn).__name__


def check(genotype: Genotype, x: Tensor) -> bool:
    """Values and slopes are as exact as float32; whether there was a table."""
    exact = Activation(genotype).double()
    compiled = Activation(genotype, compiled=True)
    ones = torch.ones_like(x)
    y, slope = both(compiled, x, ones)
    expected, expected_slope = both(exact, x.double(), ones.double())
    plain, plain_slope = both(Activation(genotype), x, ones)
    size = torch.maximum(expected.abs(), x.double().abs())
    # Two units in the last place, or what the operations one by one are off by.
    allowed = 2.5e-7 * size + (plain - expected).abs() + 1e-20  # float64 itself
    assert ((y - expected).abs() <= allowed).all()
    off = (slope - expected_slope).abs() > 5e-7 * expected_slope.abs().clamp(min=1) + (
        plain_slope - expected_slope
    ).abs()
    assert off.sum() <= 4  # where rounding decides on which side of a kink x is
    return is_tabulated(compiled(x.requires_grad_()))


@pytest.mark.parametrize("name", zoo.names())
def test_every_function_of_the_zoo_is_as_exact_as_float32(name: str) -> None:
    assert check(load(f"zoo:{name}").genotype, numbers())


def unary() -> list[str]:
    return [spec.id for spec in registry.of_arity(1) if all(p.scope != "channel" for p in spec.parameters)]


@pytest.mark.parametrize("op", unary())
def test_every_operation_is_as_exact_as_float32(op: str) -> None:
    assert check(Genotype.of_op(op), numbers())


@pytest.mark.parametrize("space", ["grafs", "smooth_c2", "taafs"])
@pytest.mark.parametrize("seed", range(12))
def test_random_functions_are_as_exact_as_float32(space: str, seed: int) -> None:
    check(SearchSpace.load(space).random(seed), numbers())


def test_nearly_all_random_functions_have_tables() -> None:
    found = 0
    for seed in range(40):
        activation = Activation(SearchSpace.load("grafs").random(seed), compiled=True)
        found += is_tabulated(activation(torch.randn(5000, requires_grad=True)))
    assert found >= 36


def exact(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        return y.detach(), torch.autograd.grad(y.sum(), leaf)[0]

    return with_slope


def made(function: Callable[[Tensor], Tensor]) -> Tabulated | None:
    return tabulate(exact(function), lambda x: function(x).detach())


KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda x: (x - 1.23456789).relu(),
    "two octaves apart": lambda x: torch.maximum(x.sin(), 0.3 * x).clamp(-5.4321, 0.9),
    "at a knot": lambda x: (x - 1.5).abs() + x.tanh(),
    "close to a knot": lambda x: (x - 1.5 - 1e-7).abs() + (x + 2 - 1e-7).abs(),
    "a jump": lambda x: torch.where(x > 0.777, x + 2, x),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_where_they_are(name: str) -> None:
    function = KINKS[name]
    table = made(function)
    assert table is not None
    x = torch.cat([torch.linspace(-8, 8, 400_001), *(c + torch.linspace(-1e-5, 1e-5, 2001) for c in (0.777, 1.5, -2))])
    x = x[~table.is_outside(x)].unique()
    expected, slope = exact(function)(x.double())
    y, outside = table.value(x)
    assert outside == 0
    assert ((y - expected).abs() > 3e-7 * torch.maximum(expected.abs(), x.abs())).sum() <= 2
    found, _ = table.times_slope(x, torch.full_like(x, 3.0))
    assert ((found / 3 - slope).abs() > 1e-6 * slope.abs().clamp(min=1)).sum() <= 3


def test_what_wiggles_too_fast_has_a_smaller_table_or_none() -> None:
    slow, fast = made(torch.sin), made(lambda x: (1000 * x).sin())
    assert slow is not None
    assert slow.highest < tabulated.HIGHEST
    assert fast is None


def test_what_float32_bounds_is_not_taken_from_float64() -> None:
    table = tabulate(exact(torch.exp), lambda x: x.clamp(max=20).exp())
    assert table is None or table.highest <= 4


def test_what_float32_cannot_hold_is_outside() -> None:
    table = made(lambda x: x.exp() * x.exp())
    assert table is not None
    assert table.highest <= 6
    assert table.values[:, :3].isfinite().all()
    x = torch.linspace(-(2.0**table.highest), 2.0**table.highest, 100_001)[1:-1]
    y, _ = table.value(x)
    assert torch.allclose(y, x.exp() * x.exp(), rtol=2e-5)


def test_elements_outside_are_computed_by_the_operations() -> None:
    activation = Activation(SearchSpace.load("grafs").random(3), compiled=True)
    plain = Activation(SearchSpace.load("grafs").random(3))
    x = torch.randn(10_000)
    far = torch.tensor([128.0, -128.0, 1e6, -1e30, torch.inf, -torch.inf, torch.nan])
    x[:: len(x) // len(far)][: len(far)] = far
    (y, d), (expected, e) = (both(f, x, torch.ones_like(x)) for f in (activation, plain))
    outside = ~(x.abs() < 128)
    assert torch.equal(y[outside].nan_to_num(7.0), expected[outside].nan_to_num(7.0))
    assert torch.equal(d[outside].nan_to_num(7.0), e[outside].nan_to_num(7.0))
    # Where most are outside, all are.
    wide = 1e3 * torch.randn(10_000)
    assert torch.equal(both(activation, wide, wide)[0], both(plain, wide, wide)[0])
    assert torch.equal(both(activation, wide, wide)[1], both(plain, wide, wide)[1])


def test_a_constant_has_no_slope() -> None:
    activation = Activation(Genotype({"a": Choice("beta", ("x",), {"beta": 2.5})}, "a", Clip("none")), compiled=True)
    assert is_tabulated(activation(torch.randn(5000, requires_grad=True)))
    y, d = both(activation, torch.randn(5000), torch.ones(5000))
    assert torch.equal(y, torch.full((5000,), 2.5))
    assert not d.any()


@pytest.mark.parametrize("n", [4097, 5000, 70_001])
def test_threads_and_odd_lengths_make_no_difference(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(torch.tanh)
    assert table is not None
    x, g = torch.randn(n), torch.randn(n)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(tabulated.native, "threads", lambda elements, threads=threads: threads)
        found.append((table.value(x)[0], table.times_slope(x, g)[0]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert torch.allclose(found[0][0], x.tanh(), atol=1e-6)


def test_other_values_of_parameters_are_another_function() -> None:
    plain, activation = (Activation(SWISH, compiled=compiled) for compiled in (False, True))
    x = torch.randn(5000, requires_grad=True)
    for beta in (1.5, 0.5, -3.0):
        for each in (plain, activation):
            each.gate_beta.fill_(beta)  # type: ignore[union-attr, operator]
        y = activation(x)
        assert is_tabulated(y)
        assert torch.allclose(y, plain(x), atol=1e-6)


def test_vectors_of_coefficients_are_fused_too() -> None:
    genotype = SearchSpace.load("taafs").random(1)
    compiled = Activation(genotype, compiled=True)
    x = torch.randn(5000, requires_grad=True)
    y = compiled(x)
    assert is_tabulated(y)
    assert torch.allclose(y, Activation(genotype)(x), atol=1e-5)


def test_trained_parameters_and_other_dtypes_have_no_table() -> None:
    x = torch.randn(5000, requires_grad=True)
    assert not is_tabulated(for_sites(SWISH, "network", compiled=True)(None)(x))  # type: ignore[arg-type]
    assert not is_tabulated(Activation(SWISH, compiled=True).double()(x.double()))
    assert is_tabulated(Activation(SWISH, compiled=True)(x))
    with torch.no_grad():
        assert torch.allclose(Activation(SWISH, compiled=True)(x), Activation(SWISH)(x), atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_stay(layout: torch.memory_format) -> None:
    activation = Activation(SWISH, compiled=True)
    x = torch.randn(8, 6, 16, 12).contiguous(memory_format=layout).requires_grad_()
    y = activation(x)
    assert is_tabulated(y)
    assert y.stride() == x.stride()
    (d,) = torch.autograd.grad(y, x, torch.randn(8, 6, 12, 16).transpose(2, 3))
    assert d.stride() == x.stride()
    y = activation(x)
    y.add_(1)  # the output is nobody's view


def test_second_derivatives_are_those_of_the_operations() -> None:
    found = []
    for activation in (Activation(SWISH, compiled=True), Activation(SWISH)):
        x = torch.linspace(-3, 3, 5000).requires_grad_()
        (first,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)


def test_only_the_input_is_saved() -> None:
    activation = Activation(SWISH, compiled=True)
    x = torch.randn(5000, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        activation(x)
    assert saved == [5000, 1]


def test_tables_are_kept_and_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tabulated.Tables()
    monkeypatch.setattr(tables, "MOST", 2)
    made: list[int] = []
    make = lambda k: lambda: made.append(k)  # noqa: E731
    for k in (1, 2, 1, 3, 1, 2):
        tables.get(k, make(k))
    assert made == [1, 2, 3, 2]


def test_without_kernels_there_are_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabulated, "library", type("None", (), {"kernels": None}))
    monkeypatch.setattr(fused, "_tables", tabulated.Tables())
    with torch.compiler.set_stance("force_eager"):
        y = Activation(SWISH, compiled=True)(torch.randn(5000, requires_grad=True))
    assert not is_tabulated(y)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_kernels_for_other_processors_have_the_same_bits(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(KINKS["two octaves apart"])
    assert table is not None
    x = numbers()
    g = torch.randn_like(x)
    here = [table.value(x), table.times_slope(x, g)]
    library = native.Library(tabulated.library.source, {"LANES": lanes})
    monkeypatch.setattr(tabulated, "library", library)
    there = [table.value(x), table.times_slope(x, g)]
    inside = ~table.is_outside(x)
    for (ours, ours_outside), (theirs, theirs_outside) in zip(here, there, strict=True):
        assert ours_outside == theirs_outside
        assert torch.equal(ours[inside], theirs[inside])
