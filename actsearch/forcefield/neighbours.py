"""Neighbour lists, by vesin (BSD-3-Clause)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actsearch.errors import MissingPackageError, SettingsError

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def neighbours(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> Pairs:
    """Every pair of atoms nearer than `cutoff`, in both directions, sorted by centre.

    Args:
        positions: (n, 3) Å, inside the cell or not.
        cell, pbc: (3, 3) Å, rows are vectors, and (3,) along which of them the atoms repeat.
        cutoff: Å.

    Returns centre (E,), neighbour (E,) and shift (E, 3) in whole cells: the neighbour is at
    positions[neighbour] + shift @ cell. An atom is its own neighbour across a small cell.
    Raises SettingsError for a cutoff that is not above 0, and MissingPackageError without vesin.
    """
    if not 0 < cutoff < np.inf:
        raise SettingsError(f"a cutoff is a distance in Å above 0, not {cutoff}")
    try:
        from vesin import NeighborList
    except ImportError:
        raise MissingPackageError("vesin", "forcefield", "a neighbour list") from None
    box = cell if pbc.any() else np.zeros((3, 3))
    finder = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    i, j, shift = finder.compute(points=positions, box=box, periodic=pbc, quantities="ijS")
    # Within one centre vesin leaves the order open; sums over neighbours must not depend on it.
    order = np.lexsort((*shift.T, j, i))
    return i[order].astype(np.int64), j[order].astype(np.int64), shift[order].astype(np.int64)
