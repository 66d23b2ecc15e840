"""Frames: atoms with what is known of their energy, and batches of them with their neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actsearch.errors import DataError
from actsearch.forcefield.neighbours import neighbours

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frame:
    """Atoms at one moment, in eV and Å.

    Attributes:
        numbers: atomic numbers, (n,) integers.
        positions: (n, 3) Å.
        cell: rows are the cell's vectors, (3, 3) Å; zeros where there is none.
        pbc: along which of them the atoms repeat, (3,) bool.
        energy: total, eV; NaN if not known.
        forces: (n, 3) eV/Å; None if not known.
        stress: (3, 3) eV/Å³, ∂E/∂ε / V, positive under tension as in ase; None if not known.
        group: kind of configuration, where the source tells it.

    Raises DataError for arrays that do not fit together.
    """

    numbers: NDArray[np.int64]
    positions: Array
    cell: Array = dataclasses.field(default_factory=lambda: np.zeros((3, 3)))
    pbc: NDArray[np.bool_] = dataclasses.field(default_factory=lambda: np.zeros(3, dtype=bool))
    energy: float = float("nan")
    forces: Array | None = None
    stress: Array | None = None
    group: str = ""

    def __post_init__(self) -> None:
        n = len(self.numbers)
        shapes = {
            "positions": (self.positions, (n, 3)),
            "cell": (self.cell, (3, 3)),
            "pbc": (self.pbc, (3,)),
            "forces": (self.forces, (n, 3)),
            "stress": (self.stress, (3, 3)),
        }
        for name, (array, shape) in shapes.items():
            if array is not None and array.shape != shape:
                raise DataError(f"{name} of a frame of {n} atoms must be of shape {shape}, not {array.shape}")
        if self.pbc.any() and abs(np.linalg.det(self.cell)) < 1e-6:
            raise DataError("a periodic frame needs a cell of three vectors that span a volume")


@dataclass
class FrameBatch:
    """Frames of any sizes, one after the other, and every pair of neighbours within `cutoff` in both directions.

    N atoms, B frames, E pairs. Integers are int64. `energy` is float64, since totals are large and differences small;
    the other numbers have torch's default dtype. What is not known of a frame is NaN.

    Attributes:
        numbers: (N,) atomic numbers.
        positions: (N, 3) Å.
        frame: (N,) the frame that an atom belongs to, ascending.
        cell: (B, 3, 3) Å; pbc: (B, 3).
        centre, neighbour: (E,) atoms of each pair, sorted by centre.
        shift: (E, 3) whole cells: the neighbour is at positions[neighbour] + shift @ cell.
        cutoff: Å.
        energy: (B,) eV; forces: (N, 3) eV/Å; stress: (B, 3, 3) eV/Å³.
    """

    numbers: Tensor
    positions: Tensor
    frame: Tensor
    cell: Tensor
    pbc: Tensor
    centre: Tensor
    neighbour: Tensor
    shift: Tensor
    cutoff: float
    energy: Tensor
    forces: Tensor
    stress: Tensor

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def sizes(self) -> Tensor:
        """Atoms of each frame, (B,)."""
        return torch.bincount(self.frame, minlength=len(self))

    def map(self, function: Callable[[Tensor], Tensor]) -> FrameBatch:
        """The same batch with `function` of each of its tensors."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: function(v) for name, v in values.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FrameBatch:
        """On a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FrameBatch:
        """In page-locked memory, for DataLoader."""
        return self.map(Tensor.pin_memory)

    def vectors(self, positions: Tensor | None = None, cell: Tensor | None = None) -> Tensor:
        """From each pair's centre to its neighbour, (E, 3) Å; of other positions and cells if they are given."""
        positions = self.positions if positions is None else positions
        cell = self.cell if cell is None else cell
        cells = cell[self.frame[self.centre]]
        return (
            positions[self.neighbour]
            - positions[self.centre]
            + (self.shift.to(positions.dtype)[:, None] @ cells).squeeze(1)
        )


def batch_of(frames: Sequence[Frame], cutoff: float) -> FrameBatch:
    """A batch of `frames` with their neighbours within `cutoff` Å. Raises DataError if there is no frame."""
    return collate([alone(frame, cutoff) for frame in frames])


def alone(frame: Frame, cutoff: float) -> FrameBatch:
    """The batch of one frame."""
    n = len(frame.numbers)
    centre, neighbour, shift = neighbours(frame.positions, frame.cell, frame.pbc, cutoff)
    unknown = np.full((n, 3), np.nan)
    dtype = torch.get_default_dtype()
    return FrameBatch(
        numbers=torch.as_tensor(frame.numbers, dtype=torch.int64),
        positions=torch.as_tensor(frame.positions, dtype=dtype),
        frame=torch.zeros(n, dtype=torch.int64),
        cell=torch.as_tensor(frame.cell, dtype=dtype)[None],
        pbc=torch.as_tensor(frame.pbc)[None],
        centre=torch.as_tensor(centre),
        neighbour=torch.as_tensor(neighbour),
        shift=torch.as_tensor(shift),
        cutoff=cutoff,
        energy=torch.tensor([frame.energy], dtype=torch.float64),
        forces=torch.as_tensor(unknown if frame.forces is None else frame.forces, dtype=dtype),
        stress=torch.as_tensor(unknown[:1].repeat(3, 0) if frame.stress is None else frame.stress, dtype=dtype)[None],
    )


def collate(batches: Sequence[FrameBatch]) -> FrameBatch:
    """Several batches of the same cutoff as one. Raises DataError for none, or for different cutoffs."""
    if len({batch.cutoff for batch in batches}) != 1:
        raise DataError(
            "batches of different cutoffs cannot be joined" if batches else "a batch needs at least one frame"
        )
    atoms = np.cumsum([0, *(len(batch.numbers) for batch in batches)]).tolist()
    frames = np.cumsum([0, *(len(batch) for batch in batches)]).tolist()
    first = {"frame": frames, "centre": atoms, "neighbour": atoms}

    def joined(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in batches]
        if name in first:
            parts = [part + start for part, start in zip(parts, first[name], strict=False)]
        return torch.cat(parts)

    names = [f.name for f in dataclasses.fields(FrameBatch) if f.name != "cutoff"]
    return FrameBatch(cutoff=batches[0].cutoff, **{name: joined(name) for name in names})
