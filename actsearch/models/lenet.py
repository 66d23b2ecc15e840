"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), with max pooling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import SettingsError

SMALLEST = 4  # pixels a side that survive two halvings


class LeNet(nn.Module):
    """Two convolutions and three linear layers: images (B, in_channels, H, W) → logits (B, num_classes).

    At `width` 1 and 28×28 or 32×32 pixels it has the classic sizes: 6 and 16 channels of 5×5, then 120 and 84 units.
    `image_size` is one side, or (height, width). Raises SettingsError for images below 4×4 and for a size below 1.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, width: float = 1.0, image_size: int | tuple[int, int] = 28
    ) -> None:
        super().__init__()
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        smallest = min(sides)
        if smallest < SMALLEST:
            raise SettingsError(
                f"LeNet needs images of at least {SMALLEST}×{SMALLEST} pixels, not {sides[0]}×{sides[1]}"
            )
        if min(num_classes, in_channels) < 1 or width <= 0:
            raise SettingsError("LeNet needs num_classes and in_channels of at least 1 and a width above 0")
        channels1, channels2, units1, units2 = (max(1, round(width * n)) for n in (6, 16, 120, 84))
        # The original saw 28×28 digits on a 32×32 field; padding 2 is that field for anything smaller.
        padding1 = 0 if smallest >= 32 else 2
        # Unpadded as published where a 5×5 kernel leaves enough for the second pooling.
        padding2 = 0 if (smallest - 4 + 2 * padding1) // 2 >= 6 else 2
        self.conv1 = nn.Conv2d(in_channels, channels1, 5, padding=padding1)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels1, channels2, 5, padding=padding2)
        self.act2 = nn.ReLU()
        rows, columns = (((n - 4 + 2 * padding1) // 2 - 4 + 2 * padding2) // 2 for n in sides)
        self.fc1 = nn.Linear(channels2 * rows * columns, units1)
        self.act3 = nn.ReLU()
        self.fc2 = nn.Linear(units1, units2)
        self.act4 = nn.ReLU()
        self.head = nn.Linear(units2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act1(self.conv1(x)), 2)
        x = F.max_pool2d(self.act2(self.conv2(x)), 2)
        x = self.act3(self.fc1(x.flatten(1)))
        return self.head(self.act4(self.fc2(x)))


lenet = LeNet
