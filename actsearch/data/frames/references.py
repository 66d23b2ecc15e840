"""Energies of single atoms, which are taken off a total before a model learns the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from actsearch.errors import DataError
from actsearch.forcefield.frames import Frame


def least_squares(frames: Sequence[Frame]) -> dict[int, float]:
    """Energy of each element, eV, that best adds up to the total energies of `frames`, in float64.

    Where compositions do not tell the elements apart, as in frames of one molecule, it is the solution of least norm:
    the energy is then shared in proportion to the counts of atoms. Frames without an energy do not count.
    Raises DataError if no frame has one, or an element occurs only where none is known.
    """
    known = [frame for frame in frames if np.isfinite(frame.energy)]
    elements = elements_of(known)
    if not known or elements != elements_of(frames):
        raise DataError("references need a training frame with an energy for every element")
    counts = np.array([[np.count_nonzero(frame.numbers == z) for z in elements] for frame in known], dtype=np.float64)
    energies = np.array([frame.energy for frame in known], dtype=np.float64)
    found = np.linalg.lstsq(counts, energies, rcond=None)[0]
    return {z: float(energy) for z, energy in zip(elements, found, strict=True)}


def isolated(frames: Sequence[Frame], energies: Mapping[int, float] | None) -> dict[int, float]:
    """Those of the isolated atoms' `energies`, eV, whose elements occur. Raises DataError if one is not known."""
    elements = elements_of(frames)
    if lacking := [z for z in elements if z not in (energies or {})]:
        raise DataError(
            f"the set does not tell the energy of isolated atoms of elements {lacking}: use references=least_squares"
        )
    assert energies is not None
    return {z: float(energies[z]) for z in elements}


def elements_of(frames: Sequence[Frame]) -> tuple[int, ...]:
    """Atomic numbers that occur, ascending."""
    return tuple(sorted({int(z) for frame in frames for z in np.unique(frame.numbers)}))
