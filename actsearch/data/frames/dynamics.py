"""Frames of a short trajectory at constant temperature, by ase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actsearch.data.frames.atoms import frame_of
from actsearch.errors import SettingsError
from actsearch.forcefield.frames import Frame
from actsearch.work import under_way

GAP = 10  # frames between the training and the test part of a trajectory that belong to neither


def langevin_frames(
    atoms: Any, count: int, temperature: float, seed: int, timestep: float, stride: int, start: int, group: str = ""
) -> list[Frame]:
    """`count` frames with energy, forces and, if periodic, stress, by the calculator of `atoms` (ase.Atoms).

    Langevin dynamics with a friction of 0.05/fs, so that the energy forgets itself within some 20 fs; the first `start`
    steps are left out. temperature: K; timestep: fs; stride: steps between frames. Moves `atoms`.
    """
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import thermalize_momenta

    if count < 1 or temperature <= 0:
        raise SettingsError(f"a trajectory needs frames ≥ 1 and temperature > 0 K, not {count} and {temperature}")
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        atoms, timestep * units.fs, temperature_K=temperature, friction=0.05 / units.fs, fixcm=False, rng=rng
    )
    frames = []
    with under_way(f"making frames of {atoms.get_chemical_formula()}", count, "frames") as work:
        dynamics.run(start)
        for _ in range(count):
            dynamics.run(stride)
            frames.append(labelled(atoms, group))
            work.advance()
    return frames


def labelled(atoms: Any, group: str = "") -> Frame:
    """The frame of `atoms` with what its calculator gives: energy, forces and, if it is periodic, stress."""
    known = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        known["stress"] = atoms.get_stress(voigt=False)
    return frame_of(atoms, known, group)


def earlier_and_later(count: int) -> tuple[int, int]:
    """How many of `count` frames train and how many test: 4 to 1. Raises SettingsError for fewer than 5."""
    if count < 5:
        raise SettingsError(f"frames must be at least 5, not {count}: four fifths train, one fifth tests")
    return count - count // 5, count // 5


def parted(frames: Sequence[Frame], n_test: int) -> tuple[list[Frame], list[Frame]]:
    """The earlier part of a trajectory to train and its last `n_test` frames to test; `GAP` between are left out."""
    return list(frames[: len(frames) - n_test - GAP]), list(frames[len(frames) - n_test :])
