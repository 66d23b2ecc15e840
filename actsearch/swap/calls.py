"""Activation calls in a module's own code: `F.relu(x)`, `x.tanh()`, `ACT[self.kind](x)`, a lambda, a helper function.

They are found in the syntax tree of `forward`, of the methods that it calls, and of the Python functions that those
call. Nothing is run, so what stands under an `if` is found too.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import inspect
import sys
from collections.abc import Collection, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from actsearch.swap.catalog import METHODS, WORDS, function_name, is_in_place, kind_of
from actsearch.swap.source import Definition, definition, inner, names_in

Key = tuple[str, int]
"""A place in code: the function's qualified name, line and column, and the node's number in it."""

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
# Code in which a softplus or a sigmoid belongs to a loss.
_LOSS_WORDS = ("loss", "metric", "criterion")
_FOREIGN = ("torch", "pytorch_lightning", "lightning", "torchmetrics", "numpy", "scipy", *sys.stdlib_module_names)
_FOREIGN_ROOMS = ("actsearch.ops", "actsearch.cell", "actsearch.activation")
_DEPTH = 8  # of functions that call functions
UNKNOWN: Any = object()  # what is known only when the code runs


@dataclasses.dataclass
class Call:
    """An activation that a module's code calls or passes on."""

    key: Key
    function: object  # or a module that is nobody's child
    text: str
    is_gate: bool
    reason: str | None = None  # why it is not to be replaced
    held: str | None = None  # where the owner holds it, if it does: then this is one use of that site
    discarded: bool = False  # a statement of its own, so it works by what it writes into its input
    is_called: bool = True  # here, with arguments that can be read; or it is passed on
    arguments: tuple[Any, ...] = ()  # after the input
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    child: str = ""  # the name of the submodule that can take its place


@dataclasses.dataclass
class Unit:
    """A function or method whose code calls activations, or functions that do."""

    function: FunctionType  # within its decorators
    outer: FunctionType
    node: Definition
    owner: str | None  # its argument that is the module; None: it is to get the module as a further, first argument
    calls: list[Call] = dataclasses.field(default_factory=list)
    helpers: list[tuple[int, Unit]] = dataclasses.field(default_factory=list)  # by number of the node that names them

    @property
    def place(self) -> str:
        # The column tells the lambdas of one line apart.
        return f"{self.function.__qualname__}:{self.function.__code__.co_firstlineno}:{self.node.col_offset}"


def is_loss(name: str) -> bool:
    """Whether a class or function is by its name a loss or a metric."""
    return any(word in name.lower() for word in _LOSS_WORDS)


class Analysis:
    """The calls in the code of one module.

    Args:
        owner: the module.
        base: its class, as it was before any swap.
        held: where the module itself holds activations: "act", "acts[0]", "config.act".
    """

    def __init__(self, owner: nn.Module, base: type[nn.Module], held: Collection[str]) -> None:
        self.owner, self.base, self.held = owner, base, held
        self.methods: dict[str, Unit] = {}
        self.calls: list[Call] = []
        self.others: list[tuple[nn.Module, str]] = []  # methods of other modules that this one's code calls
        self.unreadable: list[tuple[str, str]] = []
        self._helpers: dict[FunctionType, Unit | None] = {}
        self._seen: set[str] = set()

    def start(self) -> None:
        """Analyse what is run of a module: `forward`, and of a LightningModule its steps."""
        if "forward" in vars(self.owner):
            if self._mentions_activations(vars(self.owner)["forward"]):
                self.unreadable.append(("forward", "forward was replaced on this one module; put it into the class"))
        else:
            self.method("forward")
        if any(c.__name__ == "LightningModule" for c in self.base.__mro__):
            for name in _STEPS:
                self.method(name)

    def method(self, name: str) -> None:
        """Analyse a method, and what it calls."""
        if name in self._seen:
            return
        self._seen.add(name)
        found = inspect.getattr_static(self.base, name, None)
        function = found.__func__ if isinstance(found, staticmethod) else found
        if inspect.isfunction(function) and not _is_foreign(function):
            unit = self._unit(function, method=not isinstance(found, staticmethod), depth=0)
            if unit is not None:
                self.methods[name] = unit

    def _unit(self, outer: FunctionType, method: bool, depth: int) -> Unit | None:
        function = inner(outer)
        node = definition(function) if function is not None else None
        if function is None or node is None:
            if self._mentions_activations(outer):
                why = "its decorators cannot be redone" if function is None else "its source cannot be read"
                self.unreadable.append((outer.__name__, f"{why}; write the activation as a submodule"))
            return None
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if method and not names:
            return None
        unit = Unit(function, outer, node, names[0] if method else None)
        _Reader(self, unit, depth).read()
        return unit if unit.calls or unit.helpers else None

    def helper(self, function: FunctionType, method: bool, depth: int) -> Unit | None:
        """The unit of a function that is no method of the module's own class; None if it calls no activation."""
        if function not in self._helpers:
            self._helpers[function] = None  # a function that calls itself ends here
            if depth < _DEPTH and not _is_foreign(function) and not is_loss(function.__name__):
                self._helpers[function] = self._unit(function, method, depth + 1)
        return self._helpers[function]

    def _mentions_activations(self, function: object) -> bool:
        if kind_of(function):
            return True
        code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
        return code is not None and not names_in(code).isdisjoint(WORDS)


class _Reader:
    """Reads one function: what do its names mean, and which of them are activations?"""

    def __init__(self, analysis: Analysis, unit: Unit, depth: int) -> None:
        self.analysis, self.unit, self.depth = analysis, unit, depth
        self.nodes = list(ast.walk(unit.node))
        self.number = {id(node): i for i, node in enumerate(self.nodes)}
        self.parent = {id(child): node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self.cells = dict(zip(unit.function.__code__.co_freevars, unit.function.__closure__ or (), strict=True))
        self.imports: dict[str, Any] = {}
        self.local: set[str] = set()
        for node in self.nodes:
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                self.local.add(node.id)
            elif isinstance(node, ast.arg):
                self.local.add(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node is not unit.node:
                self.local.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
        self.is_loss = is_loss(unit.function.__name__) or unit.function.__name__ in _STEPS

    def read(self) -> None:
        body = self.unit.node.body if isinstance(self.unit.node.body, list) else [self.unit.node.body]
        nodes = [node for part in body for node in ast.walk(part) if isinstance(node, ast.expr)]
        # Where a call begins says nothing about its turn: x.relu().tanh() begins twice at x.
        for node in sorted(nodes, key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0, -n.lineno, -n.col_offset)):
            if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
                continue
            parent = self.parent[id(node)]
            if isinstance(parent, ast.Compare):  # `if act is F.relu` asks, and does not compute
                continue
            if isinstance(node, ast.Call):
                self._tensor_method(node)
            if isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
                self._reference(node, parent)

    def _reference(self, node: ast.expr, parent: ast.AST) -> None:
        value, path = self.resolve(node)
        if value is UNKNOWN or value is None:
            return
        call = parent if isinstance(parent, ast.Call) and parent.func is node else None
        if path is not None and path in self.analysis.held:
            self._found(node, call, value, path)
        elif kind_of(value):
            # What a submodule holds is a site of that submodule.
            if path is None or path.partition(".")[0].partition("[")[0] not in self.analysis.owner._modules:
                self._found(node, call, value)
        elif isinstance(value, _Method):
            if value.module is self.analysis.owner:
                function = inspect.getattr_static(self.analysis.base, value.name)
                if kind_of(function):  # `self.gelu(x)`: what such a method is made of is no site
                    self._found(node, call, MethodType(function, value.module))
                else:
                    self.analysis.method(value.name)
            elif not self.is_loss or not is_loss(value.name):
                self.analysis.others.append((value.module, value.name))
        elif inspect.isfunction(value) and not self.is_loss:
            in_class = isinstance(node, ast.Attribute) and any(
                vars(c).get(node.attr) is value for c in self.analysis.base.__mro__
            )
            unit = self.analysis.helper(value, in_class, self.depth)
            if unit is not None:
                self.unit.helpers.append((self.number[id(node)], unit))

    def _tensor_method(self, node: ast.Call) -> None:
        function = node.func
        if not isinstance(function, ast.Attribute) or function.attr not in METHODS or node.keywords:
            return
        if len(node.args) != (function.attr == "prelu") or self.resolve(function.value)[0] is not UNKNOWN:
            return
        self._found(node, node, METHODS[function.attr], is_method=True)

    def _found(
        self, node: ast.expr, call: ast.Call | None, value: object, held: str | None = None, is_method: bool = False
    ) -> None:
        """Note that `value` is used at `node`, which is what `call` calls, or all of a tensor method's call."""
        parent, above = self.parent[id(node)], self.parent[id(call or node)]
        readable = call is not None and _is_readable(call)
        given = call if readable else None
        skipped = 0 if is_method else 1
        if call is None and isinstance(parent, ast.Call) and self.resolve(parent.func)[0] is functools.partial:
            given = parent if _is_readable(parent) and parent.args[0] is node else None
        arguments: tuple[Any, ...] = ()
        keywords: dict[str, Any] = {}
        if given is not None:
            keywords = {k.arg or "": self.resolve(k.value)[0] for k in given.keywords}
            if keywords.pop("input", None) is not None:
                skipped = 0
            arguments = tuple(self.resolve(argument)[0] for argument in given.args[skipped:])
        reason = None
        if self.is_loss:
            reason = f"called in {self.unit.function.__name__}, where losses are computed; move it to forward"
        found = Call(
            key=(self.unit.place, self.number[id(node)]),
            function=value,
            text=ast.unparse(call or node),
            is_gate=kind_of(value) == "gate",
            reason=reason,
            held=held,
            discarded=isinstance(above, ast.Expr) and _writes(value, arguments, keywords),
            is_called=readable or is_method,
            arguments=arguments,
            keywords=keywords,
            child=function_name(value).rstrip("_"),
        )
        self.unit.calls.append(found)
        self.analysis.calls.append(found)

    def resolve(self, node: ast.expr) -> tuple[Any, str | None]:
        """What an expression means whenever the code runs, or UNKNOWN; and its path from the module, if it has one."""
        if isinstance(node, ast.Constant):
            return node.value, None
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            container, path = self.resolve(node.value)
            key = self.resolve(node.slice)[0]
            if key is UNKNOWN or not isinstance(container, dict | list | tuple):
                return UNKNOWN, None
            try:
                return container[key], None if path is None else f"{path}[{key!r}]"
            except (LookupError, TypeError):
                return UNKNOWN, None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id == "super" and not node.args and "__class__" in self.cells:
                return _Super(self.cells["__class__"].cell_contents), None
            if node.func.id == "getattr" and len(node.args) == 2 and self._name("getattr")[0] is getattr:
                base, name = (self.resolve(argument)[0] for argument in node.args)
                if isinstance(base, ModuleType) and isinstance(name, str):
                    return getattr(base, name, UNKNOWN), None
        return UNKNOWN, None

    def _name(self, name: str) -> tuple[Any, str | None]:
        if name == self.unit.owner:
            return self.analysis.owner, ""
        if name in self.imports:
            return self.imports[name], None
        if name in self.local:
            return UNKNOWN, None
        if name in self.cells:
            try:
                return self.cells[name].cell_contents, None
            except ValueError:  # a name that its function has not bound yet
                return UNKNOWN, None
        known = self.unit.function.__globals__
        return known.get(name, getattr(builtins, name, UNKNOWN)), None

    def _attribute(self, node: ast.Attribute) -> tuple[Any, str | None]:
        base, path = self.resolve(node.value)
        name = node.attr
        if name.startswith("__") and not name.endswith("__"):
            name = f"_{self.unit.function.__qualname__.split('.')[-2:][0].lstrip('_')}{name}"
        if base is UNKNOWN:
            return UNKNOWN, None
        further = None if path is None else f"{path}.{name}" if path else name
        if isinstance(base, _Super):
            mro = self.analysis.base.__mro__
            after = mro[mro.index(base.of) + 1 :] if base.of in mro else ()
            return next((vars(c)[name] for c in after if name in vars(c)), UNKNOWN), None
        if isinstance(base, nn.Module):
            return self._of_module(base, name, further)
        if isinstance(base, ModuleType | type):
            try:
                found = getattr(base, name, UNKNOWN)
            except RuntimeError:  # torch.classes has this for a name that no extension registered
                found = UNKNOWN
        else:
            # Properties are not run: they may do anything.
            found = getattr(base, "__dict__", {}).get(name, UNKNOWN)
        return found, further

    def _of_module(self, module: nn.Module, name: str, path: str | None) -> tuple[Any, str | None]:
        if name in module._modules:
            return module._modules[name], path
        if name in vars(module):
            return vars(module)[name], path
        kind = self.analysis.base if module is self.analysis.owner else type(module)
        found = inspect.getattr_static(kind, name, UNKNOWN)
        if isinstance(found, staticmethod):
            function = found.__func__
            return (function if kind_of(function) else _Method(module, name)), None
        if inspect.isfunction(found):
            return _Method(module, name), None
        return (UNKNOWN if hasattr(type(found), "__get__") and not callable(found) else found), None

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                found = sys.modules.get(alias.name if alias.asname else alias.name.partition(".")[0], UNKNOWN)
            else:
                found = getattr(sys.modules.get(node.module or ""), alias.name, UNKNOWN) if not node.level else UNKNOWN
            self.imports[alias.asname or alias.name.partition(".")[0]] = found


# Where functions take `inplace` without its name, counted after the input.
_IN_PLACE_AT = {
    **dict.fromkeys(("relu", "relu6", "silu", "mish", "hardswish", "selu"), 0),
    **dict.fromkeys(("elu", "celu", "leaky_relu"), 1),
    "hardtanh": 2,
}


def _is_readable(call: ast.Call) -> bool:
    """Whether it is clear which argument is which, and there is one."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return not starred and all(k.arg for k in call.keywords) and bool(call.args or call.keywords)


def _writes(value: object, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether a call writes into its input."""
    at = None if isinstance(value, nn.Module) else _IN_PLACE_AT.get(function_name(value))
    by_position = at is not None and len(arguments) > at and arguments[at] is not False
    return by_position or keywords.get("inplace", False) is not False or is_in_place(value)


@dataclasses.dataclass(frozen=True)
class _Super:
    of: type


@dataclasses.dataclass(frozen=True, eq=False)
class _Method:
    module: nn.Module
    name: str


def _is_foreign(function: FunctionType) -> bool:
    module = function.__module__ or ""
    return module.partition(".")[0] in _FOREIGN or module.startswith(_FOREIGN_ROOMS)
