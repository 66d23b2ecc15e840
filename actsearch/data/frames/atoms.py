"""Frames from ase's Atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from actsearch.errors import DataError
from actsearch.forcefield.frames import Array, Frame


def frame_of(atoms: Any, known: Mapping[str, Any], group: str = "") -> Frame:
    """The frame of an `ase.Atoms` with what is `known` of it: energy (eV), forces (eV/Å), stress (eV/Å³).

    Stress is (3, 3), or ase's six numbers xx, yy, zz, yz, xz, xy. Raises DataError for other shapes.
    """
    return Frame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
        energy=float(known.get("energy", np.nan)),
        forces=None if known.get("forces") is None else np.array(known["forces"], dtype=np.float64),
        stress=None if known.get("stress") is None else _square(np.array(known["stress"], dtype=np.float64)),
        group=group,
    )


def _square(stress: Array) -> Array:
    if stress.shape == (6,):
        xx, yy, zz, yz, xz, xy = stress
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if stress.size != 9:
        raise DataError(f"a stress has 6 or 9 numbers, not {stress.size}")
    return stress.reshape(3, 3)
