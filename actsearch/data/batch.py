"""A batch that is made at once, and is a sequence of examples for whoever wants these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info


class Batch(Sequence[tuple[Any, ...]]):
    """What a held set gives a DataLoader for the indices of a batch, instead of a list of examples.

    Collations that know nothing of it find the examples, as tuples; others take the columns, which would only be
    unbound and stacked again. A Subset passes it on.

    `make(placed)` gives the columns, tensors with one row an example; `placed`: on the device where the set is kept,
    else in host memory.
    """

    def __init__(self, make: Callable[[bool], list[Tensor]]) -> None:
        self._make = make

    def stacked(self) -> list[Tensor]:
        """The columns in host memory: the bits of torch's default collation of the examples."""
        return self._make(False)

    def placed(self) -> list[Tensor]:
        """The columns where the set is kept; in pinned memory if that is the host, and there is a CUDA device."""
        columns = self._make(True)
        if torch.cuda.is_available():
            return [column if column.is_cuda else column.pin_memory() for column in columns]
        return columns

    @cached_property
    def _examples(self) -> list[tuple[Any, ...]]:
        columns = (c.tolist() if c.ndim == 1 else c.unbind() for c in self.stacked())
        return list(zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[index]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._examples)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self._examples,)  # without the set, which may be large


def collate(examples: Any) -> Any:
    """torch's default collation, but a Batch is taken as it is, on the device where its set is kept.

    Worker processes have no device; the loader pins what comes from them.
    """
    if not isinstance(examples, Batch):
        return default_collate(examples)
    return examples.placed() if get_worker_info() is None else examples.stacked()
