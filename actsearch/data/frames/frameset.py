"""A dataset of frames, each a batch of one with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from actsearch.data.frames.source import kinds
from actsearch.forcefield.frames import Frame, FrameBatch, alone


class FrameSet(Dataset[FrameBatch]):
    """Frames with neighbours up to `cutoff` Å; an item is the FrameBatch of one frame.

    Neighbours are found when a frame is first asked for, and kept: 40 bytes a pair, about 0.4 MB for 192 atoms of water
    and 5 Å. Pickles go without them, and each worker process finds its own.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float) -> None:
        self.frames = list(frames)
        self.cutoff = cutoff
        self._found: dict[tuple[int, torch.dtype], FrameBatch] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> FrameBatch:
        place = range(len(self))[index]
        key = place, torch.get_default_dtype()
        if key not in self._found:
            self._found[key] = alone(self.frames[place], self.cutoff)
        return self._found[key]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The kind of each frame, by composition and group: a search then gives both of its parts a share of each."""
        return kinds(self.frames)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": {}}
