"""A small language of formulas in one variable: parsed, never evaluated by Python.

A formula is arithmetic (`+ - * / **`), numbers, `x`, elementary functions, and the id of any registered operation
without parameters: `x*tanh(x)`, `relu(x)**2`, `sigmoid(1.7*x) * x`. `to_sympy` reads it as an expression and `to_torch`
as a function of tensors. The formulas of the operations themselves are written in it too.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from actsearch.errors import ActsearchError, unknown_name
from actsearch.ops.spec import OpSpec, registry

MAX_LENGTH = 2_000
MAX_DEPTH = 100
MAX_BITS = 1_000  # of a number that a power is taken of; more than float64 has room for


def _power(base: Any, exponent: float) -> Any:
    # sympy computes rational powers exactly: ((9**20)**20)**20… would fill the memory.
    if isinstance(base, sympy.Basic) and any(
        max(abs(n.p), n.q).bit_length() > MAX_BITS for n in base.atoms(sympy.Rational)
    ):
        raise FormulaError("a number in the formula is too large")
    return base**exponent


_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
}
_UNARY: Mapping[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}

_ELEMENTARY = ("exp", "log", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "atan", "erf")
_SYMPY_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": sympy.Abs,
    "sinc": sympy.sinc,
    **{name: getattr(sympy, name) for name in _ELEMENTARY},
    # sympy takes no argument here, and a base there, where to_torch does not.
    "max": lambda first, *others: sympy.Max(first, *others),
    "min": lambda first, *others: sympy.Min(first, *others),
    "log": lambda argument: sympy.log(argument),
}


class FormulaError(ActsearchError, ValueError):
    """A formula that is not in the language."""


def parse(text: str) -> ast.expr:
    """The syntax tree of `text`, of allowed nodes only. Raises FormulaError."""
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"formula is longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python only warns of (`1if x else 2`) is no formula either
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, SyntaxWarning, DeprecationWarning, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError(f"cannot parse the formula {_shortened(text)!r}: {error!s}") from None
    _check(tree, 0)
    return tree


def _check(node: ast.AST, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FormulaError(f"formula is nested deeper than {MAX_DEPTH} levels")
    match node:
        case ast.Constant(value=bool()):
            raise FormulaError("True and False are not numbers")
        case ast.Constant(value=int() | float() as value) if abs(value) < 1e30:
            return
        case ast.Name():
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            children: list[ast.AST] = [left, right]
            if isinstance(op, ast.Pow) and not _small_number(right):
                raise FormulaError("an exponent must be a number between -20 and 20")
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            children = [operand]
        case ast.Call(func=ast.Name(), args=args, keywords=[]) if not any(isinstance(a, ast.Starred) for a in args):
            children = list(args)
        case _:
            raise FormulaError(
                f"{_source(node)!r} is not allowed in a formula; use numbers, x, + - * / ** and functions of x"
            )
    for child in children:
        _check(child, depth + 1)


def _source(node: ast.AST) -> str:
    try:
        return _shortened(ast.unparse(node))
    except RecursionError:
        return type(node).__name__


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _small_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= 20


def _walk(node: ast.AST, number: Callable[[float], Any], names: Mapping[str, Any], functions: Mapping[str, Any]) -> Any:
    """Value of an already checked tree, over whatever the numbers, names and functions are."""
    match node:
        case ast.Constant(value=value):
            return number(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            if name not in names:
                raise FormulaError(unknown_name("variable in the formula", name, names))
            return names[name]
        case ast.BinOp(left=left, op=op, right=right):
            second = right if not isinstance(op, ast.Pow) else ast.Constant(value=ast.literal_eval(right))
            return _BINARY[type(op)](
                _walk(left, number, names, functions),
                _walk(second, number if not isinstance(op, ast.Pow) else _as_is, names, functions),
            )
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_walk(operand, number, names, functions))
        case ast.Call(func=ast.Name(id=name), args=args):
            if name not in functions:
                raise FormulaError(unknown_name("function in the formula", name, functions))
            arguments = [_walk(argument, number, names, functions) for argument in args]
            try:
                return functions[name](*arguments)
            except TypeError:
                raise FormulaError(f"{name} does not take {len(arguments)} arguments") from None
    raise AssertionError(f"unchecked node {node!r}")


def _as_is(value: float) -> float:
    return value


def _sympy_number(value: float) -> sympy.Expr:
    # A short decimal such as 0.001 is meant exactly.
    return sympy.Rational(str(value)) if len(repr(value)) <= 8 else sympy.Float(repr(value), 17)


def to_sympy(text: str, **symbols: sympy.Expr) -> sympy.Expr:
    """`text` as a sympy expression; `symbols` replace its variables (default: a real `x`). Raises FormulaError."""
    names = symbols or {"x": sympy.Symbol("x", real=True)}
    tree = parse(text)
    try:
        return sympy.sympify(_walk(tree, _sympy_number, names, _sympy_functions()))
    except FormulaError:
        raise
    except ValueError as error:  # sympy's max and min compare real numbers only
        raise FormulaError(f"{_shortened(text)!r} is not a real function: {error}") from None


def of_op(spec: OpSpec, *arguments: sympy.Expr, **parameters: sympy.Expr | Sequence[sympy.Expr]) -> sympy.Expr:
    """The formula of `spec` with the given arguments and parameters put in.

    A vector is given as a sequence: its values stand for `name_0`, `name_1`, … Raises FormulaError for another length.
    """
    names = dict(zip(spec.arguments, arguments, strict=True)) | parameters
    for parameter in spec.parameters:
        if parameter.shape and parameter.name in names:
            values = tuple(names.pop(parameter.name))
            if len(values) != parameter.shape[0]:
                raise FormulaError(f"{parameter.name} of {spec.id} are {parameter.shape[0]} numbers, not {len(values)}")
            names |= {f"{parameter.name}_{k}": value for k, value in enumerate(values)}
    return sympy.sympify(_walk(parse(spec.formula), _sympy_number, names, _SYMPY_FUNCTIONS))


def _sympy_functions() -> dict[str, Callable[..., Any]]:
    def of(spec: OpSpec) -> Callable[..., sympy.Expr]:
        def function(*arguments: sympy.Expr) -> sympy.Expr:
            if len(arguments) != spec.arity + _n_numbers(spec):
                raise TypeError
            return of_op(spec, *arguments[: spec.arity], **_named(spec, arguments[spec.arity :]))

        return function

    # An id is what the operation computes: `sqrt` is sqrt(max(x, 1e-3)) in a cell and in a formula alike.
    return {**_SYMPY_FUNCTIONS, **{spec.id: of(spec) for spec in _callable_specs()}}


def _callable_specs() -> list[OpSpec]:
    """Operations that a formula may call by their ids; its max and min take any number of arguments instead.

    Those with coefficients take them after their arguments, as their printed form has them.
    """
    return [spec for op, spec in registry.items() if op not in ("max", "min") and all(p.shape for p in spec.parameters)]


def _n_numbers(spec: OpSpec) -> int:
    return sum(p.shape[0] for p in spec.parameters)


def _named(spec: OpSpec, numbers: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """The numbers of all vectors by the vector."""
    rest = list(numbers)
    return {p.name: tuple(rest.pop(0) for _ in range(p.shape[0])) for p in spec.parameters}


def _torch_function(spec: OpSpec) -> Callable[..., Tensor]:
    if not spec.parameters:
        return spec.function

    def function(*arguments: Tensor) -> Tensor:
        if len(arguments) != spec.arity + _n_numbers(spec):
            raise TypeError
        given = _named(spec, arguments[spec.arity :])
        return spec.function(*arguments[: spec.arity], **{name: torch.stack(v) for name, v in given.items()})

    return function


def to_torch(text: str) -> Callable[[Tensor], Tensor]:
    """`text` as a function of a tensor of any shape, made of the registered operations. Raises FormulaError."""
    tree = parse(text)
    functions: dict[str, Callable[..., Any]] = {
        "log": torch.log,
        "tan": torch.tan,
        "max": _torch_extremum(torch.maximum),
        "min": _torch_extremum(torch.minimum),
        **{spec.id: _torch_function(spec) for spec in _callable_specs()},
    }

    def function(x: Tensor) -> Tensor:
        value = _walk(
            tree, lambda number: torch.as_tensor(float(number), dtype=x.dtype, device=x.device), {"x": x}, functions
        )
        return value.expand_as(x)

    function(torch.zeros(1))  # unknown names are reported now, not at the first batch
    return function


def _torch_extremum(pairwise: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def extremum(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = pairwise(first, other)
        return first

    return extremum
