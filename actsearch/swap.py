"""swap: find the activation sites of a model and replace them, telling what was and what was not replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from actsearch.activation import Activation
from actsearch.cell.mixed import MixedSite
from actsearch.errors import SwapError
from actsearch.genotype import Genotype

ACTIVATION_TYPES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Softplus,
    nn.Hardswish,
    nn.Tanh,
    Activation,
    MixedSite,
)
GATE_TYPES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid)
FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    getattr(source, name)
    for source in (F, torch)
    for name in ("relu", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "softplus", "hardswish", "tanh")
    if hasattr(source, name)
)


@dataclass(frozen=True)
class Site:
    """A place in a model at which an activation stands: its dotted name, and a description of what stood there."""

    name: str
    original: str


@dataclass
class SwapReport:
    """What a swap did. `replaced` and `skipped` (with the reason) together are everything that was found."""

    replaced: list[Site] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    originals: dict[str, Any] = field(default_factory=dict, repr=False)  # by dotted name, for unswap

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)} activation site(s)"]
        lines += [f"  {site.name}: {site.original}" for site in self.replaced]
        if self.skipped:
            lines.append(f"left {len(self.skipped)} alone")
            lines += [f"  {site.name}: {site.original} ({reason})" for site, reason in self.skipped]
        return "\n".join(lines)


Factory = Callable[[Site], nn.Module]


def swap(
    model: nn.Module,
    activation: nn.Module | type[nn.Module] | Genotype | Factory,
    *,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    gates: bool = False,
) -> SwapReport:
    """Replace the activations of `model`, in place.

    Found are modules of the known activation types, also where one instance stands at several places (it stays shared),
    and functions such as `F.silu` held in a module's attribute. Functional calls inside a `forward` are not.

    Args:
        model: any module.
        activation: a Genotype (every site gets an Activation of its own), a module (every site gets this one), a class
            of modules (every site gets an instance), or a factory from the Site to its new module.
        include, exclude: shell patterns of the sites' dotted names.
        gates: also replace sigmoids, which usually multiply something and are left alone.

    Returns a SwapReport, which `unswap` takes.

    Raises SwapError if nothing was replaced, or if the factory gives something else than a module; the model is then
    untouched.
    """
    include, exclude = ((p,) if isinstance(p, str) else tuple(p) for p in (include, exclude))
    report = SwapReport()
    replacements: dict[int | tuple[int, str], nn.Module] = {}
    puts: list[tuple[nn.Module, str, nn.Module]] = []
    for owner_name, owner in list(model.named_modules()):
        for attribute, value in _held(owner):
            name = f"{owner_name}.{attribute}" if owner_name else attribute
            site = Site(name, _describe(value))
            reason = None
            if not any(fnmatch(name, pattern) for pattern in include):
                reason = "not included"
            elif any(fnmatch(name, pattern) for pattern in exclude):
                reason = "excluded"
            elif isinstance(value, GATE_TYPES) and not gates:
                reason = "a gate"
            if reason:
                report.skipped.append((site, reason))
                continue
            key = id(value) if isinstance(value, nn.Module) else (id(owner), attribute)
            if key not in replacements:
                replacements[key] = _make(activation, site)
            report.originals[name] = value
            report.replaced.append(site)
            puts.append((owner, attribute, replacements[key]))
    if not report.replaced:
        hint = f"; {len(report.skipped)} site(s) were left alone" if report.skipped else ""
        raise SwapError(
            f"no activation was replaced in {type(model).__name__}{hint}: give the model activation modules such as "
            "nn.ReLU() (functional calls in forward are not seen), or check include and exclude"
        )
    switches = list(_fused_switches(model, {owner for owner, *_ in puts}))
    for put in puts:
        _put(*put)
    for name, owner, attribute, off in switches:
        report.originals[name] = getattr(owner, attribute)
        setattr(owner, attribute, off)
    return report


def unswap(model: nn.Module, report: SwapReport) -> None:
    """Put back what `swap` replaced in `model`."""
    for name, original in report.originals.items():
        owner, _, attribute = name.rpartition(".")
        _put(model.get_submodule(owner), attribute, original)


def _held(owner: nn.Module) -> list[tuple[str, Any]]:
    """Activations held by a module itself: children, and functions in its attributes."""
    if isinstance(owner, Activation | MixedSite):
        return []
    # _modules rather than named_children(), which hides the second name of a shared instance.
    children = [(k, m) for k, m in owner._modules.items() if isinstance(m, ACTIVATION_TYPES + GATE_TYPES)]
    functions = [(k, v) for k, v in vars(owner).items() if _is_function(v)]
    return children + functions


def _fused_switches(model: nn.Module, owners: set[nn.Module]) -> Iterator[tuple[str, nn.Module, str, object]]:
    """What makes torch's transformers evaluate by a fused kernel that computes ReLU or GELU, whatever stands there:
    dotted name, module, attribute, and the value that turns it off."""
    for name, module in model.named_modules():
        dot = f"{name}." if name else ""
        if isinstance(module, nn.TransformerEncoderLayer) and module in owners:
            yield f"{dot}activation_relu_or_gelu", module, "activation_relu_or_gelu", 0
        if isinstance(module, nn.TransformerEncoder) and any(layer in owners for layer in module.layers):
            yield f"{dot}use_nested_tensor", module, "use_nested_tensor", False


def _is_function(value: Any) -> bool:
    try:
        return value in FUNCTIONS
    except TypeError:  # not hashable, so no function
        return False


def _describe(value: Any) -> str:
    return repr(value) if isinstance(value, nn.Module) else f"function {getattr(value, '__name__', value)}"


def _make(activation: nn.Module | type[nn.Module] | Genotype | Factory, site: Site) -> nn.Module:
    if isinstance(activation, Genotype):
        return Activation(activation)
    if isinstance(activation, nn.Module):
        return activation
    # A class is no factory: nn.ReLU(site) would be an in-place ReLU.
    made = activation() if isinstance(activation, type) else activation(site)
    if not isinstance(made, nn.Module):
        raise SwapError(f"the factory made {type(made).__name__} for site {site.name!r}; it must make an nn.Module")
    return made


def _put(owner: nn.Module, attribute: str, value: Any) -> None:
    if not isinstance(value, nn.Module):
        owner._modules.pop(attribute, None)  # where there was a module, nn.Module accepts no function
    setattr(owner, attribute, value)


class _Callable(ModuleType):
    """Makes `actsearch.swap(...)` work although the module has the function's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> SwapReport:
        return swap(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
