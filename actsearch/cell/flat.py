"""Tensors as rows of elements in the order of their memory, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actsearch.ops.memory import alias, dense_strides, with_strides


@dataclass(frozen=True)
class Order:
    """The shape of a tensor, and the order of its elements in memory."""

    shape: torch.Size
    strides: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor) -> Order:
        """That of `x`, or of a dense copy if there are gaps or overlaps in it."""
        return cls(x.shape, dense_strides(x))

    def flatten(self, x: Tensor) -> Tensor:
        """The elements of a tensor of the same shape in this order, (N,); its own memory where they lie in it so."""
        return alias(with_strides(x, self.strides), (x.numel(),), (1,))

    def restore(self, elements: Tensor) -> Tensor:
        """A tensor of the original shape and memory format from elements in this order; the same memory."""
        return alias(elements, self.shape, self.strides)
