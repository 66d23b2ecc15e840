"""Ethanol by GFN2-xTB, made on the spot: no file is needed."""

from __future__ import annotations

from actsearch.data.frames.dynamics import GAP, earlier_and_later, langevin_frames, parted
from actsearch.data.frames.source import FrameSource
from actsearch.errors import MissingPackageError


def ethanol(frames: int = 200, temperature: float = 400.0, trajectory_seed: int = 0) -> FrameSource:
    """Every 12 fs a frame of a trajectory at `temperature` (K): the first four fifths train, the last fifth tests.

    Between them lie 120 fs that belong to neither. Takes about 9 s for 200 frames on one core, each time. Frames
    follow from `trajectory_seed`, on the same machine. GFN2-xTB by tblite: Bannwarth et al., JCTC 15 (2019).
    """
    try:
        from ase.build import molecule
        from tblite.ase import TBLite
    except ImportError:
        raise MissingPackageError("tblite and ase", "forcefield", "the data set ethanol") from None
    _, n_test = earlier_and_later(frames)
    atoms = molecule("CH3CH2OH")
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    made = langevin_frames(atoms, frames + GAP, temperature, trajectory_seed, timestep=1.0, stride=12, start=250)
    return FrameSource(f"ethanol (GFN2-xTB, {temperature:g} K)", *parted(made, n_test))
