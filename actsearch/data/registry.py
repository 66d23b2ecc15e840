"""Data sets by name: a reader's arguments are `root` if it reads files, and its own options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actsearch.data.cifar10_jpeg import cifar10_jpeg
from actsearch.data.digits import digits
from actsearch.data.folder import folder
from actsearch.data.frames.ani import ani1
from actsearch.data.frames.copper import copper
from actsearch.data.frames.deepmd import deepmd, water
from actsearch.data.frames.ethanol import ethanol
from actsearch.data.frames.mlearn import mlearn
from actsearch.data.frames.rmd17 import rmd17
from actsearch.data.frames.xyz import xyz
from actsearch.data.mnist import fashion_mnist, kmnist, mnist
from actsearch.data.npz import npz
from actsearch.data.pde import Burgers, Heat, Poisson
from actsearch.data.text_sources import python_reference, text, tinyshakespeare, tinystories
from actsearch.data.torchvision_sets import cifar10, cifar100, semeion, svhn
from actsearch.errors import SettingsError, UnknownNameError, unknown_name

Readers = Mapping[str, Callable[..., Any]]

# Each gives a Source.
IMAGES: Readers = {
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
# Each gives a TextSource.
TEXTS: Readers = {
    "python_reference": python_reference,
    "tinyshakespeare": tinyshakespeare,
    "tinystories": tinystories,
    "text": text,
}
# Each gives a Problem, and reads nothing.
EQUATIONS: Readers = {"burgers": Burgers, "heat": Heat, "poisson": Poisson}
# Each gives a FrameSource; ethanol and copper are made, and read nothing.
FRAMES: Readers = {
    "ani1": ani1,
    "copper": copper,
    "deepmd": deepmd,
    "ethanol": ethanol,
    "mlearn": mlearn,
    "rmd17": rmd17,
    "water": water,
    "xyz": xyz,
}
KINDS: Mapping[str, Readers] = {"images": IMAGES, "text": TEXTS, "equations": EQUATIONS, "frames": FRAMES}


def names(kind: str | None = None) -> list[str]:
    """The data sets that `actsearch.data.build` knows.

    Of `kind` "images" (ImageData), "text" (TextData), "equations" (PointData) or "frames" (FrameData), or all.
    """
    if kind is None:
        return sorted(name for readers in KINDS.values() for name in readers)
    if kind not in KINDS:
        raise UnknownNameError("kind of data", str(kind), KINDS)
    return sorted(KINDS[kind])


def check(readers: Readers, name: str, options: Mapping[str, Any]) -> None:
    """Raise UnknownNameError for an unknown data set and SettingsError for an option that its reader does not have."""
    if name not in readers:
        raise UnknownNameError("data set", name, readers)
    known = [p for p in inspect.signature(readers[name]).parameters if p != "root"]
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise SettingsError(f"{unknown_name(f'option of data set {name}', option, known)} (options: {listed})")


def read(readers: Readers, name: str, root: Path, options: Mapping[str, Any]) -> Any:
    """Read the data set `name` from `root`. Raises DataError if it is not there, or not what its name promises."""
    check(readers, name, options)
    reader = readers[name]
    where = {"root": root} if "root" in inspect.signature(reader).parameters else {}
    try:
        return reader(**where, **options)
    except TypeError as error:
        raise SettingsError(f"an option of data set {name} is of the wrong kind ({error}): {options}") from error
