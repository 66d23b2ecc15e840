"""Random crops and flips of a whole batch at once: a tenth of the time that they take image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """The distribution of torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, drawn from torch's RNG.

    `padding`: zeros on each side before the crop, in pixels (0: no crop); `flip`: mirror half of the images.
    """

    padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), any dtype."""
        n = len(images)
        if self.padding:
            images = crop(images, torch.randint(0, 2 * self.padding + 1, (n, 2)), self.padding)
        if self.flip:
            images = torch.where((torch.rand(n) < 0.5)[:, None, None, None], images.flip(-1), images)
        return images


NO_AUGMENT = Augment()


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad (B, C, H, W) with `padding` zeros on each side and cut H×W out, image i at (row, column) = offsets[i]."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: nothing is copied yet
    return windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]
