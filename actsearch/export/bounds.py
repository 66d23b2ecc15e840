"""Between which limits a slot's values stay, so that an export leaves out the guards and clips that can never act."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from actsearch.ops.spec import REALS, OpSpec, Value

Interval = tuple[float, float]

_EVEN_AND_GROWING = ("abs", "square", "cosh", "log_abs")
_ROUNDING = 1e-5  # of a few float32 operations, generously


def of_op(spec: OpSpec, arguments: Sequence[Interval], parameters: Mapping[str, Value] | None) -> Interval:
    """An interval that holds every value of `spec` for arguments in the given ones; in any precision.

    `parameters` is None if they are trainable and so may take any value.
    """
    if parameters is None and spec.parameters:
        return REALS
    low, high = _of_op(spec, arguments, parameters or {})
    if not spec.parameters:  # the declared range is for parameters at their means
        low, high = max(low, spec.range[0]), min(high, spec.range[1])
    return low - _ROUNDING * abs(low), high + _ROUNDING * abs(high)


def _of_op(spec: OpSpec, arguments: Sequence[Interval], parameters: Mapping[str, Value]) -> Interval:
    greatest = max(abs(end) for interval in arguments for end in interval)
    if spec.id in _EVEN_AND_GROWING:
        return -math.inf, _value(spec, greatest, parameters)
    if spec.arity == 1 and spec.monotonic is not None:
        ends = [_value(spec, end, parameters) for end in arguments[0]]
        return min(ends), max(ends)
    if spec.id in ("max", "min"):
        choose = max if spec.id == "max" else min
        return choose(arguments[0][0], arguments[1][0]), choose(arguments[0][1], arguments[1][1])
    if spec.contracting:
        return -greatest, greatest
    if not math.isfinite(greatest):
        return REALS
    match spec.id:
        case "add":
            return arguments[0][0] + arguments[1][0], arguments[0][1] + arguments[1][1]
        case "sub":
            return arguments[0][0] - arguments[1][1], arguments[0][1] - arguments[1][0]
        case "mul":
            products = [a * b for a in arguments[0] for b in arguments[1]]
            return min(products), max(products)
    return REALS


def _value(spec: OpSpec, at: float, parameters: Mapping[str, Value]) -> float:
    named = {name: torch.tensor(value, dtype=torch.float64) for name, value in parameters.items()}
    return float(spec.function(torch.tensor(at, dtype=torch.float64), **named))
