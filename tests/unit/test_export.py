"""What is exported is what was searched: the same bits from a file of its own, near enough from the other forms."""

from __future__ import annotations

import ast
import dataclasses
import math
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from actsearch import zoo
from actsearch.activation import Activation
from actsearch.errors import ActsearchError, GenotypeError, MissingPackageError, SettingsError
from actsearch.export import numpy_ops, onnx, parity
from actsearch.export.numpy import to_numpy_source
from actsearch.export.onnx import load_onnx, to_onnx, to_onnx_together
from actsearch.export.program import load_program, to_program
from actsearch.export.source import names, to_source
from actsearch.export.symbolic import to_latex, to_sympy, to_sympy_source
from actsearch.genotype import Choice, Genotype
from actsearch.ops import Clip, OpSpec, registry
from actsearch.space import SearchSpace

EVERY = pytest.mark.parametrize("spec", registry.values(), ids=registry.keys())
CLIPS = (Clip("none"), Clip("hard", 3.0), Clip("smooth", 3.0))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RANDOM = 200


def cells(spec: OpSpec) -> list[Genotype]:
    """The operation on the raw input, and on limited ones, with every clip and some scale."""
    parameters = {
        p.name: tuple(0.7 * math.cos(k) for k in range(p.shape[0])) if p.shape else 0.7 for p in spec.parameters
    }
    found = []
    for clip in CLIPS:
        for first, second in [("identity", "neg"), ("tanh", "relu"), ("sigmoid", "elu")]:
            slots = {"u1": Choice(first, ("x",)), "u2": Choice(second, ("x",))}
            slots["op"] = Choice(spec.id, ("u1", "u2")[: spec.arity], parameters)
            found.append(Genotype(slots, "op", clip, scale=1.0 if clip.kind == "none" else -0.3))
    return found


def drawn(n: int = RANDOM, space: str = "grafs") -> list[Genotype]:
    return [SearchSpace.load(space).random(seed) for seed in range(n)]


def everywhere(dtype: torch.dtype) -> torch.Tensor:
    info = torch.finfo(dtype)
    edges = torch.tensor([0.0, info.tiny, info.eps, 1e-3, 28.0, 90.0, 800.0, 1e4, info.max / 2, info.max], dtype=dtype)
    return torch.cat([torch.linspace(-12, 12, 2001).to(dtype), edges, -edges])


def run(text: str) -> types.SimpleNamespace:
    space: dict[str, Any] = {"__name__": "exported"}
    exec(compile(text, "exported.py", "exec"), space)
    return types.SimpleNamespace(**space)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


# -- source --------------------------------------------------------------------------------------------------------


@EVERY
def test_the_source_of_every_operation_computes_the_same_bits(spec: OpSpec) -> None:
    for genotype in cells(spec):
        text = to_source(genotype)
        exported, activation = run(text).activation, Activation(genotype)
        for dtype in DTYPES:
            x = everywhere(dtype)
            assert same_bits(exported(x), activation(x)), (genotype, dtype, text)


@EVERY
def test_the_source_of_every_operation_has_the_same_derivatives(spec: OpSpec) -> None:
    for genotype in cells(spec):
        found = parity.of_torch(Activation(genotype), run(to_source(genotype)).activation, parity.points())
        assert found.value == 0
        assert max(found.first, found.second) < 1e-12


@pytest.mark.parametrize(("space", "n"), [("grafs", RANDOM), ("full", 60)])
def test_random_functions_keep_their_bits_and_derivatives(space: str, n: int) -> None:
    for genotype in drawn(n, space):
        exported, activation = run(to_source(genotype)).activation, Activation(genotype)
        for dtype in DTYPES[:3]:
            x = everywhere(dtype)
            assert same_bits(exported(x), activation(x)), (genotype, dtype)
        found = parity.of_torch(activation, exported, parity.points())
        assert found.value == 0
        assert max(found.first, found.second) < 1e-4


def test_it_reads_as_written_by_hand() -> None:
    assert to_source(Genotype.of_op("cube", Clip("hard")), "MyCube") == (
        '"""MyCube: x**3\n\nThe value of every unbounded operation is kept within ±10 by a hard clip.\n\n'
        'Written by actsearch 0.1.0. It needs torch alone.\n"""\n\n'
        "import torch\nfrom torch import Tensor, nn\n\n"
        "# By dtype, beyond what an operation or its derivatives would overflow.\n"
        "_CUBE = {\n    torch.float32: 2770595633831.5215,\n    torch.float64: 2.2397447421777749e102,\n}\n\n\n"
        "def _limit(x: Tensor, bound: dict[torch.dtype, float]) -> Tensor:\n"
        '    """`x`, kept where the function and its derivatives are finite."""\n'
        "    return x.clamp(-bound[x.dtype], bound[x.dtype])\n\n\n"
        "def _cube(x: Tensor) -> Tensor:\n"
        "    x = _limit(x, _CUBE)\n"
        "    return x * x * x\n\n\n"
        "def my_cube(x: Tensor) -> Tensor:\n"
        '    """x**3, element by element."""\n'
        "    if x.dtype in (torch.float16, torch.bfloat16):  # computed in float32\n"
        "        return my_cube(x.float()).to(x.dtype)\n"
        "    return _cube(x).clamp(-10.0, 10.0)\n\n\n"
        "class MyCube(nn.Module):\n"
        '    """`my_cube` as a module."""\n\n'
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        return my_cube(x)\n"
    )


def body(genotype: Genotype) -> list[str]:
    lines = to_source(genotype).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("def activation"))
    end = next(k for k, line in enumerate(lines) if line.startswith("class"))
    return [line.strip() for line in lines[start + 4 : end] if line]


def test_guards_and_clips_that_cannot_act_are_left_out() -> None:
    limited = {"u1": Choice("tanh", ("x",)), "u2": Choice("sigmoid", ("x",))}
    hard = Clip("hard", 10.0)
    assert body(Genotype({**limited, "b1": Choice("mul", ("u1", "u2"))}, "b1", hard)) == [
        "return torch.tanh(x) * torch.sigmoid(x)"
    ]
    assert body(Genotype({**limited, "u3": Choice("gelu", ("u1",))}, "u3", hard)) == ["return F.gelu(torch.tanh(x))"]
    tight = Clip("hard", 1.5)
    assert body(Genotype({**limited, "b1": Choice("add", ("u1", "u2"))}, "b1", tight)) == [
        "return (torch.tanh(x) + torch.sigmoid(x)).clamp(-1.5, 1.5)"
    ]
    # What may overflow keeps its guard, and a case that can occur stays.
    wide = {"u1": Choice("identity", ("x",)), "u2": Choice("gelu", ("u1",))}
    assert "return torch.where(u1 > 28.0, u1, F.gelu(u1.clamp(-28.0, 28.0)))" in body(
        Genotype(wide, "u2", Clip("hard", 40.0))
    )
    assert body(Genotype.of_op("exp")) == ["return _limit(x, _EXP).exp()"]


def test_dead_equal_and_handed_through_slots_are_left_out() -> None:
    slots = {
        "u1": Choice("tanh", ("x",)),
        "u2": Choice("tanh", ("x",)),
        "b1": Choice("max", ("u1", "u2")),
        "u3": Choice("identity", ("b1",)),
        "u4": Choice("exp", ("x",)),
        "b2": Choice("left", ("u3", "u4")),
    }
    assert body(Genotype(slots, "b2", Clip("none"))) == ["return torch.tanh(x)"]
    assert body(Genotype.of_op("identity")) == ["return x"]


def test_any_name_of_a_slot_will_do() -> None:
    given = [
        "torch",
        "F",
        "lambda",
        "_limit",
        "x1",
        "activation",
        "u1",
        "u1_raw",
        "v1",
        "a_name_longer_than_a_line" * 4,
    ]
    slots, reads = {}, "x"
    for name in given:
        slots[name] = Choice("elu" if name == "u1" else "mul", (reads, "x")[: 1 if name == "u1" else 2])
        reads = name
    genotype = Genotype(slots, reads, Clip("hard", 2.0))
    x = everywhere(torch.float32)
    for text in (to_source(genotype), to_source(genotype, trainable=True)):
        assert same_bits(run(text).Activation()(x), Activation(genotype)(x))
    assert np.allclose(run(to_numpy_source(genotype)).activation(x.numpy()), Activation(genotype)(x).numpy(), atol=1e-6)


def test_whatever_the_provenance_holds_stays_in_the_docstring() -> None:
    nasty = {"note": 'a """ b \\', "other": ["\n\nimport os\n", "\\N", "'''"], '"""': '"""\nraise SystemExit\n"""'}
    genotype = Genotype({"u1": Choice("relu", ("x",))}, "u1", provenance=nasty)
    for text in (to_source(genotype), to_numpy_source(genotype), to_sympy_source(genotype)):
        tree = ast.parse(text)
        assert [type(node).__name__ for node in tree.body].count("Raise") == 0
        assert ast.get_docstring(tree) is not None
        assert not any(a.name == "os" for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names)


def test_a_trainable_module_has_the_activations_parameters() -> None:
    genotype = next(g for g in drawn() if {"beta_mix", "beta_mul"} <= {g.slots[s].op for s in g.order})
    exported, activation = run(to_source(genotype, "Mine", trainable=True)).Mine(), Activation(genotype, trainable=True)
    assert list(exported.state_dict()) == list(activation.state_dict())
    exported.load_state_dict({name: value + 0.25 for name, value in activation.state_dict().items()})
    activation.load_state_dict(exported.state_dict())
    for dtype in DTYPES:
        x = everywhere(dtype)
        assert same_bits(exported(x), activation(x)), dtype
    x = torch.linspace(-3, 3, 101)
    exported(x).sum().backward()
    activation(x).sum().backward()
    for a, b in zip(exported.parameters(), activation.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", ["1st", "a-b", "class", "Tensor", "torch", "a b", "é"])
def test_a_name_that_python_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a class"):
        to_source(Genotype.of_op("relu"), name)


def test_names_follow_the_customs_of_python() -> None:
    relu = Genotype.of_op("relu")
    assert names(relu, "ReLU2") == ("ReLU2", "relu2")
    assert names(relu, "my_find") == ("MyFind", "my_find")
    assert names(relu, "MyFind") == ("MyFind", "my_find")
    assert names(relu, None) == ("Activation", "activation")
    assert names(zoo.load("gelu_tanh"), None) == ("GeluTanh", "gelu_tanh")


@pytest.mark.parametrize("n", [12, pytest.param(RANDOM, marks=pytest.mark.slow)])
def test_files_are_formatted_and_run_in_a_process_without_actsearch(n: int, tmp_path: Path) -> None:
    series = map(Genotype.of_op, registry.groups()["taafs"])
    genotypes = [*drawn(n), *drawn(n // 2, "full"), *map(zoo.load, zoo.names()), *series]
    x = np.linspace(-9, 9, 97)
    expected = []
    for k, genotype in enumerate(genotypes):
        (tmp_path / f"source_{k}.py").write_text(to_source(genotype, "Mine"), encoding="utf-8")
        (tmp_path / f"trainable_{k}.py").write_text(to_source(genotype, "Mine", trainable=True), encoding="utf-8")
        (tmp_path / f"array_{k}.py").write_text(to_numpy_source(genotype, "Mine"), encoding="utf-8")
        expected.append(Activation(genotype)(torch.from_numpy(x)).numpy())
    np.save(tmp_path / "expected.npy", np.stack(expected))
    for command in (["format", "--check"], ["check", "--select", "E4,E7,E9,F,I,UP"]):
        found = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--target-version", "py311", str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stdout + found.stderr
    script = (
        "import importlib, sys, numpy as np\n"
        "class Forbidden:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'actsearch': raise AssertionError('actsearch is imported')\n"
        "sys.meta_path.insert(0, Forbidden())\n"
        "sys.path.insert(0, '.')\n"
        "x = np.linspace(-9, 9, 97)\n"
        "for k, expected in enumerate(np.load('expected.npy')):\n"
        "    mine = importlib.import_module(f'array_{k}').mine(x)\n"
        "    assert np.allclose(mine, expected, rtol=1e-7, atol=1e-9), k\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "for k, expected in enumerate(np.load('expected.npy')):\n"
        "    for file in (f'source_{k}', f'trainable_{k}'):\n"
        "        mine = importlib.import_module(file).Mine()(torch.from_numpy(x)).detach().numpy()\n"
        "        assert np.allclose(mine, expected, rtol=1e-6, atol=1e-7), file\n"
        "assert not [name for name in sys.modules if name.startswith('actsearch')]\n"
        "print('done')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "done\n", found.stderr


# -- NumPy, sympy, LaTeX -------------------------------------------------------------------------------------------


@EVERY
def test_the_numpy_form_of_every_operation_agrees(spec: OpSpec) -> None:
    for genotype in cells(spec):
        function, activation = run(to_numpy_source(genotype)).activation, Activation(genotype)
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-7), (torch.float16, 2e-3)):
            x = everywhere(dtype)
            found = function(x.numpy())
            assert found.dtype == x.numpy().dtype
            # The terms of a series are larger than their sum.
            least = 4 * tolerance if any(p.shape for p in spec.parameters) else tolerance
            np.testing.assert_allclose(found, activation(x).numpy(), rtol=tolerance, atol=least, err_msg=str(genotype))


def test_random_functions_agree_in_numpy_in_value_and_difference_quotients() -> None:
    for genotype in [*drawn(), *map(zoo.load, zoo.names())]:
        function = run(to_numpy_source(genotype, "Mine")).mine
        found = parity.of_numpy(Activation(genotype), function, parity.points())
        assert found.value < 1e-7, genotype  # a mixture's share is of float32 in the module
        assert max(found.first, found.second) < 1e-4, genotype


def test_numpy_takes_what_numpy_takes() -> None:
    mish = run(to_numpy_source(zoo.load("mish"))).mish
    assert mish([1, 2]).dtype == np.float64
    assert mish(0.5).shape == ()
    assert mish(np.ones((2, 3, 4), np.float32)).shape == (2, 3, 4)


def test_an_operation_without_numpy_form_says_where_to_add_it() -> None:
    with pytest.raises(GenotypeError, match=r"'nothing' has no NumPy form; add it to"):
        numpy_ops.of_op(OpSpec("nothing", 1, torch.relu, "x", "test"))


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.kind)
def test_sympy_has_the_clip_and_the_scale(clip: Clip) -> None:
    x = np.linspace(-6, 6, 241)
    for genotype in drawn(12):
        genotype = Genotype(genotype.slots, genotype.output, clip, scale=1.7)
        activation = Activation(genotype)
        if clip.kind == "none":  # a guard acts where a chain of powers and exponentials runs away
            reference = activation(torch.from_numpy(x)).numpy()
            near = abs(reference) < 1e3
        else:
            near = np.full(x.shape, True)
        symbol = sympy.Symbol("x", real=True)
        function = sympy.lambdify(symbol, to_sympy(genotype, symbol), ["scipy", "numpy"])
        with np.errstate(all="ignore"):
            found = np.broadcast_to(function(x), x.shape)
        expected = activation(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found[near], expected[near], rtol=1e-7, atol=1e-7, err_msg=str(genotype))


def test_the_sympy_file_holds_the_same_expression() -> None:
    for genotype in drawn(10):
        found = run(to_sympy_source(genotype))
        both = [sympy.lambdify(found.x, e, ["scipy", "numpy"]) for e in (found.expression, to_sympy(genotype, found.x))]
        np.testing.assert_allclose(both[0](0.7), both[1](0.7), rtol=1e-13)
        np.testing.assert_allclose(both[0](-3.1), both[1](-3.1), rtol=1e-13)


def test_latex_says_where_the_clip_acts_and_what_it_is() -> None:
    text = to_latex(Genotype.of_op("square", Clip("hard", 5.0)))
    assert text == (
        "\\begin{align*}\n  f(x) &= \\operatorname{clip}{\\left(x^{2} \\right)} \\\\\n"
        "  \\operatorname{clip}(y) &= \\min(\\max(y, -5), 5)\n\\end{align*}\n"
    )
    assert "clip" not in to_latex(Genotype.of_op("tanh", Clip("hard", 5.0)))
    assert "^8" in to_latex(Genotype.of_op("square", Clip("smooth", 5.0)))


# -- ONNX and torch.export -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ops", [("softplus", "gelu", "beta", "identity"), pytest.param(tuple(registry), marks=pytest.mark.slow)], ids=len
)
def test_every_operation_runs_in_onnxruntime_at_any_size(ops: tuple[str, ...], tmp_path: Path) -> None:
    activations = [Activation(cells(registry[op])[0]) for op in ops]
    function = load_onnx(to_onnx_together(activations, tmp_path / "all.onnx"))
    x = np.concatenate([parity.points(), [1e30, -1e30, 3e38, -3e38]]).astype(np.float32)
    for op, activation, found in zip(ops, activations, function(x[None]), strict=True):
        expected = activation(torch.from_numpy(x)).numpy()
        # A series in tanh x is steep at its ends: it multiplies the last bit of another tanh by tens.
        tolerance = 2e-5 if any(p.shape for p in registry[op].parameters) else 2e-6
        np.testing.assert_allclose(found[0], expected, rtol=tolerance, atol=tolerance, err_msg=activation.formula)
    for shape in [(0, 3), (1, 1), (4, 500)]:
        assert {y.shape for y in function(np.ones(shape, np.float32))} == {shape}


def test_one_function_is_one_output_called_y(tmp_path: Path) -> None:
    path = Activation(zoo.load("mish")).to_onnx(tmp_path / "deep" / "mish.onnx", rank=4)
    import onnx as package

    model = package.load(path)
    package.checker.check_model(model, full_check=True)
    assert [y.name for y in model.graph.output] == ["y"]
    assert [v.name for v in model.graph.input] == ["x"]
    images = np.linspace(-5, 5, 120, dtype=np.float32).reshape(2, 3, 4, 5)
    expected = torch.nn.functional.mish(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(load_onnx(path)(images)[0], expected, atol=1e-6)
    assert [p.name for p in path.parent.iterdir()] == ["mish.onnx"]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx, "missing_packages", lambda: ["onnxruntime"])
    with pytest.raises(MissingPackageError, match=r"needs onnxruntime: pip install 'actsearch\[onnx\]'"):
        to_onnx(Activation(Genotype.of_op("relu")), tmp_path / "relu.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, RANDOM, 50))
def test_two_hundred_random_functions_agree_in_onnxruntime(start: int, tmp_path: Path) -> None:
    agree_in_onnxruntime(drawn()[start : start + 50], tmp_path)


@pytest.mark.slow
def test_the_zoo_agrees_in_onnxruntime(tmp_path: Path) -> None:
    agree_in_onnxruntime(list(map(zoo.load, zoo.names())), tmp_path)


def agree_in_onnxruntime(genotypes: list[Genotype], folder: Path) -> None:
    activations = list(map(Activation, genotypes))
    function = load_onnx(to_onnx_together(activations, folder / "all.onnx"))
    for k, activation in enumerate(activations):
        found = parity.of_single(activation, lambda at, k=k: function(at[None])[k][0], parity.points())
        assert found.value < 1e-5, activation.formula
        assert found.first < 1e-4, activation.formula


def test_a_program_of_torch_export_runs_at_any_size_and_can_be_differentiated(tmp_path: Path) -> None:
    for k, genotype in enumerate([*drawn(2), zoo.load("mish"), Genotype.of_op("beta")]):
        activation = Activation(genotype)
        program = load_program(to_program(activation, tmp_path / f"{k}.pt2"))
        for shape in [(1, 1), (3, 500)]:
            x = torch.linspace(-5, 5, math.prod(shape)).reshape(shape)
            assert same_bits(program(x), activation(x))
        found = parity.of_torch(
            activation, lambda x, program=program: program(x[None])[0], parity.points(), torch.float32
        )
        assert found.value == 0
        assert found.first < 1e-5


# -- parity --------------------------------------------------------------------------------------------------------


def test_parity_sees_an_error_in_value_and_in_each_derivative() -> None:
    activation, x = Activation(Genotype.of_op("tanh")), parity.points()
    exact = parity.of_torch(activation, torch.tanh, x)
    assert (exact.value, exact.first, exact.second) == (0, 0, 0)
    shifted = parity.of_torch(activation, lambda x: torch.tanh(x) + 1e-3, x)
    assert shifted.value == pytest.approx(1e-3)
    assert shifted.first == 0
    wavy = parity.of_torch(activation, lambda x: torch.tanh(x) + 1e-6 * torch.sin(100 * x), x)
    assert wavy.value == pytest.approx(1e-6, rel=0.1)
    assert wavy.first == pytest.approx(1e-4, rel=0.1)
    assert wavy.second == pytest.approx(1e-2, rel=0.1)
    waves = parity.of_numpy(activation, lambda x: np.tanh(x) + 1e-6 * np.sin(100 * x), x)
    assert waves.first == pytest.approx(1e-4, rel=0.1)
    assert waves.second == pytest.approx(1e-2, rel=0.1)
    assert parity.of_torch(activation, lambda x: torch.where(x > 5, math.nan, torch.tanh(x)), x).value == math.inf
    slow = parity.of_single(activation, lambda x: np.tanh(x) + np.float32(1e-3) * x, x)
    assert slow.value > 1e-3
    assert slow.first == pytest.approx(1e-3, rel=0.1)
    assert slow.second is None


def test_parity_is_over_the_recorded_inputs() -> None:
    x = parity.points(torch.tensor([-1.0, math.nan, 30.0, math.inf]))
    assert (x[0], x[parity.POINTS - 1]) == (-1, 30)
    assert x.max() == 1e6
    assert parity.points(torch.tensor([]), far=False).max() == 8


# -- speed ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_compiled_source_is_one_fused_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    import torch._inductor.metrics as metrics

    x = torch.randn(64, 1024)
    for genotype in [zoo.load("mish"), zoo.load("hardswish"), *drawn(3)]:
        function = run(to_source(genotype, "Mine")).mine
        torch._dynamo.reset()
        metrics.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = torch.compile(function, fullgraph=True)(x)
            except torch._inductor.exc.InductorError as error:
                if "compiler" in str(error).lower():
                    pytest.skip("no C++ compiler")
                raise
        assert metrics.generated_kernel_count == 1, genotype
        torch.testing.assert_close(found, function(x), rtol=1e-5, atol=1e-5)


def test_an_operation_that_is_no_function_cannot_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = OpSpec("odd", 1, lambda x: x, "x", "test")
    monkeypatch.setitem(registry._specs, "odd", odd)
    with pytest.raises(ActsearchError, match="'odd' cannot be exported as source"):
        to_source(Genotype.of_op("odd"))


@pytest.mark.parametrize(
    "evil", ['"""\nraise SystemExit\n"""', '\\"""\nX = 1', "\\", "\x00", '"' * 7, "\ud800", "\u2028X = 1"]
)
@pytest.mark.parametrize("write", [to_source, to_numpy_source, to_sympy_source])
def test_provenance_cannot_leave_the_docstring(write: Callable[..., str], evil: str) -> None:
    clean = ast.parse(write(Genotype.of_op("gelu"), "Found")).body
    for origin in ({"provenance": {"run": evil}}, {"provenance": {evil: [evil]}}, {"space": {"name": evil}}):
        text = write(dataclasses.replace(Genotype.of_op("gelu"), **origin), "Found")
        text.encode()
        assert [ast.dump(node) for node in ast.parse(text).body[1:]] == [ast.dump(node) for node in clean[1:]]
