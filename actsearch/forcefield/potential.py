"""ForceField: the one interface of all force fields, from atoms to energy, forces and stress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError
from actsearch.forcefield.frames import FrameBatch


@dataclass
class Prediction:
    """Of B frames with N atoms: energy (B,) eV, float64; forces (N, 3) eV/Å; stress (B, 3, 3) eV/Å³, or None."""

    energy: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None


class ForceField(nn.Module, ABC):
    """Total energy of frames as a sum of per-element references and `interaction`; forces and stress by autograd.

    Args:
        elements: atomic numbers that it knows, in the order of its parameters.
        cutoff: Å; batches must hold the neighbours up to here.
        references: energy of an atom of each element, eV; default 0.

    Raises SettingsError for no elements, elements twice, or references of other elements.
    """

    least_smoothness: ClassVar[int] = 2
    """Activations must be C²: forces are derivatives of the energy, and training on them differentiates again."""
    references: Tensor
    index_of_number: Tensor

    def __init__(self, elements: Sequence[int], cutoff: float, references: Mapping[int, float] | None = None) -> None:
        super().__init__()
        elements = tuple(int(z) for z in elements)
        if not elements or len(set(elements)) != len(elements) or not all(0 < z < 119 for z in elements):
            raise SettingsError(f"a force field needs different atomic numbers from 1 to 118, not {list(elements)}")
        if unknown := set(references or {}) - set(elements):
            raise SettingsError(f"references are given for elements {sorted(unknown)}, which the force field lacks")
        self.elements = elements
        self.cutoff = float(cutoff)
        values = [float((references or {}).get(z, 0.0)) for z in elements]
        # Totals are thousands of eV: float32 would keep no more than a few meV of them.
        self.register_buffer("references", torch.tensor(values, dtype=torch.float64))
        index = torch.full((119,), -1)
        index[list(elements)] = torch.arange(len(elements))
        self.register_buffer("index_of_number", index)

    @abstractmethod
    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        """Energy beyond the references of each frame, (B,) eV.

        All dependence on positions must come from `vectors` (E, 3), each pair's centre to its neighbour, Å. Pairs may
        be farther apart than this force field's cutoff.
        """

    def kinds(self, batch: FrameBatch) -> Tensor:
        """Of each atom the place of its element in `elements`, (N,)."""
        return self.index_of_number[batch.numbers]

    def check(self, batch: FrameBatch) -> None:
        """Raise SettingsError for elements that it does not know, or too short a cutoff of the batch."""
        if batch.cutoff < self.cutoff:
            raise SettingsError(
                f"the batch holds neighbours up to {batch.cutoff:g} Å, the force field needs {self.cutoff:g} Å: "
                "set the data's cutoff"
            )
        unknown = set(batch.numbers.unique().tolist()) - set(self.elements)
        if unknown:
            raise SettingsError(f"the force field knows elements {list(self.elements)}, not {sorted(unknown)}")

    def forward(self, batch: FrameBatch, forces: bool = True, stress: bool = False) -> Prediction:
        """Energy, and what else is wanted, of each frame. Forces work where the caller has switched gradients off.

        Where they are on, forces and stress can be differentiated again.
        """
        wanted = torch.is_grad_enabled()
        if not (forces or stress):
            return Prediction(self._total(batch, self.interaction(batch, batch.vectors())))
        with torch.inference_mode(False), torch.enable_grad():
            if batch.positions.is_inference():  # autograd cannot keep what was made in inference mode
                batch = batch.map(torch.clone)
            positions = batch.positions.detach().clone().requires_grad_()
            strain = torch.zeros_like(batch.cell).requires_grad_(stress)
            interaction = self.interaction(batch, self._strained(batch, positions, strain, stress))
            found = _gradients(interaction.sum(), [positions, strain] if stress else [positions], create_graph=wanted)
        if not wanted:
            interaction, found = interaction.detach(), [gradient.detach() for gradient in found]
        volume = torch.linalg.det(batch.cell).abs()[:, None, None]
        return Prediction(self._total(batch, interaction), -found[0], found[1] / volume if stress else None)

    def _strained(self, batch: FrameBatch, positions: Tensor, strain: Tensor, stress: bool) -> Tensor:
        if not stress:
            return batch.vectors(positions)
        symmetric = (strain + strain.mT) / 2
        moved = positions + (positions[:, None] @ symmetric[batch.frame]).squeeze(1)
        return batch.vectors(moved, batch.cell + batch.cell @ symmetric)

    def _total(self, batch: FrameBatch, interaction: Tensor) -> Tensor:
        atoms = self.references.double()[self.kinds(batch)]
        total = torch.zeros(len(batch), dtype=torch.float64, device=atoms.device)
        return total.index_add(0, batch.frame, atoms) + interaction.double()


def _gradients(energy: Tensor, inputs: list[Tensor], create_graph: bool) -> list[Tensor]:
    """0 where the energy depends on no input, as for atoms without neighbours."""
    if not energy.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(energy, inputs, create_graph=create_graph, materialize_grads=True))


def sum_by_frame(values: Tensor, batch: FrameBatch) -> Tensor:
    """Sum of `values` (N,) of atoms over each frame, (B,)."""
    return values.new_zeros(len(batch)).index_add(0, batch.frame, values)
