"""A trained activation reduced to what is cheap to deploy: a polynomial or a table, with its error.

Li, arXiv 2412.14655, approximates the learned curve by a low-order polynomial.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from numpy.polynomial import Chebyshev
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from actsearch.errors import SettingsError
from actsearch.ops.fitting import FitError, Function, fit_error, in_float64, points
from actsearch.ops.guard import HALF, limit, power_bound

_LINEAR = power_bound(1)


class Reduced(nn.Module, ABC):
    """A function that is known within [low, high], and goes on C² and in the end linearly outside it.

    At the distance d beyond an end with value v, slope s and curvature c it is v ± s d + c d² / (2 (1 + d/w)), where w
    is a tenth of the range. It has buffers and no parameters. Half precision is computed in float32.

    Attributes:
        error: of the reduction, within the range; both sides in float64.
    """

    ends: Tensor
    error: FitError

    def __init__(self, low: float, high: float, ends: list[tuple[float, float]]) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in HALF:
            return self.forward(x.float()).to(x.dtype)
        x = limit(x, _LINEAR)
        inside = x.clamp(self.low, self.high)
        distance = x - inside
        (slope_left, bend_left), (slope_right, bend_right) = self.ends.to(x.dtype)
        slope = torch.where(distance < 0, slope_left, slope_right)
        curvature = torch.where(distance < 0, bend_left, bend_right)
        bent = distance / (1 + distance.abs() / (0.1 * (self.high - self.low)))
        return self.within(inside) + distance * (slope + 0.5 * curvature * bent)

    @abstractmethod
    def within(self, x: Tensor) -> Tensor:
        """The function at `x` in [low, high]."""

    def extra_repr(self) -> str:
        return str(self.error)


class Polynomial(Reduced):
    """A polynomial within [low, high], by its Chebyshev coefficients there."""

    coefficients: Tensor

    def __init__(self, polynomial: Chebyshev) -> None:
        low, high = (float(end) for end in polynomial.domain)
        first, second = polynomial.deriv(1), polynomial.deriv(2)
        super().__init__(low, high, [(float(first(end)), float(second(end))) for end in (low, high)])
        self.register_buffer("coefficients", torch.tensor(polynomial.coef, dtype=torch.float32))

    def within(self, x: Tensor) -> Tensor:
        t = (2 * x - (self.low + self.high)) / (self.high - self.low)
        constant, *others = self.coefficients.to(x.dtype).unbind(0)
        b1 = b2 = torch.zeros_like(constant)
        for c in reversed(others):
            b1, b2 = torch.addcmul(c - b2, 2 * t, b1), b1
        return torch.addcmul(constant - b2, t, b1)


class Table(Reduced):
    """A cubic spline (C²) through values at uniform knots within [low, high]."""

    pieces: Tensor

    def __init__(self, spline: CubicSpline) -> None:
        low, high = float(spline.x[0]), float(spline.x[-1])
        super().__init__(low, high, [(float(spline(end, 1)), float(spline(end, 2))) for end in (low, high)])
        self.n_pieces = len(spline.x) - 1
        step = (high - low) / self.n_pieces
        powers = torch.tensor([step**power for power in (3, 2, 1, 0)], dtype=torch.float64)
        self.register_buffer("pieces", (powers[:, None] * torch.from_numpy(spline.c)).float())

    def within(self, x: Tensor) -> Tensor:
        u = (x - self.low) * (self.n_pieces / (self.high - self.low))
        piece = u.long().clamp(0, self.n_pieces - 1)  # also of NaN, which s keeps
        s = u - piece
        at = piece.flatten()
        a3, a2, a1, a0 = (row.index_select(0, at).view(x.shape) for row in self.pieces.to(x.dtype))
        return torch.addcmul(a0, s, torch.addcmul(a1, s, torch.addcmul(a2, s, a3)))


def reduce_to_polynomial(function: Function, degree: int, range: tuple[float, float]) -> Polynomial:
    """A polynomial of `degree` near `function` (an activation, a layer or a function) in `range`, a pair of ends.

    It interpolates at the Chebyshev points, in float64: its greatest error is little more than the least possible one.
    Its `error` says how far it is off. Raises SettingsError.
    """
    if degree < 1:
        raise SettingsError(f"degree must be at least 1, not {degree}")
    low, high = _ends(range)
    reference = _reference(function)

    def values(x: Any) -> Any:
        return reference(torch.as_tensor(x, dtype=torch.float64)).detach().numpy()

    reduced = Polynomial(Chebyshev.interpolate(values, degree, domain=(low, high)))
    reduced.error = fit_error(reduced, reference, points(low, high, max(2001, 64 * degree + 1)))
    return reduced


def reduce_to_table(function: Function, n: int, range: tuple[float, float]) -> Table:
    """A table of `n` knots of `function` (an activation, a layer or a function) in `range`, a pair of ends.

    A cubic spline runs through the knots with the function's own slopes at the ends; between knots its error falls
    with the fourth power of their distance where the function is C⁴. Its `error` says how far it is off, with 15 points
    between every two knots. Raises SettingsError.
    """
    if n < 3:
        raise SettingsError(f"a table needs at least 3 knots, not {n}")
    low, high = _ends(range)
    reference = _reference(function)
    knots = points(low, high, n).requires_grad_()
    y = reference(knots)
    (slopes,) = torch.autograd.grad((y + 0 * knots).sum(), knots)
    at_ends = ((1, float(slopes[0])), (1, float(slopes[-1])))
    spline = CubicSpline(knots.detach().numpy(), y.detach().numpy(), bc_type=at_ends)
    reduced = Table(spline)
    reduced.error = fit_error(reduced, reference, points(low, high, 16 * (n - 1) + 1))
    return reduced


def _ends(range: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(end) for end in range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SettingsError(f"range must be two finite numbers, the lower one first, not {low:g} and {high:g}")
    return low, high


def _reference(function: Function) -> Function:
    if getattr(function, "scope", "") == "channel":
        raise SettingsError("every channel has a function of its own; reduce a layer of scope 'site' or 'network'")
    return in_float64(function)
