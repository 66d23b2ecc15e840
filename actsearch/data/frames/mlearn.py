"""mlearn: elements in crystals, strained, heated, with vacancies and surfaces, by DFT (Zuo et al. 2020)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actsearch.data.frames.source import FrameSource, find
from actsearch.data.frames.units import kilobar
from actsearch.errors import DataError, MissingPackageError, UnknownNameError
from actsearch.forcefield.frames import Frame

ELEMENTS = ("Cu", "Ge", "Li", "Mo", "Ni", "Si")
ORIGIN = "github.com/materialsvirtuallab/mlearn, data"
_XY_XZ_YZ, _XY_YZ_XZ = ((0, 1), (0, 2), (1, 2)), ((0, 1), (1, 2), (0, 2))
# Of these elements the strained crystals, and a pair potential fitted to the forces of the others, tell the order.
_SETTLED = ("Cu", "Mo", "Ni", "Si")


def mlearn(root: Path, element: str = "Si") -> FrameSource:
    """Frames of one element, training.json and test.json as published; `group` is the kind of configuration.

    Files data/ELEMENT/….json: eV, eV/Å, and `virial_stress` in kbar, positive under compression (it is minus the
    derivative of the energy along the strained crystals). Its first four entries are xx, yy, zz, xy; then come xz, yz,
    but yz, xz in Elastic frames of Si. Frames have no stress where the order could not be told from the data: those of
    group Surface, and all of Ge and Li. Zuo et al., J. Phys. Chem. A 124 (2020).
    Raises UnknownNameError, and DataError where a file is missing.
    """
    if element not in ELEMENTS:
        raise UnknownNameError("element of mlearn", str(element), ELEMENTS)
    files = [f"data/{element}/{part}.json" for part in ("training", "test")]
    place = find(root, "mlearn", ORIGIN, files[1])
    if not (place / files[0]).is_file():
        raise DataError(
            f"{place} has test.json of {element} but no {files[0]}: get it from {ORIGIN}, or set another element"
        )
    return FrameSource(f"mlearn {element}", _read(place / files[0], element), _read(place / files[1], element))


def _read(path: Path, element: str) -> list[Frame]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [_frame(entry, element) for entry in entries]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is no file of mlearn ({error!r}): get it anew from {ORIGIN}") from error


def _frame(entry: dict[str, Any], element: str) -> Frame:
    try:
        from ase.data import atomic_numbers
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "reading mlearn") from None
    sites, outputs = entry["structure"]["sites"], entry["outputs"]
    return Frame(
        numbers=np.array([atomic_numbers[site["species"][0]["element"]] for site in sites], dtype=np.int64),
        positions=np.array([site["xyz"] for site in sites], dtype=np.float64),
        cell=np.array(entry["structure"]["lattice"]["matrix"], dtype=np.float64),
        pbc=np.ones(3, dtype=bool),
        energy=float(outputs["energy"]),
        forces=np.array(outputs["forces"], dtype=np.float64),
        stress=_stress(outputs["virial_stress"], element, entry["group"]),
        group=entry["group"],
    )


def _stress(virial: list[float], element: str, group: str) -> NDArray[np.float64] | None:
    if element not in _SETTLED or group == "Surface":
        return None
    stress = np.diag(np.array(virial[:3], dtype=np.float64))
    places = _XY_YZ_XZ if (element, group) == ("Si", "Elastic") else _XY_XZ_YZ
    for (i, j), value in zip(places, virial[3:], strict=True):
        stress[i, j] = stress[j, i] = value
    return -kilobar() * stress
