"""What the units of data files are in eV and Å, by ase.units; readers convert here and nowhere else."""

from __future__ import annotations

from actsearch.errors import MissingPackageError


def hartree() -> float:
    """One Hartree in eV. Raises MissingPackageError without ase, as all of these do."""
    return _ase("Hartree")


def kcal_per_mol() -> float:
    """One kcal/mol in eV."""
    return _ase("kcal") / _ase("mol")


def kilobar() -> float:
    """One kbar in eV/Å³."""
    return _ase("GPa") / 10


def _ase(name: str) -> float:
    try:
        from ase import units
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "converting units") from None
    return float(getattr(units, name))
