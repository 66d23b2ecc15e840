"""Dense tensors as the memory that they fill: kernels see elements, whatever the memory format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of `x`, or of a dense copy of it if there are gaps or overlaps in it."""
    return x.stride() if x.is_contiguous() or _is_dense(x) else torch.empty_like(x, device="meta").stride()


def with_strides(x: Tensor, strides: Sequence[int]) -> Tensor:
    """`x`, or a copy of it with these strides if it has others."""
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x.detach())


def alias(x: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """The memory of `x` in another shape, without history, and not as a view.

    A view that a custom function returns cannot be changed in place, and the compiler asks after the base of one.
    """
    with torch.no_grad():
        return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), shape, strides)


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill one stretch of memory, each once."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
