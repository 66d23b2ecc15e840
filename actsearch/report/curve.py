"""An activation as a curve: the range that matters, its derivatives, and where they jump."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]

DEFAULT_RANGE = (-5.0, 5.0)
CENTRAL_SHARE = 0.998


def finite_values(inputs: Tensor | None) -> Array:
    """The finite elements of `inputs`, flat, float64 on CPU; empty if there are none."""
    if inputs is None:
        return np.empty(0)
    values = inputs.detach().flatten().double().cpu().numpy()
    return values[np.isfinite(values)]


def central_range(inputs: Tensor | None) -> tuple[float, float]:
    """The range of the central 99.8 % of `inputs`; [-5, 5] without inputs, and never narrower than 0.01."""
    values = finite_values(inputs)
    if values.size == 0:
        return DEFAULT_RANGE
    tail = (1 - CENTRAL_SHARE) / 2
    low, high = (float(q) for q in np.quantile(values, (tail, 1 - tail)))
    if high - low < 0.01:
        middle = (low + high) / 2
        low, high = middle - max(0.005, 1e-6 * abs(middle)), middle + max(0.005, 1e-6 * abs(middle))
    return low, high


def on_cpu(function: Function) -> Function:
    """`function`; if it is a module, a float64 copy of it on CPU in evaluation mode."""
    return copy.deepcopy(function).cpu().double().eval() if isinstance(function, nn.Module) else function


def values(function: Function, x: Array) -> Array:
    """`function` at `x`, both 1-d float64."""
    with torch.no_grad():
        y = function(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)))
    return y.double().expand(len(x)).numpy().copy()


def derivatives(function: Function, x: Array, order: int) -> list[Array]:
    """f, f', …, f^(order) at `x` by automatic differentiation, each 1-d float64.

    At a kink it is what autograd says there; a jump never shows up as a spike of the next derivative.
    """
    point = torch.from_numpy(np.array(x, dtype=np.float64)).requires_grad_()
    with torch.enable_grad():
        y = function(point).double().expand_as(point)
        found = [y.detach().numpy().copy()]
        for _ in range(order):
            if y.requires_grad:
                y = torch.autograd.grad(y.sum(), point, create_graph=True, materialize_grads=True)[0]
            else:
                y = torch.zeros_like(point)
            found.append(y.detach().numpy(force=True).copy())
    return found


def shown_range(y: Array, least: float, share: float) -> tuple[float, float, bool, bool]:
    """The part of the y axis that shows the central `share` of the values, at least `least` high, with some room.

    And whether some are below it, and above it; what would fit with half as much again is shown whole.
    """
    finite = y[np.isfinite(y)]
    if finite.size == 0:
        return -least / 2, least / 2, False, False
    low, high = (float(q) for q in np.quantile(finite, ((1 - share) / 2, (1 + share) / 2)))
    smallest, greatest = float(finite.min()), float(finite.max())
    height = max(high - low, least)
    if greatest - smallest <= 1.5 * height:
        low, high = smallest, greatest
        height = max(high - low, least)
    middle, room = (low + high) / 2, 0.08 * height
    return middle - 0.58 * height, middle + 0.58 * height, smallest < low - room, greatest > high + room


def with_jumps_broken(function: Function, order: int, x: Array, y: Array, slope: Array) -> tuple[Array, Array]:
    """`x` and `y`, the derivative of `order`, with a NaN at every jump of y: a line through them is interrupted there.

    `slope` is the derivative of y. Where it does not explain how y changes between neighbours, bisection tells a jump
    from a steep stretch; the points right before and right after a jump are put in too.
    """
    change = np.diff(y)
    finite = y[np.isfinite(y)]
    scale = float(np.diff(np.quantile(finite, (0.005, 0.995)))[0]) if finite.size else 0.0
    surprise = abs(change - np.diff(x) * (slope[1:] + slope[:-1]) / 2)
    suspects = np.flatnonzero((surprise > 0.25 * abs(change)) & (abs(change) > 0.004 * scale))
    if suspects.size == 0:
        return x, y
    left, right, y_left, y_right = x[suspects], x[suspects + 1], y[suspects], y[suspects + 1]
    for _ in range(25):
        middle = (left + right) / 2
        y_middle = derivatives(function, middle, order)[order]
        is_left = abs(y_middle - y_left) > abs(y_right - y_middle)
        right, y_right = np.where(is_left, middle, right), np.where(is_left, y_middle, y_right)
        left, y_left = np.where(is_left, left, middle), np.where(is_left, y_left, y_middle)
    is_jump = abs(y_right - y_left) > 0.25 * abs(change[suspects])
    at = np.repeat(suspects[is_jump] + 1, 3)
    gap = np.full(int(is_jump.sum()), np.nan)
    new_x = np.stack([left[is_jump], (left[is_jump] + right[is_jump]) / 2, right[is_jump]], axis=1).ravel()
    new_y = np.stack([y_left[is_jump], gap, y_right[is_jump]], axis=1).ravel()
    return np.insert(x, at, new_x), np.insert(y, at, new_y)
