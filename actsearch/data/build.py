"""The door to all data: a data module by the name of its set."""

from __future__ import annotations

import inspect
from typing import Any

from actsearch.data.frames.module import FrameData
from actsearch.data.module import ImageData
from actsearch.data.pde.module import PointData
from actsearch.data.registry import KINDS, names
from actsearch.data.text import TextData
from actsearch.errors import SettingsError, UnknownNameError

AnyData = ImageData | TextData | PointData | FrameData
_MODULES: dict[str, type[AnyData]] = {
    "images": ImageData,
    "text": TextData,
    "equations": PointData,
    "frames": FrameData,
}


def build(name: str, **options: Any) -> AnyData:
    """The data module that fits the set `name`, with its own arguments; None stands for an argument's default.

    Raises UnknownNameError for an unknown set, and SettingsError for an option that is not its own.
    """
    kind = next((kind for kind, readers in KINDS.items() if name in readers), None)
    if kind is None:
        raise UnknownNameError("data set", name, names())
    given = {key: value for key, value in options.items() if value is not None}
    own = _arguments(_MODULES[kind])
    for option in given:
        others = [other for other, module in _MODULES.items() if option in _arguments(module)]
        if others and option not in own:
            raise SettingsError(f"{option} is for {' and '.join(others)}; the data set {name} holds {kind}")
    try:
        return _MODULES[kind](name, **given)
    except TypeError as error:
        raise SettingsError(f"an option of data set {name} is of the wrong kind ({error})") from error


def _arguments(module: type) -> set[str]:
    return set(inspect.signature(module).parameters)
