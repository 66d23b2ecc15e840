"""Least squares in float64, and how far an approximation of a function is off in value and in first derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError

Function = Callable[[Tensor], Tensor]

FIT_RANGE = (-4.0, 4.0)
N_POINTS = 801


@dataclass(frozen=True)
class FitError:
    """How far an approximation is off over a range of its input.

    Attributes:
        low, high: ends of the range.
        value_max, value_rms: greatest and root-mean-square error of the value.
        slope_max, slope_rms: the same of the first derivative.
    """

    low: float
    high: float
    value_max: float
    value_rms: float
    slope_max: float
    slope_rms: float

    def __str__(self) -> str:
        return (
            f"off by at most {self.value_max:.2g} (rms {self.value_rms:.2g}) in value and {self.slope_max:.2g} "
            f"(rms {self.slope_rms:.2g}) in slope on [{self.low:g}, {self.high:g}]"
        )


def points(low: float, high: float, n: int = N_POINTS) -> Tensor:
    """`n` uniform points from `low` to `high`, in float64."""
    return torch.linspace(low, high, n, dtype=torch.float64)


def normal_weights(x: Tensor) -> Tensor:
    """The density of N(0, 1) at `x`, scaled so that its sum is 1."""
    density = (-0.5 * x.square()).exp()
    return density / density.sum()


def least_squares(functions: Tensor, target: Tensor, weights: Tensor) -> tuple[float, ...]:
    """The c that minimises Σ_i weights_i (Σ_k functions_ik c_k - target_i)²; the shortest if there are many.

    Args:
        functions: (points, k). target, weights: (points,).
    """
    root = weights.detach().sqrt().numpy()
    solution, *_ = np.linalg.lstsq(root[:, None] * functions.detach().numpy(), root * target.detach().numpy())
    return tuple(solution.tolist())


def fit_error(approximation: Function, function: Function, x: Tensor, weights: Tensor | None = None) -> FitError:
    """The error of `approximation` at the points `x` (float64); `weights` (default: equal) are those of its mean."""
    x = x.detach().requires_grad_()
    difference = approximation(x) - function(x)
    (slope,) = torch.autograd.grad((difference + 0 * x).sum(), x)
    weights = torch.full_like(x, 1 / len(x)) if weights is None else weights / weights.sum()
    maximum = [float(error.detach().abs().max()) for error in (difference, slope)]
    mean = [float((weights * error.detach().square()).sum().sqrt()) for error in (difference, slope)]
    low, high = x.detach().aminmax()
    return FitError(float(low), float(high), maximum[0], mean[0], maximum[1], mean[1])


def in_float64(function: Function) -> Function:
    """`function` as it is evaluated, on the CPU and in float64; a module is copied.

    Calling it raises SettingsError if `function` does not work element by element on a tensor of shape (points,).
    """
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).to("cpu", torch.float64).eval()
        function.requires_grad_(False)

    def evaluated(x: Tensor) -> Tensor:
        try:
            y = function(x)
        except RuntimeError as error:
            message = str(error).splitlines()[0]
            raise SettingsError(f"the function to fit must take a tensor of any shape: {message}") from None
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise SettingsError("the function to fit must return one number for each that it is given")
        return y

    return evaluated
