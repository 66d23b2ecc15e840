"""The door to all data: a data module by the name of its set."""

from __future__ import annotations

import inspect
from typing import Any

from actsearch.data.module import ImageData
from actsearch.data.registry import IMAGES, TEXTS
from actsearch.data.text import TextData
from actsearch.errors import SettingsError, UnknownNameError


def build(name: str, **options: Any) -> ImageData | TextData:
    """ImageData or TextData for the set `name`, with the arguments of either; None stands for an argument's default.

    Raises UnknownNameError for an unknown set, and SettingsError for an option that is not its own.
    """
    if name not in IMAGES and name not in TEXTS:
        raise UnknownNameError("data set", name, [*IMAGES, *TEXTS])
    given = {key: value for key, value in options.items() if value is not None}
    own, other = (ImageData, TextData) if name in IMAGES else (TextData, ImageData)
    kind, other_kind = ("images", "text") if name in IMAGES else ("text", "images")
    for option in given:
        if option in _arguments(other) and option not in _arguments(own):
            raise SettingsError(f"{option} is for {other_kind}; the data set {name} holds {kind}")
    return own(name, **given)


def _arguments(module: type) -> set[str]:
    return set(inspect.signature(module).parameters)
