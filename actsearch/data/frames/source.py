"""What a reader of frames hands over, and what readers have in common: where files lie, and how frames are divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actsearch.data.split import stratified
from actsearch.errors import DataError, SettingsError
from actsearch.forcefield.frames import Frame


@dataclass(frozen=True)
class FrameSource:
    """Frames in eV and Å; `isolated` is the energy of a lone atom by atomic number, where the set tells it."""

    title: str
    train: Sequence[Frame]
    test: Sequence[Frame]
    isolated: Mapping[int, float] | None = None


def find(root: Path, folder: str, origin: str, *wanted: str) -> Path:
    """The set's own folder, which holds the files `wanted`: `root` itself, or `folder` in it or in its forcefield/.

    Raises DataError, which names the `origin` of the files, if it is in none of these.
    """
    for place in (root, root / folder, root / "forcefield" / folder):
        if all((place / file).is_file() for file in wanted):
            return place
    places = f"{root}, {root / folder} or {root / 'forcefield' / folder}"
    raise DataError(
        f"no {' and '.join(wanted)} in {places}: get it from {origin}, and set root to its folder, or ACTSEARCH_DATA "
        "to the folder that holds all data"
    )


def kinds(frames: Sequence[Frame]) -> NDArray[np.int64]:
    """Of each frame its kind, counted from 0: frames of one kind have the same composition and group."""
    seen: dict[tuple[str, frozenset[tuple[int, int]]], int] = {}
    keys = [(frame.group, frozenset(Counter(frame.numbers.tolist()).items())) for frame in frames]
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def identity(frame: Frame) -> bytes:
    """The same for frames of the same atoms at the same places."""
    return b"".join(array.tobytes() for array in (frame.numbers, frame.positions, frame.cell, frame.pbc))


def divide(frames: Sequence[Frame], test_fraction: float, split_seed: int) -> tuple[list[Frame], list[Frame]]:
    """Training and test frames of a set without an official split, each kind in proportion, chosen by `split_seed`.

    Of frames that repeat each other the first is kept. Raises SettingsError if either part would be empty.
    """
    frames = list({identity(frame): frame for frame in reversed(frames)}.values())[::-1]
    size = round(len(frames) * test_fraction)
    if not 0 < size < len(frames):
        raise SettingsError(f"test_fraction {test_fraction} of {len(frames)} frames leaves a part empty")
    chosen = np.zeros(len(frames), dtype=bool)
    chosen[stratified(kinds(frames), size, split_seed)] = True
    train = [frame for frame, is_test in zip(frames, chosen, strict=True) if not is_test]
    return train, [frame for frame, is_test in zip(frames, chosen, strict=True) if is_test]
