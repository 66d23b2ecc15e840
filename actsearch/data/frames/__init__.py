"""Frames of atoms with energies and forces: readers of what others computed, and two sets made on the spot.

Every reader gives a FrameSource in eV and Å. A new one is a file in this folder and a line in
`actsearch/data/registry.py`.
"""

import actsearch._torchvision  # noqa: F401

from actsearch.data.frames.deepmd import read_system
from actsearch.data.frames.frameset import FrameSet
from actsearch.data.frames.references import least_squares
from actsearch.data.frames.source import FrameSource
from actsearch.data.frames.xyz import read_xyz

__all__ = ["FrameSet", "FrameSource", "least_squares", "read_system", "read_xyz"]
