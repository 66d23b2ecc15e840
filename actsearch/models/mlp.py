"""A plain multi-layer perceptron, for feature vectors, small images and teacher-student problems."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from actsearch.errors import SettingsError


def mlp(in_features: int, num_classes: int = 10, hidden: Sequence[int] = (256, 128)) -> nn.Sequential:
    """Linear layers of `hidden` units, each followed by its own activation `act1`, `act2`, …, and a linear head.

    Takes (B, …) with `in_features` numbers an example, flattens them, and returns (B, num_classes).
    Raises SettingsError for a size below 1.
    """
    sizes = [in_features, *hidden]
    if min(*sizes, num_classes) < 1:
        raise SettingsError(f"an MLP needs layers of at least one unit, not {[*sizes, num_classes]}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (n, m) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(n, m)
        layers[f"act{i}"] = nn.ReLU()
    layers["head"] = nn.Linear(sizes[-1], num_classes)
    return nn.Sequential(layers)
