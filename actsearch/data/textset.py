"""Text as tokens in memory, cut into windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from actsearch.data.batch import Batch


class TextSet(Dataset):
    """Windows of a token sequence (N,); an item is (inputs (context,), targets (context,)), both int64.

    The target of a token is the token after it. Windows follow one another: the last target of one is the first input
    of the next, and nothing else is shared, so that parts of a set do not leak into each other. `starts` are the first
    positions of the windows.
    """

    def __init__(self, tokens: Tensor, starts: Tensor, context: int) -> None:
        self.tokens = tokens
        self.starts = starts
        self.context = context
        self._offsets = torch.arange(context + 1)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return Batch(partial(self._make, torch.as_tensor(indices)))

    def _make(self, indices: Tensor, placed: bool) -> list[Tensor]:
        windows = self.tokens[self.starts[indices, None] + self._offsets].long()
        return [windows[:, :-1].contiguous(), windows[:, 1:].contiguous()]


def window_starts(n_tokens: int, context: int) -> Tensor:
    """First positions of the windows of `context` + 1 tokens that lie `context` apart."""
    return torch.arange(max(0, n_tokens - 1) // context) * context


def to_tensor(pieces: Iterable[NDArray[np.integer]], vocab_size: int) -> Tensor:
    """One sequence of token ids (N,) in the smallest integer type that holds all of `vocab_size`."""
    small = np.min_scalar_type(vocab_size - 1)
    arrays = [piece.astype(small) for piece in pieces]
    return torch.from_numpy(np.concatenate(arrays) if arrays else np.empty(0, small))
