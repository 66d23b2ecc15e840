"""A user's own frames in files of extended xyz, such as those of BOTNet and MACE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from actsearch.data.frames.atoms import frame_of
from actsearch.data.frames.source import FrameSource, divide
from actsearch.errors import DataError, MissingPackageError, SettingsError
from actsearch.forcefield.frames import Frame


def xyz(
    root: Path,
    train: str = "train.xyz",
    test: str | None = None,
    isolated: str | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
    prefix: str = "",
) -> FrameSource:
    """Read files in eV and Å by ase; paths are relative to `root`, and `train` may be several, separated by blanks.

    test: such files too. Without, `test_fraction` of the frames in `train` is held out by `split_seed`, each kind in
        proportion.
    isolated: a file of single atoms, whose energies are the references with `references=isolated`.
    prefix: of the keys energy, forces and stress, as in REF_energy.

    `config_type` becomes a frame's group. Raises DataError for a file that is not there, or that ase cannot read.
    """
    if not train.split():
        raise SettingsError("train of xyz must name a file")
    frames = [frame for name in train.split() for frame in read_xyz(root / name, prefix)]
    alone = None if isolated is None else _isolated(root / isolated, prefix)
    if test is None:
        return FrameSource(root.name, *divide(frames, test_fraction, split_seed), alone)
    held_out = [frame for name in test.split() for frame in read_xyz(root / name, prefix)]
    return FrameSource(Path(train.split()[0]).stem, frames, held_out, alone)


def read_xyz(path: Path, prefix: str = "") -> list[Frame]:
    """All frames of a file, with what it tells of energy (eV), forces (eV/Å) and stress (eV/Å³)."""
    try:
        from ase.io import ParseError, read
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "reading xyz files") from None
    if not path.is_file():
        raise DataError(f"no file {path}: set root to its folder, and train and test to names in it")
    try:
        return [_frame(atoms, prefix) for atoms in read(path, index=":", format="extxyz")]
    except (ParseError, ValueError, KeyError, IndexError, OSError) as error:
        raise DataError(f"{path} cannot be read as extended xyz: {error}") from error


def _frame(atoms: Any, prefix: str) -> Frame:
    known = dict(atoms.calc.results) if atoms.calc is not None else {}
    if prefix:
        found = {**atoms.info, **atoms.arrays}
        known = {key: found[prefix + key] for key in ("energy", "forces", "stress") if prefix + key in found}
    return frame_of(atoms, known, str(atoms.info.get("config_type", "")))


def _isolated(path: Path, prefix: str) -> dict[int, float]:
    frames = read_xyz(path, prefix)
    if any(len(frame.numbers) != 1 or np.isnan(frame.energy) for frame in frames):
        raise DataError(f"{path} must hold single atoms with their energies")
    return {int(frame.numbers[0]): frame.energy for frame in frames}
