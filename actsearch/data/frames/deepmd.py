"""Systems of DeePMD-kit (npy), and its example of liquid water."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actsearch.data.frames.source import FrameSource, divide, find
from actsearch.errors import DataError, MissingPackageError
from actsearch.forcefield.frames import Frame

WATER = "github.com/deepmodeling/deepmd-kit, examples/water/data"


def water(root: Path) -> FrameSource:
    """Liquid water by DFT: 64 molecules in a cube of 12.44 Å, 320 frames of data_0 to data_2 to train, 80 of data_3.

    DeePMD-kit's example, and its division. Energies are float32 of about -29,943 eV: they resolve 2 meV a frame.
    """
    place = find(root, "water_dpmd", WATER, *(f"data_{k}/type.raw" for k in range(4)))
    train = [frame for k in range(3) for frame in read_system(place / f"data_{k}")]
    return FrameSource("water (DFT, 64 molecules)", train, read_system(place / "data_3"))


def deepmd(
    root: Path, train: str = "", test: str | None = None, test_fraction: float = 0.1, split_seed: int = 0
) -> FrameSource:
    """A user's own systems, by the folders in `root` that hold them (each with type.raw), separated by blanks.

    train, test: these folders; root itself by default. Without `test`, `test_fraction` of all frames is held out by
        `split_seed`, each system in proportion. Frames of a trajectory are alike: a folder of its own tests better.
    """
    frames = [frame for folder in train.split() or [""] for frame in read_system(root / folder)]
    if test is None:
        return FrameSource(root.name, *divide(frames, test_fraction, split_seed))
    return FrameSource(root.name, frames, [frame for folder in test.split() for frame in read_system(root / folder)])


def read_system(folder: Path) -> list[Frame]:
    """All frames of a DeePMD system: type.raw, type_map.raw and, in each set.NNN, coord, energy, force, box, virial.

    DeePMD's units are eV and Å. Its virial (frames, 9) in eV is -∂E/∂ε, positive under compression, so that the stress
    is -virial / V, as in DeePMD-kit's own calculator for ase. Energy, force and virial may be missing; box is missing
    only beside a file `nopbc`.
    Raises DataError for anything else, and for mixed types.
    """
    types, names = folder / "type.raw", folder / "type_map.raw"
    if not (types.is_file() and names.is_file()):
        raise DataError(f"{folder} is no DeePMD system: it needs type.raw, type_map.raw and set.000/coord.npy")
    numbers = _numbers(names.read_text().split(), types)
    sets = sorted(p for p in folder.glob("set.*") if p.is_dir())
    if not sets:
        raise DataError(f"{folder} holds no set.000: convert raw files with dpdata or DeePMD-kit's raw_to_set.sh")
    return [frame for part in sets for frame in _read_set(part, numbers, not (folder / "nopbc").exists())]


def _numbers(names: list[str], types: Path) -> NDArray[np.int64]:
    try:
        from ase.data import atomic_numbers
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "reading DeePMD systems") from None
    unknown = [name for name in names if atomic_numbers.get(name, 0) == 0]
    if unknown:
        raise DataError(f"{types.parent}: type_map.raw must name chemical elements, not {' '.join(unknown)}")
    kinds = np.loadtxt(types, dtype=np.int64, ndmin=1).ravel()
    if not len(kinds) or kinds.min() < 0 or kinds.max() >= len(names):
        raise DataError(f"{types} must hold whole numbers from 0 to {len(names) - 1}, one an atom")
    return np.array([atomic_numbers[name] for name in names], dtype=np.int64)[kinds]


def _read_set(folder: Path, numbers: NDArray[np.int64], periodic: bool) -> list[Frame]:
    if (folder / "real_atom_types.npy").exists():
        raise DataError(f"{folder} holds mixed types (real_atom_types.npy): convert it with dpdata to deepmd/npy")
    positions = _load(folder, "coord", (-1, len(numbers), 3))
    if positions is None:
        raise DataError(f"{folder} holds no coord.npy")
    n = len(positions)
    energies = _load(folder, "energy", (n,))
    forces = _load(folder, "force", (n, len(numbers), 3))
    cells = _load(folder, "box", (n, 3, 3)) if periodic else np.zeros((n, 3, 3))
    if cells is None:
        raise DataError(f"{folder} holds no box.npy: add it, or a file nopbc beside type.raw if nothing repeats")
    virials = _load(folder, "virial", (n, 3, 3)) if periodic else None
    volumes = np.abs(np.linalg.det(cells))
    return [
        Frame(
            numbers=numbers,
            positions=positions[k],
            cell=cells[k],
            pbc=np.full(3, periodic),
            energy=float("nan") if energies is None else float(energies[k]),
            forces=None if forces is None else forces[k],
            stress=None if virials is None else -(virials[k] + virials[k].T) / 2 / volumes[k],
        )
        for k in range(n)
    ]


def _load(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    path = folder / f"{name}.npy"
    if not path.exists():
        return None
    try:
        return np.load(path, allow_pickle=False).astype(np.float64).reshape(shape)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as numbers of shape {shape}: {error}") from error
