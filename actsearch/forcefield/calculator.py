"""A force field as a calculator of ase, for its molecular dynamics, relaxations and checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from actsearch.errors import MissingPackageError, NonFiniteError
from actsearch.forcefield.frames import Frame, FrameBatch, batch_of
from actsearch.forcefield.potential import ForceField


def calculator(model: ForceField) -> Any:
    """An `ase.calculators.calculator.Calculator` of `model`, which it puts into evaluation mode.

    It gives energy and free_energy (eV), forces (eV/Å) and, for atoms with a cell, stress (eV/Å³, xx yy zz yz xz xy,
    positive under tension). It computes in the dtype and on the device of the model's parameters. A calculation raises
    NonFiniteError for energy, forces or stress that are NaN or infinite, and SettingsError for elements that the model
    does not know. Raises MissingPackageError without ase.
    """
    try:
        from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
        from ase.stress import full_3x3_to_voigt_6_stress
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "a calculator") from None

    class ForceFieldCalculator(Calculator):
        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012, the base class says so

        def calculate(
            self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            atoms = self.atoms
            stress = "stress" in properties
            if stress and atoms.cell.rank < 3:
                raise PropertyNotImplementedError("stress needs a cell of three vectors")
            batch = batch_like(model, atoms)
            model.check(batch)
            with torch.no_grad():
                found = model(batch, forces=True, stress=stress)
            energy = float(found.energy)
            results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": _array(found.forces)}
            if stress:
                results["stress"] = full_3x3_to_voigt_6_stress(_array(found.stress)[0])
            for name, value in results.items():
                if bad := int(np.size(value) - np.isfinite(value).sum()):
                    raise NonFiniteError(f"{bad} of {np.size(value)} numbers of the {name} are NaN or infinite")
            self.results.update(results)

    model.eval()
    return ForceFieldCalculator()


def batch_like(model: ForceField, atoms: Any) -> FrameBatch:
    """The batch of an `ase.Atoms` with the neighbours that `model` needs, in its dtype and on its device."""
    frame = Frame(
        np.asarray(atoms.numbers, dtype=np.int64),
        np.array(atoms.positions, dtype=np.float64),
        np.array(atoms.cell.array, dtype=np.float64),
        np.array(atoms.pbc, dtype=bool),
    )
    like = next(model.parameters(), torch.empty(0))
    batch = batch_of([frame], model.cutoff).to(like.device)
    # Anew from float64: the batch has torch's default dtype, whatever the model's.
    positions, cell = (torch.as_tensor(x).to(like.device, like.dtype) for x in (frame.positions, frame.cell))
    return dataclasses.replace(batch, positions=positions, cell=cell[None])


def _array(tensor: torch.Tensor | None) -> Any:
    assert tensor is not None
    return tensor.double().cpu().numpy()
