"""Images in memory that are augmented and normalised a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from actsearch.data.augment import Augment, Draws
from actsearch.data.batch import Batch
from actsearch.data.device import send

CHUNK = 1000


@dataclass(frozen=True)
class _Kept:
    """All that batches are made of, on one device."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> _Kept:
        return _Kept(*(tensor.to(device) for tensor in (self.images, self.labels, self.mean, self.std)))


class ImageSet(Dataset):
    """Images (N, C, H, W), or features (N, F), uint8 or float32, with labels (N,); an item is (float32 image, label).

    `mean` and `std` are one a channel in the units of the images. A DataLoader asks for a whole batch through
    `__getitems__`, which is what makes it fast; subsets pass that on, and `collate` takes it as it is.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, augment: Augment | None) -> None:
        self.images = images
        self.labels = labels
        shape = (-1,) + (1,) * (images.ndim - 2)
        self.mean, self.std = mean.view(shape), std.view(shape)
        self.augment = augment
        self._kept: _Kept | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The examples; what is random in them is drawn at once."""
        chosen = torch.as_tensor(indices)
        draws = None if self.augment is None else self.augment.draw(len(chosen))
        return Batch(partial(self._make, chosen.where(chosen >= 0, chosen + len(self)), draws))

    def _make(self, indices: Tensor, draws: Draws | None, placed: bool) -> list[Tensor]:
        """Images (B, …) float32 and labels (B,) int64."""
        kept = self._kept if placed and self._kept is not None else self._on_host()
        indices = send(indices, kept.images.device)
        images = kept.images.index_select(0, indices)
        if self.augment is not None and draws is not None:
            images = self.augment.apply(images, draws)  # before the normalisation, as published: padding is black
        return [images.float().sub_(kept.mean).div_(kept.std), kept.labels.index_select(0, indices)]

    def _on_host(self) -> _Kept:
        return _Kept(self.images, self.labels, self.mean, self.std)

    @property
    def device(self) -> torch.device:
        """Where batches of `collate` arrive."""
        return self.images.device if self._kept is None else self._kept.images.device

    def keep_on(self, device: torch.device, others: Sequence[ImageSet] = ()) -> None:
        """Have a copy on `device` that the batches of `collate` come from. `others` have the same images and use it."""
        if device != self.device:
            self._kept = None if device == self.images.device else self._on_host().to(device)
        for other in others:
            other._kept = self._kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # another process has another device, or none

    @property
    def targets(self) -> np.ndarray:
        """The labels as integers (N,)."""
        return self.labels.numpy()


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel of images (N, C, …); a channel that is constant gets deviation 1."""
    axes = (0, *range(2, images.ndim))
    count = images.numel() / images.shape[1]
    chunks = images.split(CHUNK)  # a whole set in double precision would need eight times its memory
    mean = torch.stack([c.double().sum(axes) for c in chunks]).sum(0) / count
    centre = mean.view(-1, *(1,) * (images.ndim - 2))
    variance = torch.stack([(c.double() - centre).square().sum(axes) for c in chunks]).sum(0) / count
    std = variance.sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()
