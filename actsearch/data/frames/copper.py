"""Copper by effective-medium theory, made on the spot: no file is needed, and nothing but ase."""

from __future__ import annotations

from typing import Any

import numpy as np

from actsearch.data.frames.dynamics import GAP, earlier_and_later, labelled, langevin_frames, parted
from actsearch.data.frames.source import FrameSource
from actsearch.errors import MissingPackageError, SettingsError
from actsearch.forcefield.frames import Frame


def copper(frames: int = 120, temperature: float = 600.0, trajectory_seed: int = 0) -> FrameSource:
    """A crystal of 3 × 3 × 3 primitive cells (27 atoms) with energy, forces and stress; four fifths train, one tests.

    Half of the frames are `strained` (up to 5 %) and rattled (0.1 Å), each drawn on its own; half are `heated`: every
    50 fs a frame of a trajectory at `temperature` (K), of which the earlier part trains and the later one tests, with
    500 fs between them. Takes about 6 s for 120 frames, each time. All follow from `trajectory_seed`. EMT by ase:
    Jacobsen et al., Surf. Sci. 366 (1996).
    """
    try:
        from ase.build import bulk
        from ase.calculators.emt import EMT
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "the data set copper") from None
    if frames < 10:
        raise SettingsError(f"frames of copper must be at least 10, not {frames}: a fifth of each half tests")
    crystal = bulk("Cu") * (3, 3, 3)
    crystal.calc = EMT()
    n_strained = frames // 2
    n_train, _ = earlier_and_later(n_strained)
    strained = _strained(crystal, n_strained, trajectory_seed)
    n_heated = frames - n_strained
    heated = langevin_frames(
        crystal, n_heated + GAP, temperature, trajectory_seed, timestep=5.0, stride=10, start=50, group="heated"
    )
    early, late = parted(heated, earlier_and_later(n_heated)[1])
    return FrameSource("copper (EMT)", [*strained[:n_train], *early], [*strained[n_train:], *late])


def _strained(crystal: Any, count: int, seed: int) -> list[Frame]:
    rng = np.random.default_rng([seed, count])
    frames = []
    for _ in range(count):
        atoms = crystal.copy()
        atoms.calc = crystal.calc
        strain = rng.uniform(-0.05, 0.05, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        frames.append(labelled(atoms, "strained"))
    return frames
