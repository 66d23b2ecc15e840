"""The multi-layer perceptron of physics-informed networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError


class ScaledInput(nn.Module):
    """Maps a box (low, high) of each coordinate onto [-1, 1]: (B, d) → (B, d)."""

    centre: Tensor
    radius: Tensor

    def __init__(self, domain: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        low, high = torch.tensor(domain, dtype=torch.get_default_dtype()).unbind(1)
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("radius", (high - low) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.radius


def pinn_mlp(
    domain: Sequence[tuple[float, float]], layers: int = 6, width: int = 20, outputs: int = 1
) -> nn.Sequential:
    """`layers` linear layers of `width` units, each followed by a tanh `act1`, `act2`, …, and a linear `head`.

    Takes points (B, d) of `domain`, (low, high) of each coordinate, scales them to [-1, 1], and returns (B, outputs).
    Weights start at a normal distribution cut at two standard deviations, with Xavier's, √(2 / (n + m)), biases at 0,
    as in the released code of Raissi et al. 2019 and Jagtap et al. 2020 (arXiv 1909.12228).
    Raises SettingsError for a size below 1.
    """
    if min(layers, width, outputs) < 1:
        raise SettingsError(f"an MLP needs layers of at least one unit, not {layers} × {width} and {outputs} outputs")
    modules: OrderedDict[str, nn.Module] = OrderedDict(scale=ScaledInput(domain))
    size = len(domain)
    for i in range(1, layers + 1):
        modules[f"fc{i}"] = _linear(size, width)
        modules[f"act{i}"] = nn.Tanh()
        size = width
    modules["head"] = _linear(size, outputs)
    return nn.Sequential(modules)


def _linear(n: int, m: int) -> nn.Linear:
    layer = nn.Linear(n, m)
    std = (2 / (n + m)) ** 0.5
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer
