"""Revised MD17: molecules at 500 K with well converged DFT."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from actsearch.data.frames.source import FrameSource, find
from actsearch.data.frames.units import kcal_per_mol
from actsearch.errors import DataError, SettingsError, UnknownNameError
from actsearch.forcefield.frames import Frame

MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
ORIGIN = "github.com/andersx/rmd17-npz (figshare 12672038)"


def rmd17(root: Path, molecule: str = "ethanol", split: int = 1) -> FrameSource:
    """A molecule of rMD17 and its official split 1 to 5: 1,000 frames to train and 1,000 to test, PBE/def2-SVP.

    Files rmd17_MOLECULE_train_01.npz and …_test_01.npz, in kcal/mol and Å. Christensen and von Lilienfeld, arXiv
    2007.09593, whose authors advise against training on more than 1,000 frames of one trajectory.
    """
    if molecule not in MOLECULES:
        raise UnknownNameError("molecule of rmd17", str(molecule), MOLECULES)
    if split not in range(1, 6):
        raise SettingsError(f"split of rmd17 must be from 1 to 5, not {split}")
    names = [f"rmd17_{molecule}_{part}_{split:02d}.npz" for part in ("train", "test")]
    place = find(root, "rmd17", ORIGIN, *names)
    return FrameSource(f"rMD17 {molecule} (split {split})", _read(place / names[0]), _read(place / names[1]))


def _read(path: Path) -> list[Frame]:
    unit = kcal_per_mol()
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers = file["nuclear_charges"].astype(np.int64)
            positions = file["coords"].astype(np.float64)
            energies = file["energies"].astype(np.float64) * unit
            forces = file["forces"].astype(np.float64) * unit
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no file of rMD17 ({error}): get it anew from {ORIGIN}") from error
    if not len(positions) == len(energies) == len(forces):
        raise DataError(f"{path}: coords, energies and forces must be of the same number of frames")
    return [
        Frame(numbers=numbers, positions=x, energy=float(energy), forces=force)
        for x, energy, force in zip(positions, energies, forces, strict=True)
    ]
