"""How smooth an activation is, and which models need how much: k for functions that are C^k."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from actsearch.activation import Activation
from actsearch.cell.mixed import MixedSite
from actsearch.errors import SwapError
from actsearch.ops.adaptive_slope import AdaptiveSlope
from actsearch.ops.basis_activation import BasisActivation
from actsearch.ops.spec import registry
from actsearch.swap.catalog import Function, function_name
from actsearch.swap.report import Site

SMOOTH_SPACES = ("smooth_c2", "full_c2")
FORCES_NEED = 2

# By function name; a class of torch.nn has the same in lower case, without underscores. ELU: see `_of_name`.
_KNOWN: dict[str, float] = {
    # A jump.
    **dict.fromkeys(("hardshrink", "threshold"), -1),
    # A kink: one-sided slopes differ, of hardswish by -1/2 against 0 at -3, of selu by 1.76 against 1.05 at 0.
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "prelu", "rrelu", "selu", "hardtanh", "softshrink"), 0),
    **dict.fromkeys(("hardswish", "hardsigmoid"), 0),
    # Slope 1 on both sides of 0, second derivatives 1/α and 0 of celu, 2 and -2 of softsign.
    **dict.fromkeys(("celu", "softsign"), 1),
    # Torch's softplus becomes x at 20, where it is 2e-9 more: less than float32 can tell.
    **dict.fromkeys(("gelu", "silu", "mish", "tanh", "tanhshrink", "softplus", "sigmoid", "logsigmoid"), math.inf),
    **dict.fromkeys(("identity", "sin", "cos", "exp", "erf"), math.inf),
}
_BY_NAME = {name.replace("_", ""): k for name, k in _KNOWN.items()}


def smoothness_of(activation: object) -> float | None:
    """k if `activation`, a module or a function of torch, is known to be C^k; -1 for a jump, None if nothing is known.

    A module can tell its own by an attribute `smoothness`, a number. Of a mixed cell's site it is the least of all
    surviving candidates.
    """
    if isinstance(activation, MixedSite):
        return _roughest(activation)[0]
    if isinstance(activation, AdaptiveSlope):
        return smoothness_of(activation.activation)
    if isinstance(activation, BasisActivation):
        added = None if activation.initial is None else smoothness_of(activation.initial)
        return min(activation.smoothness, math.inf if added is None else added)
    if isinstance(activation, Function):
        return _of_function(activation.function, activation.keywords, activation.arguments)
    if not isinstance(activation, nn.Module):
        return _of_function(activation)
    told = getattr(activation, "smoothness", None)
    if isinstance(told, int | float) and not isinstance(told, bool):
        return told
    kind = type(activation)
    return _of_name(kind.__name__.lower(), getattr(activation, "alpha", None)) if _is_of_torch(kind) else None


def least_smoothness(model: nn.Module) -> int:
    """The k that the modules of `model` ask of activations by their attribute `least_smoothness`; -1 for none."""
    asked = [getattr(module, "least_smoothness", -1) for module in model.modules()]
    return max((k for k in asked if isinstance(k, int)), default=-1)


def refusal(model: nn.Module, new: Iterable[tuple[Site, nn.Module]]) -> str | None:
    """Why one of the modules that are `new` at their sites is not smooth enough for `model`; None if all are.

    What stands at its site already is never refused, nor are slopes before it or a basis added to it: the model was
    designed with it. Nor is a module of which nothing is known.
    """
    needed = least_smoothness(model)
    if needed < 0:
        return None
    for site, module in new:
        k = smoothness_of(module)
        if k is None or k >= needed or _is_there(module, site):
            continue
        asking = next(type(m).__name__ for m in model.modules() if getattr(m, "least_smoothness", -1) == needed)
        return f"{_described(module)} is {smoothness_in_words(k)}, but {asking} needs C^{needed}: {_reason(needed)}"
    return None


def _reason(needed: int) -> str:
    if needed < FORCES_NEED:
        return "its outputs are differentiated"
    return "forces are derivatives of the energy, and training on forces differentiates once more"


def smoothness_in_words(k: float | None) -> str:
    """C^k for k: "not continuous" below 0, "not known" for None."""
    if k is None:
        return "not known"
    if k < 0:
        return "not continuous"
    return "C^∞" if math.isinf(k) else f"C^{int(k)}"


def _of_function(
    function: Any, keywords: Mapping[str, Any] = MappingProxyType({}), arguments: tuple[Any, ...] = ()
) -> float | None:
    if isinstance(function, functools.partial):
        return _of_function(function.func, {**function.keywords, **keywords}, arguments)
    alpha = keywords.get("alpha", arguments[0] if arguments else None)
    return _of_name(function_name(function), alpha) if _is_of_torch(function) else None


def _of_name(name: str, alpha: Any) -> float | None:
    plain = name.replace("_", "")
    if plain == "elu":  # its slopes at 0 are α and 1
        return 1 if alpha in (None, 1) else 0
    return _BY_NAME.get(plain)


def _is_of_torch(value: object) -> bool:
    """Whether it is torch's own: another library may give a name of torch's to another function."""
    module = getattr(value, "__module__", None) or getattr(type(value), "__module__", "")
    return str(module).partition(".")[0] in ("torch", "builtins")


def _roughest(site: MixedSite) -> tuple[float, str]:
    """The least smoothness of a mixed cell, and the candidate, or the clip, that has it."""
    space = site.cell.space
    by = {op: registry[op].smoothness for ops in site.cell.survivors.values() for op in ops}
    if space.clip.kind != "none" and not all(registry[op].bounded for op in by):
        by[f"{space.clip.kind} clip"] = space.clip.smoothness
    roughest = min(by, key=lambda name: by[name])
    return by[roughest], roughest


def _described(module: nn.Module) -> str:
    if isinstance(module, MixedSite):
        spaces = " or ".join(SMOOTH_SPACES)
        return f"the cell of space {module.cell.space.name} (use {spaces}), by its {_roughest(module)[1]},"
    if isinstance(module, Activation):
        return module.formula
    return " ".join(repr(module).split())


def _is_there(module: object, site: Site) -> bool:
    """Whether `module` computes what stands at the site, apart from slopes and a basis around it."""
    try:
        there = site.default()
    except SwapError:  # it cannot be made again, so nothing new is it
        return False
    return repr(_inner(module)) == repr(_inner(there))


def _inner(module: object) -> object:
    while True:
        if isinstance(module, AdaptiveSlope):
            module = module.activation
        elif isinstance(module, BasisActivation) and module.initial is not None:
            module = module.initial
        else:
            return module
