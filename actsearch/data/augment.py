"""Random crops and flips of a whole batch at once: a tenth of the time that they take image by image.

TrivialAugmentWide has a transformation for each image, so it takes them one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

_TRIVIAL = v2.TrivialAugmentWide()


@dataclass(frozen=True)
class Augment:
    """The distribution of torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, drawn from torch's RNG.

    `padding`: zeros on each side before the crop, in pixels (0: no crop); `flip`: mirror half of the images;
    `trivial`: before both, TrivialAugmentWide (Müller and Hutter 2021, arXiv:2103.10158) as in torchvision.
    """

    padding: int = 0
    flip: bool = False
    trivial: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), any dtype; with `trivial` uint8 from 0 to 255, and C = 1 or 3."""
        n = len(images)
        if self.trivial:
            images = torch.stack([_TRIVIAL(image) for image in images])
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
