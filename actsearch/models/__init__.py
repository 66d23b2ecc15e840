"""Models by name. A new one is a file in this folder and a line in `_BUILDERS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from actsearch.errors import SettingsError, UnknownNameError, unknown_name
from actsearch.forcefield.ani import ANI2
from actsearch.forcefield.chgnet import CHGNet
from actsearch.forcefield.deep_potential import DeepPotential
from actsearch.forcefield.painn import PaiNN
from actsearch.models.init import scale_weights
from actsearch.models.lenet import lenet, lenet_wide
from actsearch.models.minigpt import gpt, minigpt, smallgpt, tinygpt
from actsearch.models.mlp import mlp
from actsearch.models.pinn import pinn_mlp
from actsearch.models.preact import preact_resnet18
from actsearch.models.resnet import resnet8, resnet20, resnet32, resnet44, resnet56
from actsearch.models.vit import vit, vit_small, vit_tiny

__all__ = [
    "build",
    "gpt",
    "lenet",
    "lenet_wide",
    "minigpt",
    "mlp",
    "names",
    "pinn_mlp",
    "preact_resnet18",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "scale_weights",
    "smallgpt",
    "tinygpt",
    "vit",
    "vit_small",
    "vit_tiny",
]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "ani2": ANI2,
    "chgnet": CHGNet,
    "deep_potential": DeepPotential,
    "gpt": gpt,
    "lenet": lenet,
    "lenet_wide": lenet_wide,
    "minigpt": minigpt,
    "mlp": mlp,
    "painn": PaiNN,
    "pinn_mlp": pinn_mlp,
    "preact_resnet18": preact_resnet18,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "smallgpt": smallgpt,
    "tinygpt": tinygpt,
    "vit": vit,
    "vit_small": vit_small,
    "vit_tiny": vit_tiny,
}

# What data may know, by the kind of data that knows it.
_FACTS = {
    "images": ("num_classes", "in_channels", "image_size", "in_features"),
    "text": ("vocab_size", "context"),
    "equations": ("domain",),
    "frames": ("elements", "cutoff", "references", "sample"),
}


def names() -> list[str]:
    """The names that `build` knows."""
    return sorted(_BUILDERS)


def build(name: str, facts: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build the model `name` for data of which `facts` are known (see `facts` of the data modules).

    A builder is handed those facts that its signature names: num_classes, in_channels, image_size (one side, or
    (height, width)) and in_features (the product of the shape) of images; vocab_size and context of text; the
    domain, (low, high) of each coordinate, of equations; elements (atomic numbers), cutoff (Å), references (eV of an
    atom of each element) and sample (a FrameBatch of training frames) of frames.
    `options` are its other arguments, such as `width` or `hidden`.
    Raises UnknownNameError for an unknown model, and SettingsError for an unknown option or data of another kind.
    """
    if name not in _BUILDERS:
        raise UnknownNameError("model", name, _BUILDERS)
    accepted = inspect.signature(_BUILDERS[name]).parameters
    for kind, known_of_kind in _FACTS.items():
        lacking = [fact for fact in known_of_kind if fact in accepted and fact not in facts]
        if lacking:
            raise SettingsError(
                f"model {name} needs {kind} ({', '.join(lacking)}); the data gives {' and '.join(facts) or 'nothing'}"
            )
    given = {fact for known_of_kind in _FACTS.values() for fact in known_of_kind if fact in accepted}
    known = [p for p in accepted if p not in given]
    for option in options:
        if option not in known:
            raise SettingsError(
                f"{unknown_name(f'option of model {name}', option, known)} (options: {', '.join(known) or 'none'})"
            )
    try:
        return _BUILDERS[name](**{fact: facts[fact] for fact in given}, **options)
    except TypeError as error:
        raise SettingsError(f"an option of model {name} is of the wrong kind ({error}): {options}") from error
