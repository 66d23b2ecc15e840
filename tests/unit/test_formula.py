"""The formula language: parsed, never evaluated by Python; one meaning for sympy and for torch."""

from __future__ import annotations

import builtins
import math
from typing import Any

import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actsearch.ops import registry
from actsearch.ops.formula import MAX_DEPTH, MAX_LENGTH, FormulaError, parse, to_sympy, to_torch

BOTH = pytest.mark.parametrize("read", [to_sympy, to_torch])

ATTACKS = [
    "__import__('os')",
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "x.__class__",
    "x.data",
    "exp.__globals__",
    "(lambda: x)()",
    "[x for x in (1, 2)]",
    "{x: x for x in (1,)}",
    "(x for x in x)",
    "x if x else 1",
    "1if x else 2",
    "x and x",
    "not x",
    "x < 1",
    "x @ x",
    "x // 2",
    "x % 2",
    "x << 2",
    "~x",
    "x[0]",
    "(x, x)",
    "[x]",
    "{}",
    "'x'",
    "'\\d'",
    "b'x'",
    "f'{x}'",
    "f'{__import__(\"os\")}'",
    "(y := x)",
    "y = x",
    "import os",
    "x; x",
    "exp(*x)",
    "exp(x, **x)",
    "exp(x=x)",
    "await x",
    "yield x",
    "print(x)",
    "eval(x)",
    "getattr(x, x)",
    "open(x)",
    "exp(x)(x)",
    "True",
    "x**True",
    "x**-True",
    "None",
    "...",
    "1j",
    "1e400",
    "1" + "0" * 400,
    "9**9**9",
    "x**x",
    "x**21",
    "x**-21",
    "x**1e9",
    "x**(1+1)",
    "",
    "   ",
    "x x",
    "x\nx",
    "\x00",
    "(",
    "exp(",
    "x.a" + ".a" * 900,
    "not " * 450 + "x",
    "lambda:" * 280 + "x",
    "(" * 150 + "x" + ")" * 150 + ")",
    "-" * 1_900 + "x",
    "x" + "+x" * 200,
    "tanh(" * 150 + "x" + ")" * 150,
]


@BOTH
@pytest.mark.parametrize("text", ATTACKS, ids=lambda t: t[:24])
def test_what_is_not_arithmetic_is_refused_in_one_line(read: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("Python evaluated the formula")

    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, refuse)
    with pytest.raises(FormulaError) as error:
        read(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("op", ["square", "cube"])
def test_towers_of_powers_do_not_fill_the_memory(op: str) -> None:
    with pytest.raises(FormulaError, match="too large"):
        to_sympy("(" * 40 + "9" + "**20)" * 40)
    with pytest.raises(FormulaError, match="too large"):
        to_sympy(f"{op}(" * 60 + "9" + ")" * 60)
    with pytest.raises(FormulaError, match="too large"):
        to_sympy("(" * 20 + "9*x" + "**20)" * 20)
    assert to_torch("(" * 40 + "9" + "**20)" * 40)(torch.ones(2)).tolist() == [math.inf] * 2


def test_a_formula_may_be_long_but_not_longer_and_deep_but_not_deeper() -> None:
    tail = "*(x+0)" * ((MAX_LENGTH - 1) // 6 // 4)
    assert parse("x" + " " * (MAX_LENGTH - 1))
    with pytest.raises(FormulaError, match="longer"):
        parse("x" + " " * MAX_LENGTH)
    assert parse("x" + "+1" * MAX_DEPTH)
    with pytest.raises(FormulaError, match="deeper"):
        parse("x" + "+1" * (MAX_DEPTH + 1))
    assert to_torch("x" + tail)(torch.ones(3)).tolist() == [1.0] * 3


@BOTH
@pytest.mark.parametrize("text", ["max()", "log(x, 2)", "abs(x, x)", "exp()", "gelu(x, x)", "sin(x, x, x)"])
def test_the_number_of_arguments_is_checked(read: Any, text: str) -> None:
    with pytest.raises(FormulaError, match=r"does not take \d arguments"):
        read(text)


@pytest.mark.parametrize("text", ["max(1/0, x)", "max(log(-1), x)", "min((-1)**0.5, x)", "relu(1/0)", "max(0/0, x)"])
def test_what_is_not_real_is_a_formula_error_in_sympy(text: str) -> None:
    with pytest.raises(FormulaError, match="not a real function"):
        to_sympy(text)


@BOTH
@pytest.mark.parametrize(
    ("text", "suggestion"),
    [("tann(x)", "'tanh'"), ("sigmoyd(x)", "'sigmoid'"), ("Relu(x)", "'relu'"), ("softplu(x)*x", "'softplus'")],
)
def test_an_unknown_function_gives_near_matches_at_once(read: Any, text: str, suggestion: str) -> None:
    with pytest.raises(FormulaError, match=f"unknown function in the formula .*did you mean.*{suggestion}"):
        read(text)


@BOTH
def test_an_unknown_variable_names_the_known_one(read: Any) -> None:
    with pytest.raises(FormulaError, match="unknown variable in the formula 'beta'; known: x"):
        read("beta*x")


def test_symbols_replace_the_variables() -> None:
    a, b = sympy.symbols("a b", real=True)
    assert to_sympy("x1 - 2*x2", x1=a, x2=b) == a - 2 * b
    with pytest.raises(FormulaError, match="unknown variable"):
        to_sympy("x", x1=a)


def test_short_decimals_are_meant_exactly() -> None:
    assert to_sympy("0.001") == sympy.Rational(1, 1000)
    assert float(to_sympy("0.12345678901234567")) == 0.12345678901234567
    assert to_torch("0.1*x")(torch.ones(1, dtype=torch.float64)).item() == 0.1


@pytest.mark.parametrize("spec", [s for s in registry.values() if not s.parameters], ids=lambda s: s.id)
def test_an_id_is_the_registered_operation_itself(spec: Any) -> None:
    x = torch.linspace(-20, 20, 401)
    arguments, tensors = (["x"], [x]) if spec.arity == 1 else (["2*x", "tanh(x)"], [2 * x, torch.tanh(x)])
    text = f"{spec.id}({', '.join(arguments)})"
    assert torch.equal(to_torch(text)(x), spec.function(*tensors))
    assert to_sympy(text).subs(sympy.Symbol("x", real=True), 1).evalf() == pytest.approx(
        to_torch(text)(torch.ones(1, dtype=torch.float64)).item()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dtype_and_shape_are_those_of_the_input_also_of_a_constant(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, 1, dtype=dtype)
    for text in ("2", "x+1", "max(x, 0.5, 1)", "gelu(1) * 2"):
        y = to_torch(text)(x)
        assert (y.dtype, y.shape) == (dtype, x.shape)


ONE_ARGUMENT = sorted(
    {op for op, s in registry.items() if s.arity == 1 and not s.parameters} | {"log", "tan", "sin", "erf", "abs"}
)


@st.composite
def formulas(draw: Any, depth: int = 3) -> list[str]:
    """A random formula, first, and all of its parts."""
    kind = draw(st.sampled_from(["leaf", "binary", "binary", "function", "function", "extremum", "power", "sign"]))
    if depth == 0 or kind == "leaf":
        return [draw(st.sampled_from(["x", "x", "x", "1", "0.5", "2", "1.7", "0.044715", "3.14159265358979"]))]
    first = draw(formulas(depth - 1))
    if kind == "function":
        return [f"{draw(st.sampled_from(ONE_ARGUMENT))}({first[0]})", *first]
    if kind == "power":
        return [f"({first[0]})**{draw(st.sampled_from(['2', '3', '-1', '-2', '0.5', '1.5']))}", *first]
    if kind == "sign":
        return [f"-({first[0]})", *first]
    second = draw(formulas(depth - 1))
    if kind == "extremum":
        return [f"{draw(st.sampled_from(['max', 'min']))}({first[0]}, {second[0]})", *first, *second]
    return [f"({first[0]}) {draw(st.sampled_from('+-*/'))} ({second[0]})", *first, *second]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(formulas(), st.floats(-3, 3, allow_subnormal=False))
def test_torch_and_sympy_agree_on_random_formulas(parts: list[str], at: float) -> None:
    x = torch.tensor(at, dtype=torch.float64)
    values = [to_torch(part)(x).item() for part in parts]
    # Away from poles, from complex values and from cancellation, where rounding is all that could differ.
    assume(all(math.isfinite(v) and abs(v) < 1e4 for v in values))
    denominators = [part for part in parts if "/" in part or "**-" in part or "log" in part or "tan" in part]
    assume(not denominators or all(abs(v) > 1e-3 for v in values))
    expected = to_sympy(parts[0]).evalf(30, subs={sympy.Symbol("x", real=True): sympy.Float(at, 30)})
    assert values[0] == pytest.approx(float(expected), rel=1e-7, abs=1e-9)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.text(alphabet="x0129.+-*/()[]{}'\",:=<>!@%&|~^ \n\\_abepmnt", max_size=40))
def test_random_text_is_read_or_refused(text: str) -> None:
    for read in (to_sympy, to_torch):
        try:
            read(text)
        except FormulaError:
            continue
