"""What a data set hands over, whatever it was read from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actsearch.data.augment import NO_AUGMENT, Augment
from actsearch.data.split import stratified


@dataclass(frozen=True)
class Split:
    """Labels (N,), and the images of the wanted ones of them: pixels(indices) → (n, C, H, W) or features (n, F).

    The images come on demand, so that a subset of a compressed set decodes only itself. uint8 or float32.
    """

    labels: np.ndarray
    pixels: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray) -> Split:
        """The split of images (N, …) that are in memory already."""
        return cls(np.asarray(labels, dtype=np.int64), lambda indices: images[indices])


@dataclass(frozen=True)
class Source:
    """A data set in its raw units. `mean` and `std`, one a channel, are published values; None: measure them."""

    title: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Augment = NO_AUGMENT


def divide(images: np.ndarray, labels: np.ndarray, split_seed: int) -> tuple[Split, Split]:
    """A stratified 80/20 division into training and test examples, for sets that come without one."""
    train = stratified(labels, round(0.8 * len(labels)), split_seed)
    test = np.setdiff1d(np.arange(len(labels)), train)
    return Split.of(images[train], labels[train]), Split.of(images[test], labels[test])


def in_bytes(values: tuple[float, ...]) -> tuple[float, ...]:
    """Statistics published for pixels in [0, 1], in the units of uint8 pixels."""
    return tuple(255 * v for v in values)


def default_root() -> Path:
    """The folder of all data sets: the environment's ACTSEARCH_DATA, else ~/.cache/actsearch/data."""
    return Path(os.environ.get("ACTSEARCH_DATA") or "~/.cache/actsearch/data").expanduser()


def vision_root(root: Path) -> Path:
    """Image sets may have a folder of their own, `vision`, in a root shared with text and force fields."""
    return root / "vision" if (root / "vision").is_dir() else root
