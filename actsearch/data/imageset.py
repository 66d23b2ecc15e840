"""Images in memory that are augmented and normalised a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from actsearch.data.augment import Augment

CHUNK = 1000


class ImageSet(Dataset):
    """Images (N, C, H, W), or features (N, F), uint8 or float32, with labels (N,); an item is (float32 image, label).

    `mean` and `std` are one a channel in the units of the images. A DataLoader asks for a whole batch through
    `__getitems__`, which is what makes it fast; subsets and the default collate function pass that on unchanged.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor, augment: Augment | None) -> None:
        self.images = images
        self.labels = labels
        shape = (-1,) + (1,) * (images.ndim - 2)
        self.mean, self.std = mean.view(shape), std.view(shape)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if self.augment is not None:
            images = self.augment(images)  # before the normalisation, as published: padding is black, not grey
        images = (images.float() - self.mean) / self.std
        return list(zip(images.unbind(), self.labels[chosen].tolist(), strict=True))

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
