"""What counts as an activation, and what as a gate: modules, functions, and those of libraries, known by name.

Libraries bring their own GELU and Swish classes. Their names are enough, so no library is imported.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.activation import Activation
from actsearch.cell.mixed import MixedSite
from actsearch.ops.adaptive_slope import AdaptiveSlope


class Function(nn.Module):
    """A function of the first argument as a module: `function(x, *arguments, **keywords)`, out of place."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        name = function_name(function)
        if getattr(function, "__name__", "").endswith("_"):
            function = getattr(F, name, None) or getattr(torch, name)
        self.keywords = dict(keywords or {})
        if inspect.isfunction(function):
            _, *names = inspect.signature(function).parameters
            self.keywords |= dict(zip(names, arguments, strict=False))
            arguments = ()
        if "inplace" in self.keywords:
            self.keywords["inplace"] = False
        self.arguments = arguments
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments, **self.keywords)

    def extra_repr(self) -> str:
        others = [*map(repr, self.arguments), *(f"{key}={value!r}" for key, value in self.keywords.items())]
        return ", ".join([function_name(self.function), *others])


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
    nn.Softsign,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Tanh,
    Activation,
    AdaptiveSlope,
    MixedSite,
    Function,
)
GATE_TYPES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid)

_PLAIN = ("relu6", "gelu", "silu", "mish", "softplus", "hardswish", "softsign", "prelu")
_ALSO_IN_PLACE = ("relu", "elu", "celu", "selu", "leaky_relu", "rrelu", "hardtanh", "tanh")
_GATES = ("sigmoid", "hardsigmoid")


def _functions(names: tuple[str, ...]) -> dict[Callable[..., Any], str]:
    return {
        getattr(source, spelled): name
        for source in (F, torch, torch.Tensor)
        for name in names
        for spelled in (name, f"{name}_")
        if hasattr(source, spelled)
    }


FUNCTIONS = _functions(_PLAIN + _ALSO_IN_PLACE)
"""Every torch function that is an activation → its name without the underscore of in-place forms."""
GATE_FUNCTIONS = _functions(_GATES)
WORDS = frozenset(f"{name}{end}" for name in (*_PLAIN, *_ALSO_IN_PLACE) for end in ("", "_"))
METHODS = {
    spelled: getattr(torch.Tensor, spelled)
    for name in (*_PLAIN, *_ALSO_IN_PLACE, *_GATES)
    for spelled in (name, f"{name}_")
    if hasattr(torch.Tensor, spelled)
}
"""The methods of a tensor among them, by the name under which they are called: `x.relu_()`."""

# Names of classes and functions of other libraries, in lower case and without underscores and "activation".
_ACTIVATION_NAMES = frozenset(
    [
        *(name.replace("_", "") for name in _PLAIN + _ALSO_IN_PLACE),
        "newgelu",
        "gelunew",
        "fastgelu",
        "gelufast",
        "quickgelu",
        "accurategelu",
        "geluaccurate",
        "clippedgelu",
        "gelutanh",
        "gelupytorchtanh",
        "pytorchgelutanh",
        "gelupython",
        "swish",
        "tightcelu",
        "hswish",
        "hardmish",
        "squaredrelu",
        "relusquared",
        "relu2",
        "memoryefficientswish",
        "laplace",
        "xielu",
        "swishme",
        "mishme",
        "hardswishme",
        "hardmishme",
        "shiftedsoftplus",
    ]
)
_GATE_NAMES = frozenset(["sigmoid", "hardsigmoid", "hsigmoid", "hardsigmoidme"])

# deepmd-kit has one class for all of its activations, and for none: their name is an attribute.
_NAMED_BY_ATTRIBUTE = {"ActivationFn": "activation"}
_LINEAR_NAMES = ("linear", "none")

Kind = Literal["activation", "gate"]


def kind_of(value: object) -> Kind | None:
    """Whether a module or function is an activation, a gate, or neither."""
    if isinstance(value, nn.Module):
        return _kind_of_module(value)
    if isinstance(value, functools.partial):
        return kind_of(value.func)
    if isinstance(value, type) or not callable(value):
        return None
    try:
        if value in FUNCTIONS:
            return "activation"
        if value in GATE_FUNCTIONS:
            return "gate"
    except TypeError:  # not hashable, so no function
        return None
    if inspect.isroutine(value) or isinstance(value, torch.jit.ScriptFunction):
        return _kind_by_name(str(getattr(value, "__name__", None) or getattr(value, "name", "")))
    return None


def is_linear(value: object) -> bool:
    """Whether a module stands where an activation could, but by its own name passes its input on."""
    return (name_by_attribute(value) or "") in _LINEAR_NAMES


def function_name(value: object) -> str:
    """A function's name, as an activation's where it is one: `torch.relu_` → "relu"; a module's class's."""
    if isinstance(value, nn.Module):
        return name_by_attribute(value) or type(value).__name__.lower()
    if isinstance(value, functools.partial):
        return function_name(value.func)
    if isinstance(value, torch.jit.ScriptFunction):
        return str(value.name)
    known = FUNCTIONS.get(value) or GATE_FUNCTIONS.get(value)  # type: ignore[call-overload]
    return known or str(getattr(value, "__name__", type(value).__name__))


def is_in_place(value: object) -> bool:
    """Whether a module, function or partial writes into its input."""
    if isinstance(value, functools.partial):
        return value.keywords.get("inplace") is True or is_in_place(value.func)
    if isinstance(value, nn.Module):
        return getattr(value, "inplace", False) is True
    return str(getattr(value, "__name__", "")).endswith("_")


def _kind_of_module(module: nn.Module) -> Kind | None:
    if isinstance(module, ACTIVATION_TYPES):
        return "activation"
    if isinstance(module, GATE_TYPES):
        return "gate"
    if (named := name_by_attribute(module)) is not None:
        # Whatever a library's own class computes, it stands where an activation belongs.
        return "gate" if named in _GATE_NAMES else "activation"
    # A block of layers can bear any name; an activation has no layers, and at most a few learnable scalars.
    if module._modules or any(p is not None and p.ndim > 1 for p in module._parameters.values()):
        return None
    return _kind_by_name(type(module).__name__)


def name_by_attribute(value: object) -> str | None:
    """The name that an instance of a library's one class of activations carries, in lower case; else None."""
    attribute = _NAMED_BY_ATTRIBUTE.get(type(value).__name__) if isinstance(value, nn.Module) else None
    name = getattr(value, attribute, None) if attribute is not None else None
    return name.lower() if isinstance(name, str) else None


def _kind_by_name(name: str) -> Kind | None:
    plain = re.sub("_|activation", "", name.lower())
    if plain in _ACTIVATION_NAMES:
        return "activation"
    return "gate" if plain in _GATE_NAMES else None
