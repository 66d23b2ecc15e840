"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), SVHN (Netzer et al. 2011) and Semeion, read by torchvision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from actsearch.data.augment import Augment
from actsearch.data.download import download_into
from actsearch.data.source import Source, Split, divide, in_bytes, vision_root

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR_AUGMENT = Augment(padding=4, flip=True)


def cifar10(root: Path) -> Source:
    train, test = _cifar(datasets.CIFAR10, "CIFAR-10", vision_root(root))
    return Source("CIFAR-10", train, test, 10, in_bytes(CIFAR_MEAN), in_bytes(CIFAR_STD), CIFAR_AUGMENT)


def cifar100(root: Path) -> Source:
    train, test = _cifar(datasets.CIFAR100, "CIFAR-100", vision_root(root))
    mean, std = in_bytes((0.5071, 0.4865, 0.4409)), in_bytes((0.2673, 0.2564, 0.2762))
    return Source("CIFAR-100", train, test, 100, mean, std, CIFAR_AUGMENT)


def svhn(root: Path) -> Source:
    """Cropped house numbers; a crop only, because mirrored digits are not digits."""

    def read(part: str) -> Split:
        url, file, _ = datasets.SVHN.split_list[part]
        folder = vision_root(root)
        data = _read(lambda at, **how: datasets.SVHN(at, split=part, **how), "SVHN", folder, file, url)
        return Split.of(np.ascontiguousarray(data.data), data.labels)

    mean, std = in_bytes((0.4377, 0.4438, 0.4728)), in_bytes((0.1980, 0.2010, 0.1970))
    return Source("SVHN", read("train"), read("test"), 10, mean, std, Augment(padding=4))


def semeion(root: Path, split_seed: int = 0) -> Source:
    """1,593 binary digits of 1×16×16, divided 80/20 because there is no official split."""
    kind = datasets.SEMEION
    data = _read(kind, "Semeion", vision_root(root), kind.filename, kind.url)
    train, test = divide(data.data[:, None], data.labels, split_seed)
    return Source("Semeion", train, test, num_classes=10)


def _cifar(kind: type[datasets.CIFAR10], title: str, root: Path) -> tuple[Split, Split]:
    def read(train: bool) -> Split:
        data = _read(lambda at, **how: kind(at, train=train, **how), title, root, kind.filename, kind.url)
        return Split.of(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets))

    return read(True), read(False)


def _read(load: Callable[..., Any], title: str, root: Path, file: str, url: str) -> Any:
    """`load(root)`, after a download to `root` if torchvision does not find the set there or its checksum is wrong."""

    def fetch(folder: Path) -> None:
        if (root / file).is_file():
            (folder / file).symlink_to((root / file).resolve())  # an archive that lies there needs only unpacking
        load(folder, download=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*align.*")  # numpy 2.4 about the old pickles of CIFAR
        try:
            return load(root, download=False)
        except RuntimeError:
            download_into(root, fetch, title, root / file, url)
        return load(root, download=False)
