"""A module whose code calls submodules where it called activation functions.

The module gets a class of its own, derived from the one it has, in which the methods concerned are compiled anew. So it
stays an instance of its class; nothing is intercepted when it runs, and a call costs what a submodule's costs; and
torch.compile, torch.export, torch.fx and autocast see plain Python. Copies and pickles make the class anew.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, Literal

from torch import Tensor, nn

from actsearch.swap.calls import Analysis, Call, Key, Unit
from actsearch.swap.held import held_names
from actsearch.swap.source import compiled, rewrapped

Edits = Mapping[Key, tuple[Literal["call", "use"], str]]
"""What is done at each place in code: the call goes to that submodule, or the use of a site is made to fit it."""

_OWNER = "_swap_owner"
_RECIPE = "_swap_recipe"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What swaps have done to one module; kept in the module, so that copies know it.

    methods: those of its class that were read. edits: what was done in their code. sites: where it holds modules that
    swaps put there and that do not look like activations. registered: names under which the module has as its children
    what swaps put into its plain containers, by the place.
    """

    methods: tuple[str, ...] = ()
    edits: Edits = dataclasses.field(default_factory=dict)
    sites: frozenset[str] = frozenset()
    registered: Mapping[str, str] = dataclasses.field(default_factory=dict)


def recipe_of(module: nn.Module) -> Recipe:
    """What swaps have done to `module` so far."""
    return vars(module).get(_RECIPE, Recipe())


def base_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module, as it was before any swap."""
    return getattr(type(module), "_swap_base", type(module))


def apply(module: nn.Module, recipe: Recipe, analysis: Analysis) -> None:
    """Give `module` the class that a recipe makes, its own if there are no edits."""
    base = base_of(module)
    vars(module).pop(_RECIPE, None)
    if recipe != Recipe():
        vars(module)[_RECIPE] = recipe
    if recipe.edits:
        module.__class__ = _derived(base, analysis, recipe.edits)
    elif type(module) is not base:
        module.__class__ = base


def _derived(base: type[nn.Module], analysis: Analysis, edits: Edits) -> type[nn.Module]:
    changed = {name: unit for name, unit in analysis.methods.items() if _is_changed(unit, edits, set())}
    key = (base, *((name, *_signature(unit, edits, set())) for name, unit in changed.items()))
    if key not in _classes:
        namespace = {name: rewrapped(unit.outer, _compile(unit, edits, {})) for name, unit in changed.items()}
        _classes[key] = _new_class(base, namespace)
        while len(_classes) > 512:
            del _classes[next(iter(_classes))]
    return _classes[key]


# Blocks that are built alike share their class, as they did before.
_classes: dict[tuple[Any, ...], type[nn.Module]] = {}


def _new_class(base: type[nn.Module], namespace: dict[str, Any]) -> type[nn.Module]:
    metaclass: Any = type(base)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return (_blank, (base,), self.__getstate__())

    return metaclass(
        base.__name__,
        (base,),
        {
            **namespace,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": __reduce_ex__,
            "_swap_base": base,
        },
    )


def _blank(base: type[nn.Module]) -> nn.Module:
    """A module to be filled by a pickle or by deepcopy; filled, it makes its class."""

    def __setstate__(self: nn.Module, state: dict[str, Any]) -> None:
        self.__class__ = base
        self.__setstate__(state)
        recipe = recipe_of(self)
        analysis = Analysis(self, base, held_names(self))
        for name in recipe.methods:
            analysis.method(name)
        apply(self, recipe, analysis)

    metaclass: Any = type(base)
    kind = metaclass(base.__name__, (base,), {"__setstate__": __setstate__, "__module__": base.__module__})
    return kind.__new__(kind)


def _walk(unit: Unit, seen: set[int]) -> Iterator[Unit]:
    if id(unit) not in seen:
        seen.add(id(unit))
        yield unit
        for _, helper in unit.helpers:
            yield from _walk(helper, seen)


def _is_changed(unit: Unit, edits: Edits, seen: set[int]) -> bool:
    return any(call.key in edits for part in _walk(unit, seen) for call in part.calls)


def _signature(unit: Unit, edits: Edits, seen: set[int]) -> Iterator[Any]:
    for part in _walk(unit, seen):
        yield part.outer
        yield tuple((call.key, edits[call.key]) for call in part.calls if call.key in edits)


def _compile(unit: Unit, edits: Edits, done: dict[int, FunctionType]) -> FunctionType:
    """The function of `unit` with the edits made in it and in the functions that it calls."""
    if id(unit) in done:
        return done[id(unit)]
    node = copy.deepcopy(unit.node)
    nodes = list(ast.walk(node))
    parents = {id(child): parent for parent in nodes for child in ast.iter_child_nodes(parent)}
    owner = unit.owner or _OWNER
    extra: dict[str, Any] = {}
    replaced: dict[int, Callable[[Any], ast.expr]] = {}
    for call in unit.calls:
        if call.key not in edits:
            continue
        kind, child = edits[call.key]
        target = nodes[call.key[1]]
        parent = parents[id(target)]
        if isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute):  # x.relu()
            replaced[id(target)] = functools.partial(_call, _child(owner, child), call, method=True)
        elif isinstance(parent, ast.Call) and parent.func is target and call.is_called:
            replaced[id(parent)] = functools.partial(_call, _child(owner, child) if kind == "call" else None, call)
        elif kind == "call":
            # With other arguments than can be read here, or passed on without a call.
            extra["_swap_first"], extra["_swap_partial"] = first, functools.partial
            replaced[id(target)] = functools.partial(_passed, _child(owner, child))
        if call.discarded:
            extra["_swap_write"] = write
    for number, helper in unit.helpers:
        if not _is_changed(helper, edits, set()):
            continue
        target = nodes[number]
        name = f"_swap_function{number}"
        extra[name] = rewrapped(helper.outer, _compile(helper, edits, done))
        parent = parents[id(target)]
        if helper.owner is None and isinstance(parent, ast.Call) and parent.func is target:
            replaced[id(parent)] = functools.partial(_called_with_owner, name, owner)
        elif helper.owner is None or isinstance(getattr(target, "value", None), ast.Call):  # super().forward
            extra["_swap_partial"] = functools.partial
            replaced[id(target)] = functools.partial(_bound, name, owner)
        else:  # Parent.forward, which is given the module
            replaced[id(target)] = functools.partial(_named, name)
    changed = _Replace(replaced).visit(node)
    if unit.owner is None:
        arguments = changed.args.posonlyargs or changed.args.args
        arguments.insert(0, ast.arg(_OWNER))
    done[id(unit)] = compiled(changed, unit.function, extra)
    return done[id(unit)]


class _Replace(ast.NodeTransformer):
    def __init__(self, replaced: Mapping[int, Callable[[Any], ast.expr]]) -> None:
        self.replaced = replaced

    def visit(self, node: ast.AST) -> Any:
        number = id(node)
        node = self.generic_visit(node)
        return self.replaced[number](node) if number in self.replaced else node


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _child(owner: str, name: str) -> ast.expr:
    return ast.Attribute(_load(owner), name, ast.Load())


def _call(site: ast.expr | None, call: Call, node: ast.Call, method: bool = False) -> ast.expr:
    """A call of the site with the input alone: activations take nothing else."""
    site = site or node.func
    if method:
        assert isinstance(node.func, ast.Attribute)
        given = node.func.value
    else:
        given = node.args[0] if node.args else next(k.value for k in node.keywords if k.arg == "input")
    if call.discarded:
        return ast.Call(_load("_swap_write"), [site, given], [])
    return ast.Call(site, [given], [])


def _passed(site: ast.expr, node: ast.expr) -> ast.expr:
    return ast.Call(_load("_swap_partial"), [_load("_swap_first"), site], [])


def _called_with_owner(name: str, owner: str, node: ast.Call) -> ast.expr:
    return ast.Call(_load(name), [_load(owner), *node.args], node.keywords)


def _bound(name: str, owner: str, node: ast.expr) -> ast.expr:
    return ast.Call(_load("_swap_partial"), [_load(name), _load(owner)], [])


def _named(name: str, node: ast.expr) -> ast.expr:
    return _load(name)


def first(site: nn.Module, input: Tensor, *others: Any, **named: Any) -> Tensor:
    """The site's value at the first of the arguments."""
    return site(input)


def write(site: nn.Module, x: Tensor) -> Tensor:
    """The site's value, written into its input, as a statement `F.relu_(x)` does; gradients stay right."""
    return x.copy_(site(x.clone()))
