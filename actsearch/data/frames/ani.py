"""Molecules of ANI-1 with one heavy atom: methane, ammonia and water."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actsearch.data.frames.source import FrameSource, divide, find
from actsearch.data.frames.units import hartree
from actsearch.errors import DataError, MissingPackageError
from actsearch.forcefield.frames import Frame

ORIGIN = "github.com/tratohecho3/Machine-Learning, or the release of ANI-1 (figshare collection 3846712)"
# Files whose `forces` are known to be gradients.
_GRADIENTS = ("gdb11_S01_06r.h5",)


def ani1(root: Path, file: str = "gdb11_S01_06r.h5", test_fraction: float = 0.1, split_seed: int = 0) -> FrameSource:
    """Conformations by wB97X/6-31G(d), divided by `split_seed`, each molecule in proportion; no split is official.

    `file` "gdb11_S01_06r.h5" has forces, "ani_gdb_s01.h5" (of the release) has not; both are in Hartree and Å. What the
    first calls `forces` is the gradient +∂E/∂x, which is negated here, and 1,897 of its 4,366 conformations repeat
    others to the bit: only the first of each is kept, else training would hold half of the test part. What is left is
    drawn at random around three minima and much alike: an error on the test part says little of other molecules.
    Smith et al., Sci. Data 4:170193 (2017).
    Raises DataError for a file of another layout, or with `forces` of unknown sign.
    """
    frames = _read(find(root, "ani1_s01", ORIGIN, file) / file)
    return FrameSource(f"ANI-1 ({Path(file).stem})", *divide(frames, test_fraction, split_seed))


def _read(path: Path) -> list[Frame]:
    try:
        import h5py
    except ImportError:
        raise MissingPackageError("h5py", "forcefield", "reading ANI files") from None
    try:
        with h5py.File(path) as file:
            molecules: list[Any] = []
            file.visititems(lambda _, node: molecules.append(node) if _is_molecule(node) else None)
            frames = [frame for molecule in molecules for frame in _frames(molecule, path)]
    except (OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read as an ANI file ({error}): get it anew from {ORIGIN}") from error
    if not frames:
        raise DataError(f"{path} holds no group with species, coordinates and energies, as ANI-1 files do")
    return frames


def _is_molecule(node: Any) -> bool:
    return hasattr(node, "keys") and {"species", "coordinates", "energies"} <= set(node.keys())


def _frames(molecule: Any, path: Path) -> list[Frame]:
    numbers = _numbers([symbol.decode() for symbol in molecule["species"][:]])
    positions = molecule["coordinates"][:].astype(np.float64)
    energies = molecule["energies"][:].astype(np.float64) * hartree()
    forces: list[NDArray[np.float64] | None] = [None] * len(positions)
    if "forces" in molecule:
        if path.name not in _GRADIENTS:
            raise DataError(f"{path}: the sign of its `forces` is unknown; only those of {_GRADIENTS[0]} are")
        forces = list(-molecule["forces"][:].astype(np.float64) * hartree())
    if not len(positions) == len(energies) == len(forces):
        raise DataError(f"{path}: coordinates, energies and forces must be of the same number of conformations")
    return [
        Frame(numbers=numbers, positions=x, energy=float(energy), forces=force)
        for x, energy, force in zip(positions, energies, forces, strict=True)
    ]


def _numbers(symbols: list[str]) -> NDArray[np.int64]:
    try:
        from ase.symbols import symbols2numbers
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "reading ANI files") from None
    return np.array(symbols2numbers(symbols), dtype=np.int64)
