"""Models by name. A new one is a file in this folder and a line in `_BUILDERS`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from actsearch.errors import SettingsError, UnknownNameError, unknown_name
from actsearch.models.lenet import lenet
from actsearch.models.mlp import mlp
from actsearch.models.resnet import resnet8, resnet20, resnet32, resnet44, resnet56

__all__ = ["build", "lenet", "mlp", "names", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "mlp": mlp,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
}


def names() -> list[str]:
    """The names that `build` knows."""
    return sorted(_BUILDERS)


def build(
    name: str, *, num_classes: int, in_channels: int, image_size: int | tuple[int, int], **options: Any
) -> nn.Module:
    """Build the model `name` for images (B, in_channels, image_size, image_size), or (height, width), and num_classes.

    A builder is handed those of the facts about the data that its signature names (`in_features` is the product of
    the shape); `options` are its other arguments, such as `width` or `hidden`.
    Raises UnknownNameError for an unknown model and SettingsError for an unknown option.
    """
    if name not in _BUILDERS:
        raise UnknownNameError("model", name, _BUILDERS)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    facts = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "in_features": math.prod((in_channels, height, width)),
    }
    accepted = inspect.signature(_BUILDERS[name]).parameters
    known = [p for p in accepted if p not in facts]
    for option in options:
        if option not in known:
            raise SettingsError(
                f"{unknown_name(f'option of model {name}', option, known)} (options: {', '.join(known)})"
            )
    return _BUILDERS[name](**{k: v for k, v in facts.items() if k in accepted}, **options)
