"""Activations that a module holds: as a child, as a function in an attribute, or inside a plain container.

The path of such a place is the attribute's name and the steps from there: `self.config.acts[0]` is
("config", (".", "acts"), ("[]", 0)).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

from torch import nn

from actsearch.activation import Activation
from actsearch.cell.mixed import MixedSite
from actsearch.swap.catalog import kind_of

Step = tuple[Literal[".", "[]"], Any]

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_DEPTH = 3
_LONGEST = 1000  # a longer list holds data
# nn.Module's own attributes: a hook is no activation.
_OWN = frozenset(vars(nn.Module()))


def held(
    module: nn.Module, recognise: Callable[[nn.Module], bool] = lambda module: False
) -> Iterator[tuple[str, tuple[Step, ...], Any]]:
    """Attribute, steps and value of every activation and gate that `module` itself holds.

    `recognise` tells which further modules are activations.
    """
    if isinstance(module, Activation | MixedSite):
        return
    recipe = vars(module).get("_swap_recipe")
    marked, registered = (recipe.sites, recipe.registered.values()) if recipe is not None else ((), ())
    # _modules rather than named_children(), which hides the second name of a shared instance.
    for name, child in module._modules.items():
        if child is not None and name not in registered and (kind_of(child) or name in marked or recognise(child)):
            yield name, (), child
    for name, value in vars(module).items():
        if name not in _OWN and not name.startswith("_swap_"):
            for steps, inside in _inside(value, ()):
                # Whatever function torch's transformer layers were given as theirs.
                known = isinstance(module, _LAYERS) and name == "activation"
                known = known or kind_of(inside) is not None or (isinstance(inside, nn.Module) and recognise(inside))
                if known or path_name(name, steps) in marked:
                    yield name, steps, inside


def held_names(module: nn.Module) -> set[str]:
    """The names of those places: "act", "acts[0]", "config.act"."""
    return {path_name(name, steps) for name, steps, _ in held(module)}


def path_name(attribute: str, steps: tuple[Step, ...]) -> str:
    """A path as it is written in Python, without the `self`."""
    return attribute + "".join(f".{key}" if kind == "." else f"[{key!r}]" for kind, key in steps)


def put(module: nn.Module, attribute: str, steps: tuple[Step, ...], value: Any) -> Any:
    """Let `value` stand at a place. Returns what the attribute was before; put there, it undoes this.

    A container is not changed but copied, as other modules and other models may hold it too.
    """
    attributes = module._modules if attribute in module._modules else vars(module)
    old = attributes[attribute]
    attributes[attribute] = _with(old, steps, value)
    return old


def _with(container: Any, steps: tuple[Step, ...], value: Any) -> Any:
    if not steps:
        return value
    (kind, key), *others = steps
    inside = vars(container)[key] if kind == "." else container[key]
    changed = _with(inside, tuple(others), value)
    if type(container) is tuple:
        return (*container[:key], changed, *container[key + 1 :])
    copied = copy.copy(container)
    (vars(copied) if kind == "." else copied)[key] = changed  # of a frozen dataclass too
    return copied


def _inside(value: Any, steps: tuple[Step, ...]) -> Iterator[tuple[tuple[Step, ...], Any]]:
    if isinstance(value, nn.Module) or callable(value):
        yield steps, value
    elif len(steps) < _DEPTH:
        for step, item in _items(value):
            yield from _inside(item, (*steps, step))


def _items(container: Any) -> list[tuple[Step, Any]]:
    if type(container) in (list, tuple) and len(container) <= _LONGEST:
        return [(("[]", i), item) for i, item in enumerate(container)]
    if type(container) in (dict, OrderedDict) and len(container) <= _LONGEST:
        return [(("[]", key), item) for key, item in container.items()]
    if isinstance(container, SimpleNamespace) or (
        dataclasses.is_dataclass(container) and not isinstance(container, type) and hasattr(container, "__dict__")
    ):
        return [((".", key), item) for key, item in vars(container).items()]
    return []
