"""The pre-activation ResNet-18 (He et al. 2016b, arXiv:1603.05027) for 32×32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError


class PreActBlock(nn.Module):
    """Normalisation and activation before each 3×3 convolution: (B, in_channels, H, W) → (B, channels, H/s, W/s).

    Where the shape changes, the shortcut is a 1×1 convolution of the activated input; elsewhere it is the raw input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride > 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.bn1(x))
        residual = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class PreActResNet(nn.Module):
    """Four stages of two blocks with 1, 2, 4, 8 times `width` channels: (B, in_channels, H, W) → (B, num_classes).

    Raises SettingsError for a size below 1.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if min(num_classes, in_channels, width) < 1:
            raise SettingsError("a pre-activation ResNet needs num_classes, in_channels and width of at least 1")
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        blocks, before = [], width
        for stage in range(4):
            channels = width * 2**stage
            blocks += [PreActBlock(before, channels, 1 if stage == 0 else 2), PreActBlock(channels, channels, 1)]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(before)
        self.act = nn.ReLU()
        self.head = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.blocks(self.conv(x))))
        return self.head(torch.mean(x, dim=(2, 3)))


def preact_resnet18(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> PreActResNet:
    """Pre-activation ResNet-18, 11.2 million parameters at width 64."""
    return PreActResNet(num_classes, in_channels, width)
