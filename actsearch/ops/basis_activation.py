"""BasisActivation: an activation whose shape is trained, as a sum of basis functions with trained coefficients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from actsearch.errors import SettingsError, UnknownNameError
from actsearch.ops import bases
from actsearch.ops.fitting import (
    FIT_RANGE,
    FitError,
    Function,
    fit_error,
    in_float64,
    least_squares,
    normal_weights,
    points,
)
from actsearch.ops.guard import HALF, limit, power_bound
from actsearch.ops.spec import Scope, registry

Normalise = Literal["tanh", "softsign", "affine"]

# What its second derivative squares stays finite.
_SQUARE = power_bound(2)


class BasisActivation(nn.Module):
    """y = Σ_k c_k φ_k(normalise(x)) with trained coefficients c: TAAFS, E. Li, arXiv 2412.14655.

    `forward` takes a tensor of any shape and returns one of the same shape and dtype; half precision is computed in
    float32. The coefficients are the parameter `coefficients`, of shape (K,) or (K, channels). They are spared from
    weight decay (`undecayed`).

    The paper leaves the start open. Here the coefficients start at the least-squares fit to `initial`, in float64 and
    weighted by N(0, 1) within `FIT_RANGE`. How far it is off is `fit`: the maximum over that range, the root mean
    square under the same weight. With "tanh" or "softsign" the function is bounded and levels off for large |x|, so a
    function that grows, such as silu, is met only where most inputs are; `residual` starts at it exactly.

    Args:
        basis: "bspline", "fourier", "chebyshev", "legendre", "hermite" or "rbf"; see `actsearch.ops.bases.basis`.
        n_coefficients: K.
        initial: what it starts at: the id of a unary operation without parameters, a module or a function that works
            element by element; None: at 0.
        normalise: how an input comes into [-1, 1]: "tanh"; "softsign", x / (1 + |x|); or "affine", where a running
            range of the inputs becomes [-0.8, 0.8] and what is outside it saturates smoothly (C²) to ±1. The range
            starts at ±3; while training, it moves by 1% a batch to the least and greatest input.
        residual: y = initial(x) + Σ_k c_k φ_k, with c = 0 at the start.
        scope: whose coefficients they are: a "site"'s (as published), the whole "network"'s (use the one module at
            every site), or those of each "channel".
        channels, channel_axis: with scope "channel", their number and their axis in the input: 1 for images and
            features, -1 for tokens. Without `channels` the first input decides: run one before an optimiser is made.
        lr_factor: the coefficients are trained at this multiple of the learning rate (see
            `actsearch.tasks.parameter_groups`).

    Attributes:
        fit: FitError of the start; None if it is exact (0 or residual).

    Raises UnknownNameError or SettingsError.
    """

    coefficients: Tensor
    low: Tensor
    high: Tensor
    undecayed = ("coefficients",)

    def __new__(cls, *args: Any, scope: str = "site", channels: int | None = None, **options: Any) -> BasisActivation:
        if cls is BasisActivation and scope == "channel" and channels is None:
            return super().__new__(LazyBasisActivation)
        return super().__new__(cls)

    def __init__(
        self,
        basis: str = "bspline",
        n_coefficients: int = bases.N_COEFFICIENTS,
        initial: str | Function | None = "tanh",
        normalise: Normalise = "tanh",
        *,
        residual: bool = False,
        scope: Scope = "site",
        channels: int | None = None,
        channel_axis: int | None = None,
        lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        _check(normalise, scope, channels, channel_axis)
        if residual and initial is None:
            raise SettingsError("residual needs an initial activation")
        if not 0 < lr_factor < math.inf:
            raise SettingsError(f"lr_factor must be a number above 0, not {lr_factor}; requires_grad_(False) freezes")
        self._basis = bases.of_name(basis, n_coefficients)
        self.basis, self.n_coefficients, self.normalise = basis, n_coefficients, normalise
        self.scope, self.channel_axis = scope, channel_axis
        self.lr_factors = {"coefficients": lr_factor}
        self._initial_id = initial if isinstance(initial, str) else ""
        start = _function(initial) if isinstance(initial, str) else initial
        self.initial: Function | None = start if residual else None
        if normalise == "affine":
            self.register_buffer("low", torch.tensor(-START))
            self.register_buffer("high", torch.tensor(START))
        self._start = (0.0,) * n_coefficients
        self.fit: FitError | None = None
        if start is not None and not residual:
            self._start, self.fit = self._fitted(start)
        self.coefficients = self._parameter(channels)

    def _fitted(self, initial: Function) -> tuple[tuple[float, ...], FitError]:
        x = points(*FIT_RANGE)
        reference = in_float64(initial)
        weights = normal_weights(x)
        functions = self._basis.functions(self._normalised(x), self.n_coefficients)
        found = least_squares(functions, reference(x), weights)
        stored = torch.tensor(found, dtype=torch.float32)
        return found, fit_error(lambda at: self._series(at, stored), reference, x, weights)

    def _parameter(self, channels: int | None) -> nn.Parameter:
        if self.scope == "channel" and channels is None:
            return UninitializedParameter()  # type: ignore[return-value]  # torch's stub leaves its base out
        start = torch.tensor(self._start, dtype=torch.float32)
        return nn.Parameter(start if channels is None else start[:, None].repeat(1, channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in HALF:
            return self.forward(x.float()).to(x.dtype)
        if self.training and self.normalise == "affine":
            self._follow(x)
        y = self._series(x, self._coefficients_for(x))
        return y if self.initial is None else self.initial(x) + y

    def _coefficients_for(self, x: Tensor) -> Tensor:
        """Of shape (K, …), broadcasting with `x`."""
        if self.channel_axis is None:
            return self.coefficients
        n, axis = self.coefficients.shape[1], self.channel_axis
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != n:
            raise SettingsError(f"axis {axis} of an input of shape {tuple(x.shape)} does not hold {n} channels")
        shape = [1] * x.ndim
        shape[axis] = n
        return self.coefficients.view(-1, *shape)

    def _series(self, x: Tensor, coefficients: Tensor) -> Tensor:
        if self.normalise == "tanh":
            return self._basis.series(x, coefficients)
        functions = self._basis.functions(self._normalised(x), self.n_coefficients)
        # No matrix product: autocast would run that in half precision.
        return (functions * coefficients.to(x.dtype).movedim(0, -1)).sum(-1)

    def _normalised(self, x: Tensor) -> Tensor:
        if self.normalise == "tanh":
            return x.tanh()
        if self.normalise == "softsign":
            return F.softsign(limit(x, _SQUARE))
        # New tensors at every call: the buffers change before a backward pass may need them.
        centre, half_width = (self.high + self.low) / 2, ((self.high - self.low) / 2).clamp(min=LEAST_HALF_WIDTH)
        u = (limit(x, _SQUARE) - centre.to(x.dtype)) / half_width.to(x.dtype)
        inside = u.clamp(-1, 1)
        # tanh has slope 1 and no curvature at 0: value, slope and curvature are continuous at the ends of the range.
        rest = 1 - INNER
        return INNER * inside + rest * ((u - inside) * (INNER / rest)).tanh()

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        """Move the running range towards that of `x`, unless that is not finite."""
        if x.numel() == 0:
            return
        low, high = (end.to(self.low.dtype) for end in torch.aminmax(x.detach()))
        finite = low.isfinite() & high.isfinite()
        self.low.copy_(torch.where(finite, torch.lerp(self.low, low, MOMENTUM), self.low))
        self.high.copy_(torch.where(finite, torch.lerp(self.high, high, MOMENTUM), self.high))

    @property
    def smoothness(self) -> float:
        """k if the function is C^k: of the basis, the normalisation and a residual activation given by its id.

        The smoothness of a module or a function that was given as `initial` is not known, and not counted.
        """
        normalisation = {"tanh": math.inf, "softsign": 1, "affine": 2}[self.normalise]
        counted = self.initial is not None and self._initial_id
        return min(
            self._basis.smoothness, normalisation, registry[self._initial_id].smoothness if counted else math.inf
        )

    def extra_repr(self) -> str:
        start = f"start {self.fit}" if self.fit else "start at the activation" if self.initial else "start at 0"
        return f"{self.basis}, {self.n_coefficients} coefficients a {self.scope}, normalise={self.normalise}, {start}"


START = 3.0  # of the running range: three standard deviations of a normalised input
INNER = 0.8  # what the running range becomes, so that the tails have room
MOMENTUM = 0.01  # slow, since the function moves with the range
LEAST_HALF_WIDTH = 1e-3


class LazyBasisActivation(LazyModuleMixin, BasisActivation):
    """A BasisActivation by channel before its first input, which tells the number of channels."""

    cls_to_become = BasisActivation

    def __init__(self, *args: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
            super().__init__(*args, **options)

    def initialize_parameters(self, x: Tensor) -> None:
        """Give every channel of `x` its coefficients; called by the first forward pass."""
        parameter = self.coefficients
        if isinstance(parameter, UninitializedParameter):
            assert self.channel_axis is not None
            with torch.no_grad():
                parameter.materialize((self.n_coefficients, x.shape[self.channel_axis]), dtype=torch.float32)
                parameter.copy_(torch.tensor(self._start)[:, None])


def _check(normalise: str, scope: str, channels: int | None, channel_axis: int | None) -> None:
    for kind, value, known in (("normalise", normalise, get_args(Normalise)), ("scope", scope, get_args(Scope))):
        if value not in known:
            raise UnknownNameError(kind, str(value), known)
    if scope == "channel":
        if channel_axis is None:
            raise SettingsError("scope 'channel' needs channel_axis: 1 for images and features, -1 for tokens")
        if channels is not None and channels < 1:
            raise SettingsError(f"channels must be at least 1, not {channels}")
    elif channels is not None or channel_axis is not None:
        raise SettingsError(f"channels and channel_axis are for scope 'channel', not {scope!r}")


def _function(op: str) -> Callable[[Tensor], Tensor]:
    spec = registry[op]
    if spec.arity != 1 or spec.parameters:
        raise SettingsError(f"initial must be a unary operation without parameters, not {op!r}")
    return spec.function
