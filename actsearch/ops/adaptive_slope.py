"""AdaptiveSlope: any activation with a trained slope before it, σ(n·a·z)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from actsearch.errors import SettingsError, unknown_name
from actsearch.ops.spec import Scope

Function = nn.Module | type[nn.Module] | Callable[[Tensor], Tensor]


class AdaptiveSlope(nn.Module):
    """activation(n·a·z) with a trained slope a that starts at 1/n.

    At the start it computes what `activation` computes. Under Adam a slope moves by up to the learning rate a step
    whatever its gradient is, so that a greater n is a faster slope.

    `forward` takes a tensor of any shape. The product has the input's dtype; `a` is float32 unless the module is cast.

    Args:
        activation: σ, a module, a class of modules or a function of a tensor.
        scope: "network" (GAAF) or "site" (L-LAAF): `a` is a number, ();  "channel" (N-LAAF): one a channel, (C,). Who
            shares a number is up to its owner: `actsearch.ops.slopes.adapt` gives one to all sites of a network.
        n: the fixed scale factor, at least 1.
        channels: C, with scope "channel"; None takes it from the first input. As with torch's lazy modules, run one
            batch before an optimiser is made.
        channel_axis: the axis of the input that holds the channels, with scope "channel": 1 for (B, C, …), -1 for
            tokens (B, T, C).
        lr_factor: `a` is trained at this multiple of the learning rate (see `actsearch.tasks.parameter_groups`).

    Raises SettingsError for settings out of range, a missing axis, or an input that does not have the channels.
    References: GAAF, Jagtap & Karniadakis 2020, arXiv 1906.01170; L-LAAF and N-LAAF, Jagtap et al. 2020,
    arXiv 1909.12228.
    """

    undecayed = ("a",)
    a: Tensor

    def __new__(cls, *args: Any, scope: Scope = "site", channels: int | None = None, **kwargs: Any) -> AdaptiveSlope:
        # A copy is made without arguments, and of its own class.
        scope = args[1] if len(args) > 1 else scope
        channels = args[3] if len(args) > 3 else channels
        lazy = cls is AdaptiveSlope and scope == "channel" and channels is None
        return super().__new__(LazyAdaptiveSlope if lazy else cls)

    def __init__(
        self,
        activation: Function,
        scope: Scope = "site",
        n: float = 1.0,
        channels: int | None = None,
        channel_axis: int | None = None,
        lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if scope not in get_args(Scope):
            raise SettingsError(unknown_name("scope of slopes", str(scope), get_args(Scope)))
        if scope == "channel" and channel_axis is None:
            raise SettingsError("slopes by channel need channel_axis: 1 for (B, C, …), -1 for tokens (B, T, C)")
        if channels is not None and (scope != "channel" or channels < 1):
            raise SettingsError(f"channels is for scope 'channel' and at least 1, not {channels} with {scope!r}")
        if not 1 <= n < math.inf:
            raise SettingsError(f"n must be a number of at least 1, not {n}")
        if not 0 < lr_factor < math.inf:
            raise SettingsError(f"lr_factor must be a number above 0, not {lr_factor}; requires_grad_(False) freezes")
        if not callable(activation):
            raise SettingsError(f"activation must be a module or a function, not {activation!r}")
        self.activation = activation() if isinstance(activation, type) else activation
        self.scope = scope
        self.n = n
        self.channel_axis = channel_axis if scope == "channel" else None
        self.lr_factors = {"a": lr_factor}
        self.a = nn.Parameter(torch.full(() if channels is None else (channels,), 1 / n, dtype=torch.float32))

    def forward(self, z: Tensor) -> Tensor:
        slope = (self.n * self.a).to(z.dtype)
        if self.channel_axis is not None:
            slope = slope.view(self._shape(z))
        y = self.activation(z * slope)
        assert isinstance(y, Tensor)
        return y

    def _shape(self, z: Tensor) -> list[int]:
        """That in which (C,) slopes broadcast along the channels of `z`."""
        axis = _checked(z, self.channel_axis)
        if z.shape[axis] != len(self.a):
            raise SettingsError(
                f"there are {len(self.a)} slopes for the {z.shape[axis]} channels on axis {axis} of {tuple(z.shape)}; "
                "give each layer its own AdaptiveSlope"
            )
        shape = [1] * z.ndim
        shape[axis] = -1
        return shape

    def adaptive_slopes(self) -> tuple[Tensor, ...]:
        """The slopes a, for `actsearch.ops.slopes.slope_recovery`."""
        return (self.a,)

    def extra_repr(self) -> str:
        axis = "" if self.channel_axis is None else f", channel_axis={self.channel_axis}"
        # A function is no child, so it would not be shown.
        name = "" if isinstance(self.activation, nn.Module) else f"{getattr(self.activation, '__name__', '')}, "
        return f"{name}scope={self.scope!r}, n={self.n:g}{axis}"


class LazyAdaptiveSlope(LazyModuleMixin, AdaptiveSlope):
    """An AdaptiveSlope by channel whose number of channels is that of its first input; after that an AdaptiveSlope."""

    cls_to_become = AdaptiveSlope

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
            super().__init__(*args, **kwargs)
        self.a = UninitializedParameter()

    def initialize_parameters(self, z: Tensor) -> None:
        """Give every channel of `z` its slope; called by the first forward pass."""
        if isinstance(self.a, UninitializedParameter):
            with torch.no_grad():
                self.a.materialize((z.shape[_checked(z, self.channel_axis)],), dtype=torch.float32)
                self.a.fill_(1 / self.n)


def _checked(z: Tensor, axis: int | None) -> int:
    if axis is None or not -z.ndim <= axis < z.ndim:
        raise SettingsError(f"an input of shape {tuple(z.shape)} has no axis {axis}; check channel_axis")
    return axis
