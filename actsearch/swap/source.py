"""From a Python function to its syntax tree, and from a changed tree back to a function with the same surroundings."""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any

Definition = ast.FunctionDef | ast.Lambda

_NEWER: dict[str, Any] = {} if sys.version_info < (3, 12) else {"type_params": []}
_numbers = itertools.count()


def definition(function: FunctionType) -> Definition | None:
    """The syntax tree of a function or lambda, or None where its source cannot be read. Not to be changed."""
    code = function.__code__
    found = [node for node in _definitions(code.co_filename, code.co_firstlineno) if _same(node, code)]
    if len(found) > 1:  # lambdas of one line: the one around the function's own instructions
        inside = [(line, column) for line, _, column, _ in code.co_positions() if line is not None and column]
        found = [node for node in found if all(_spans(node, place) for place in inside)]
    return found[0] if len(found) == 1 else None


def compiled(node: Definition, like: FunctionType, extra: Mapping[str, Any]) -> FunctionType:
    """`node` as a function with globals, closure, defaults and attributes of `like`, in which `extra` is known too."""
    name = node.name if isinstance(node, ast.FunctionDef) else "_swap_lambda"
    body: ast.stmt
    if isinstance(node, ast.FunctionDef):
        node.decorator_list = []
        # What is evaluated when a function is defined was evaluated; only the number of defaults counts.
        body = node
    else:
        body = ast.FunctionDef(name=name, args=node.args, body=[ast.Return(node.body)], decorator_list=[], **_NEWER)
    _strip(body)
    owner = like.__qualname__.split(".")[-2:-1]
    if owner and owner[0].isidentifier():  # inside its class, so that names such as self.__x are mangled alike
        body = ast.ClassDef(name=owner[0], bases=[], keywords=[], body=[body], decorator_list=[], **_NEWER)
    cells = dict(zip(like.__code__.co_freevars, like.__closure__ or (), strict=True))
    cells |= {key: CellType(value) for key, value in extra.items()}
    outer = ast.FunctionDef(
        name="_swap_outer",
        args=ast.arguments([], [ast.arg(key) for key in cells], None, [], [], None, []),
        body=[body],
        decorator_list=[],
        **_NEWER,
    )
    text = ast.unparse(ast.fix_missing_locations(ast.Module([outer], [])))
    # The changed text is what tracebacks and torch.jit.script shall read.
    filename = f"<actsearch.swap {next(_numbers)} of {like.__code__.co_filename}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    code = _find(compile(text, filename, "exec", dont_inherit=True), name)
    closure = tuple(cells[key] for key in code.co_freevars)
    made = FunctionType(code, like.__globals__, like.__name__, like.__defaults__, closure)
    made.__kwdefaults__ = like.__kwdefaults__
    made.__qualname__, made.__module__, made.__doc__ = like.__qualname__, like.__module__, like.__doc__
    made.__annotations__ = like.__annotations__
    made.__dict__.update(like.__dict__)
    return made


def inner(function: FunctionType) -> FunctionType | None:
    """What decorators wrapped, if it can be exchanged: each of them must hold the function in its closure."""
    while (wrapped := getattr(function, "__wrapped__", None)) is not None:
        if not inspect.isfunction(wrapped) or not any(_holds(cell, wrapped) for cell in function.__closure__ or ()):
            return None
        function = wrapped
    return function


def rewrapped(outer: FunctionType, new: FunctionType) -> FunctionType:
    """The decorators of `outer` around `new` in place of what they wrapped."""
    wrapped = getattr(outer, "__wrapped__", None)
    if wrapped is None:
        return new
    made = rewrapped(wrapped, new)
    closure = tuple(CellType(made) if _holds(cell, wrapped) else cell for cell in outer.__closure__ or ())
    copied = FunctionType(outer.__code__, outer.__globals__, outer.__name__, outer.__defaults__, closure)
    copied.__kwdefaults__ = outer.__kwdefaults__
    copied.__dict__.update(outer.__dict__, __wrapped__=made)
    copied.__qualname__, copied.__module__, copied.__doc__ = outer.__qualname__, outer.__module__, outer.__doc__
    copied.__annotations__ = outer.__annotations__
    return copied


def names_in(code: CodeType) -> set[str]:
    """Names that a function's instructions mention, also those of functions defined in it."""
    found = set(code.co_names) | set(code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_in(constant)
    return found


def _holds(cell: CellType, value: object) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # an empty cell
        return False


def _strip(function: ast.FunctionDef) -> None:
    """Take out defaults (their number stays) and annotations: they were evaluated when the function was defined."""
    function.returns = None
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for argument in every:
        if argument is not None:
            argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [None if value is None else ast.Constant(None) for value in arguments.kw_defaults]


def _find(code: CodeType, name: str) -> CodeType:
    """The code of the function of that name, below a module, `_swap_outer` and perhaps a class."""
    inside = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    for constant in inside:
        if constant.co_name == name and constant.co_flags & inspect.CO_NEWLOCALS:
            return constant
    return _find(inside[0], name)


def _definitions(filename: str, line: int) -> list[Definition]:
    return _by_line(filename, "".join(linecache.getlines(filename))).get(line, [])


@lru_cache(maxsize=64)
def _by_line(filename: str, text: str) -> dict[int, list[Definition]]:
    found: dict[int, list[Definition]] = {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # not Python, such as the temporary file of a template
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
            first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            found.setdefault(first, []).append(node)
    return found


def _same(node: Definition, code: CodeType) -> bool:
    """Whether a definition can be that of a code object: it may have been edited since it was imported."""
    name = node.name if isinstance(node, ast.FunctionDef) else "<lambda>"
    arguments = [argument.arg for argument in _arguments(node.args)]
    if name != code.co_name or arguments != list(code.co_varnames[: len(arguments)]):
        return False
    used = names_in(code)
    if any(name.startswith("@") for name in used):  # pytest rewrote the asserts of a test file
        return True
    written = {name.rpartition("__")[2] for name in _identifiers(node)}
    return all(name.rpartition("__")[2] in written for name in used)


def _identifiers(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Import | ast.ImportFrom):
            yield getattr(part, "module", None) or ""
            for alias in part.names:
                yield from (alias.name, *alias.name.split("."))
        elif isinstance(part, ast.FunctionDef | ast.ClassDef):
            yield part.name
    yield from ("__class__", "AssertionError", "annotations", "__name__", "__module__", "__qualname__")


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None)


def _spans(node: ast.expr | ast.FunctionDef, place: tuple[int, int]) -> bool:
    start = (node.lineno, node.col_offset)
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return start <= place <= end
