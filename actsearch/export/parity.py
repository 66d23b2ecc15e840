"""How far an export is from the Activation: the greatest error in value, first and second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]

DEFAULT_RANGE = (-8.0, 8.0)
POINTS = 4001
FAR = (20.0, 50.0, 100.0, 1e3, 1e4, 1e6)
# Of the difference quotients: wide enough that rounding, ε/h and ε/h², stays below 1e-11 and 1e-8 of the value.
STEP = 2.0**-12


@dataclass(frozen=True)
class Parity:
    """The greatest errors of an export over some points.

    An error is |a - b| / max(1, |b|), with b what the Activation gives: absolute for small values and relative for
    large ones, since a float of size 10⁶ is itself only known to 0.06 in float32.

    Attributes:
        value, first, second: of the function and its derivatives; None where the format has no derivative.
        points: number of inputs.
        range: of most of them; 0 and far points are beside it.
        how: how the derivatives were taken.
    """

    value: float
    first: float | None
    second: float | None
    points: int
    range: tuple[float, float]
    how: str

    def __str__(self) -> str:
        errors = {"value": self.value, "first derivative": self.first, "second derivative": self.second}
        shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items() if error is not None)
        low, high = self.range
        return f"greatest error: {shown} ({self.how}; {self.points:,} points, most from {low:.4g} to {high:.4g})"


def points(inputs: Tensor | None = None, far: bool = True) -> Array:
    """Where an export is compared: an even grid over the recorded `inputs` (or [-8, 8]), 0, and `far` points."""
    low, high = _range(inputs)
    beyond = FAR if far else ()
    return np.concatenate([np.linspace(low, high, POINTS), [0.0], beyond, np.negative(beyond)])


def _range(inputs: Tensor | None) -> tuple[float, float]:
    if inputs is None:
        return DEFAULT_RANGE
    finite = inputs[inputs.isfinite()].double()
    if finite.numel() == 0 or finite.min() == finite.max():
        return DEFAULT_RANGE
    return float(finite.min()), float(finite.max())


def of_torch(
    reference: nn.Module, other: Callable[[Tensor], Tensor], x: Array, dtype: torch.dtype = torch.float64
) -> Parity:
    """Both differentiated twice by autograd, in `dtype`."""
    at = torch.from_numpy(x).to(dtype)
    errors = [_error(b, a) for a, b in zip(_derivatives(reference, at), _derivatives(other, at), strict=True)]
    return _parity(errors, x, f"autograd, {str(dtype).removeprefix('torch.')}")


def of_numpy(reference: nn.Module, other: Callable[[Array], Array], x: Array) -> Parity:
    """Values, and the central difference quotients of both, in float64.

    The quotients of the same step are compared with one another, not with a derivative: at a kink they agree as well.
    """
    expected = _quotients(lambda at: _values(reference, at), x)
    errors = [_error(b, a) for a, b in zip(expected, _quotients(other, x), strict=True)]
    return _parity(errors, x, f"difference quotients of step {STEP:g}, float64")


def of_single(reference: nn.Module, other: Callable[[NDArray[np.float32]], NDArray[np.float32]], x: Array) -> Parity:
    """Values and the first difference quotients of both, in float32, for a form without derivatives.

    A step of 1/16 keeps what rounding adds to a quotient at 16 times the error of a value. The quotients leave out the
    far points: there a float32 may lose more than that in a sum whose large terms cancel.
    """
    step = 1 / 16
    found = []
    for function in (lambda at: _values(reference, at), other):
        low, middle, high = (function(at.astype(np.float32)).astype(np.float64) for at in (x - step, x, x + step))
        found.append((middle, (high - low) / (2 * step), np.maximum(abs(low), abs(high))))
    (value, slope, size), (other_value, other_slope, _) = found
    errors = [_error(other_value, value), float(np.max((abs(other_slope - slope) / np.maximum(1, size))[: POINTS + 1]))]
    return _parity([*errors, None], x, "values and difference quotients of step 1/16, float32")


def _parity(errors: Sequence[float | None], x: Array, how: str) -> Parity:
    value, first, second = errors
    assert value is not None
    return Parity(value, first, second, len(x), (float(x[0]), float(x[POINTS - 1])), how)


def _error(found: Array, expected: Array) -> float:
    """The greatest error; infinite if one is finite where the other is not."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, abs(found - expected) / np.maximum(1, abs(expected)))
    return float(np.max(np.where(np.isnan(errors), math.inf, errors)))


def _values(function: Callable[[Tensor], Tensor], x: Array) -> Array:
    with torch.no_grad():
        found = function(torch.from_numpy(x))
    return found.numpy()


def _derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Array]:
    point = x.clone().requires_grad_()
    y = function(point)
    found = [y.detach().double().numpy(force=True)]
    for _ in range(2):
        if y.requires_grad:
            y = torch.autograd.grad(y.sum(), point, create_graph=True, materialize_grads=True)[0]
        else:
            y = torch.zeros_like(point)
        found.append(y.detach().double().numpy(force=True))
    return found


def _quotients(function: Callable[[Array], Array], x: Array) -> list[Array]:
    low, middle, high = (function(x + k * STEP) for k in (-1, 0, 1))
    return [middle, (high - low) / (2 * STEP), (high - 2 * middle + low) / STEP**2]
