"""Data sets by name: a reader's arguments are `root` if it reads files, and its own options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actsearch.data.cifar10_jpeg import cifar10_jpeg
from actsearch.data.digits import digits
from actsearch.data.folder import folder
from actsearch.data.mnist import fashion_mnist, kmnist, mnist
from actsearch.data.npz import npz
from actsearch.data.source import Source
from actsearch.data.torchvision_sets import cifar10, cifar100, semeion, svhn
from actsearch.errors import SettingsError, UnknownNameError, unknown_name

_READERS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "mnist": mnist,
    "kmnist": kmnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar10_jpeg": cifar10_jpeg,
    "cifar100": cifar100,
    "svhn": svhn,
    "semeion": semeion,
    "npz": npz,
    "folder": folder,
}


def names() -> list[str]:
    """The data sets that `ImageData` knows."""
    return sorted(_READERS)


def check(name: str, options: dict[str, Any]) -> None:
    """Raise UnknownNameError for an unknown data set and SettingsError for an option that its reader does not have."""
    if name not in _READERS:
        raise UnknownNameError("data set", name, _READERS)
    known = [p for p in inspect.signature(_READERS[name]).parameters if p != "root"]
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise SettingsError(f"{unknown_name(f'option of data set {name}', option, known)} (options: {listed})")


def read(name: str, root: Path, options: dict[str, Any]) -> Source:
    """Read the data set `name` from `root`. Raises DataError if it is not there, or not what its name promises."""
    check(name, options)
    reader = _READERS[name]
    where = {"root": root} if "root" in inspect.signature(reader).parameters else {}
    return reader(**where, **options)
