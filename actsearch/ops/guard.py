"""Bounds that keep an operation and its first two derivatives finite, applied to its *input*.

Clamping the output, or choosing with `where` afterwards, leaves 0·inf = NaN in the gradient; clamping the input does
not (PyTorch issues 10729 and 68425).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float32, torch.float64)}

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Computed in float32 and rounded once.
HALF = (torch.float16, torch.bfloat16)

# exp(-SATURATED²) and every sigmoid-like tail are exactly 0 in float64 beyond it.
SATURATED = 28.0


def power_bound(power: float, margin: float = 1 / 16) -> MappingProxyType[str, float]:
    """By dtype, the greatest |x| with |x|^power <= margin · (largest finite number)."""
    return MappingProxyType({name: (margin * torch.finfo(dtype).max) ** (1 / power) for name, dtype in DTYPES.items()})


def exponential_bound() -> MappingProxyType[str, float]:
    """By dtype, the greatest x whose exponential keeps a factor of e³ below the largest finite number."""
    return MappingProxyType({name: math.log(torch.finfo(dtype).max) - 3 for name, dtype in DTYPES.items()})


def limit(x: Tensor, bound: MappingProxyType[str, float]) -> Tensor:
    """`x` clamped to ±bound of its dtype; half precision without an entry takes that of bfloat16."""
    value = bound[_NAMES.get(x.dtype, "bfloat16")]
    # Compilers do not read context variables.
    if not torch.compiler.is_compiling() and _greatest.get() <= value:
        return x
    return x.clamp(-value, value)


@contextmanager
def inputs_within(greatest: float) -> Iterator[None]:
    """Within it, the inputs of operations are known to be within ±`greatest`: what would not clamp them is left out."""
    token = _greatest.set(greatest)
    try:
        yield
    finally:
        _greatest.reset(token)


_greatest: ContextVar[float] = ContextVar("_greatest", default=math.inf)
