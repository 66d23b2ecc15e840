"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), with max pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import SettingsError

SMALLEST = 4  # pixels a side that survive two halvings


class LeNet(nn.Module):
    """Two 5×5 convolutions, one or two hidden linear layers, a head: (B, in_channels, H, W) → logits (B, num_classes).

    By default and at 28×28 or 32×32 pixels it has the classic sizes: 6 and 16 channels, then 120 and 84 units; `width`
    multiplies them all. `image_size` is one side, or (height, width).
    Raises SettingsError for images below 4×4, for a size below 1 and for another number of layers.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: float = 1.0,
        image_size: int | tuple[int, int] = 28,
        channels: Sequence[int] = (6, 16),
        units: Sequence[int] = (120, 84),
    ) -> None:
        super().__init__()
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        smallest = min(sides)
        if smallest < SMALLEST:
            raise SettingsError(
                f"LeNet needs images of at least {SMALLEST}×{SMALLEST} pixels, not {sides[0]}×{sides[1]}"
            )
        if len(channels) != 2 or len(units) not in (1, 2):
            raise SettingsError(f"LeNet has two channels and one or two units, not {list(channels)} and {list(units)}")
        if min(num_classes, in_channels, *channels, *units) < 1 or width <= 0:
            raise SettingsError("LeNet needs num_classes, in_channels, channels, units of at least 1, a width above 0")
        channels1, channels2 = (max(1, round(width * n)) for n in channels)
        hidden = [max(1, round(width * n)) for n in units]
        # The original saw 28×28 digits on a 32×32 field; padding 2 is that field for anything smaller.
        padding1 = 0 if smallest >= 32 else 2
        # Unpadded as published where a 5×5 kernel leaves enough for the second pooling.
        padding2 = 0 if (smallest - 4 + 2 * padding1) // 2 >= 6 else 2
        self.conv1 = nn.Conv2d(in_channels, channels1, 5, padding=padding1)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels1, channels2, 5, padding=padding2)
        self.act2 = nn.ReLU()
        rows, columns = (((n - 4 + 2 * padding1) // 2 - 4 + 2 * padding2) // 2 for n in sides)
        self.fc1 = nn.Linear(channels2 * rows * columns, hidden[0])
        self.act3 = nn.ReLU()
        if len(hidden) == 2:
            self.fc2 = nn.Linear(hidden[0], hidden[1])
            self.act4 = nn.ReLU()
        self.two_hidden = len(hidden) == 2
        self.head = nn.Linear(hidden[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act1(self.conv1(x)), 2)
        x = F.max_pool2d(self.act2(self.conv2(x)), 2)
        x = self.act3(self.fc1(x.flatten(1)))
        if self.two_hidden:
            x = self.act4(self.fc2(x))
        return self.head(x)


lenet = LeNet


def lenet_wide(num_classes: int = 10, in_channels: int = 1, image_size: int | tuple[int, int] = 28) -> LeNet:
    """The variant of Jagtap et al. 2020 (arXiv:1909.12228): 64 and 64 channels of 5×5, then 1,024 units."""
    return LeNet(num_classes, in_channels, image_size=image_size, channels=(64, 64), units=(1024,))
