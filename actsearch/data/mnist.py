"""MNIST (LeCun et al. 1998), KMNIST (arXiv:1812.01718) and Fashion-MNIST (arXiv:1708.07747): 60k/10k of 1×28×28."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision import datasets

from actsearch.data.download import download_into
from actsearch.data.idx import read_idx
from actsearch.data.source import Source, Split, in_bytes, vision_root
from actsearch.errors import DataError


def mnist(root: Path) -> Source:
    return _read(datasets.MNIST, "MNIST", root, mean=0.1307, std=0.3081)


def kmnist(root: Path) -> Source:
    return _read(datasets.KMNIST, "KMNIST", root, mean=0.1918, std=0.3483)


def fashion_mnist(root: Path) -> Source:
    return _read(datasets.FashionMNIST, "Fashion-MNIST", root, mean=0.2860, std=0.3530)


def _read(kind: type[datasets.MNIST], title: str, root: Path, mean: float, std: float) -> Source:
    """Read <root>/<class name>/raw/*-ubyte[.gz] where they lie, after torchvision downloaded them if one is missing."""
    root = vision_root(root)
    raw = root / kind.__name__ / "raw"
    missing = [name for name, _ in kind.resources if not _packed_or_not(raw / name)]
    if missing:
        url = kind.mirrors[0] + missing[0]
        download_into(root, lambda folder: kind(folder, download=True), title, raw / missing[0], url)
    arrays = []
    for name, _ in kind.resources:
        path = _packed_or_not(raw / name)
        if path is None:
            raise DataError(f"{title}: no {raw / name} even after its download; put the file there")
        arrays.append(read_idx(path))
    train, test = (_split(title, raw, *pair) for pair in (arrays[:2], arrays[2:]))
    return Source(title, train, test, num_classes=10, mean=in_bytes((mean,)), std=in_bytes((std,)))


def _packed_or_not(path: Path) -> Path | None:
    return next((p for p in (path, path.with_suffix("")) if p.is_file()), None)


def _split(title: str, raw: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{title}: images {images.shape} and labels {labels.shape} in {raw} do not fit; fetch them again"
        )
    return Split.of(images[:, None], labels)
