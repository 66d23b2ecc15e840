"""Dense tensors as rows of elements in the order of their memory, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Order:
    """The order of a tensor's dimensions in memory, and its shape in that order."""

    dims: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor) -> Order:
        """That of `x`; the ordinary one for a tensor with gaps or overlaps."""
        dims = tuple(range(x.ndim))
        if not x.is_contiguous():
            strides = x.stride()
            sorted_dims = tuple(sorted(dims, key=lambda d: (-strides[d], d)))
            if x.permute(sorted_dims).is_contiguous():
                dims = sorted_dims
        return cls(dims, tuple(x.shape[d] for d in dims))

    def flatten(self, x: Tensor) -> Tensor:
        """The elements of a tensor of the same shape in this order, (N,); a view where it lies in memory so."""
        return x.permute(self.dims).reshape(-1)

    def restore(self, elements: Tensor) -> Tensor:
        """A tensor of the original shape and memory format from elements in this order; a view."""
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return elements.view(self.shape).permute(inverse)
