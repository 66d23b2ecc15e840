"""Random crops, flips and TrivialAugmentWide of a whole batch at once, on whatever device it is.

What is random is drawn on the host, from torch's global CPU generator. So the images are the same on every device, and
depend on the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from actsearch.data.device import send
from actsearch.data.trivial import TrivialDraws, draw_trivial, trivial_augment


@dataclass(frozen=True)
class Draws:
    """What was drawn for n images: by TrivialAugmentWide, (row, column) of the crop (n, 2), whether mirrored (n,)."""

    trivial: TrivialDraws | None
    offsets: Tensor | None
    flips: Tensor | None


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
        return self.apply(images, self.draw(len(images)))

    def draw(self, n: int) -> Draws:
        """What is random for n images, in host memory."""
        return Draws(
            draw_trivial(n) if self.trivial else None,
            torch.randint(0, 2 * self.padding + 1, (n, 2)) if self.padding else None,
            torch.rand(n) < 0.5 if self.flip else None,
        )

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The images (B, C, H, W), on any device, changed as was drawn."""
        if draws.trivial is not None:
            images = trivial_augment(images, draws.trivial)
        if draws.offsets is None and draws.flips is None:
            return images
        return crop(images, draws.offsets, self.padding, draws.flips)


NO_AUGMENT = Augment()


def crop(images: Tensor, offsets: Tensor | None, padding: int, flips: Tensor | None = None) -> Tensor:
    """Pad (B, C, H, W) with `padding` zeros on each side and cut H×W out, image i at (row, column) = offsets[i].

    Then the images are mirrored where `flips` (B,) says so. Both are in host memory; None: none of that.
    """
    channels, height, width = images.shape[1:]
    rows, columns = torch.arange(height).expand(len(images), -1), torch.arange(width).expand(len(images), -1)
    if flips is not None:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    if offsets is not None:
        rows, columns = rows + offsets[:, :1], columns + offsets[:, 1:]
    rows, columns = send(torch.cat([rows, columns], 1), images.device).split([height, width], 1)
    source = (rows[:, :, None] * (width + 2 * padding) + columns[:, None]).flatten(1)
    padded = F.pad(images, (padding,) * 4) if padding else images
    return padded.flatten(2).gather(2, source[:, None].expand(-1, channels, -1)).view_as(images)
