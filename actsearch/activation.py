"""Activation: a genotype as an nn.Module, the thing that a user carries away."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actsearch.genotype import Choice, Genotype
from actsearch.ops.graph import evaluate
from actsearch.ops.guard import HALF


class Activation(nn.Module):
    """The element-wise function of a genotype.

    `forward` takes a tensor of any shape and returns one of the same shape and dtype. Half precision is computed in
    float32 and rounded once. It runs the same operations, with the same clip and the same parameter values, as the cell
    that was searched.

    Args:
        genotype: the function.
        trainable: make its operations' parameters (β, γ) trainable; by default they are constants (buffers).
    """

    def __init__(self, genotype: Genotype, trainable: bool = False) -> None:
        super().__init__()
        self._genotype = genotype
        self.trainable = trainable
        self._ops = {name: genotype.slots[name].op for name in genotype.order}
        self._inputs = {name: genotype.slots[name].inputs for name in genotype.order}
        for slot in genotype.order:
            for name, value in genotype.slots[slot].parameters.items():
                tensor = torch.tensor(value, dtype=torch.float32)
                if trainable:
                    self.register_parameter(f"{slot}_{name}", nn.Parameter(tensor))
                else:
                    self.register_buffer(f"{slot}_{name}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in HALF:
            return self.forward(x.float()).to(x.dtype)
        return evaluate(x, self._genotype.order, self._ops, self._inputs, self._parameter, self._genotype.clip)

    def _parameter(self, slot: str, op: str, name: str) -> Tensor:
        found = getattr(self, f"{slot}_{name}")
        assert isinstance(found, Tensor)
        return found

    @property
    def genotype(self) -> Genotype:
        """The genotype, with the present values of trained parameters."""
        if not self.trainable:
            return self._genotype
        slots = {
            name: Choice(c.op, c.inputs, {p: float(getattr(self, f"{name}_{p}").detach()) for p in c.parameters})
            if name in self._genotype.order
            else c
            for name, c in self._genotype.slots.items()
        }
        return dataclasses.replace(self._genotype, slots=slots)

    @property
    def formula(self) -> str:
        """The canonical formula of the genotype."""
        return self.genotype.formula

    def to_latex(self) -> str:
        """The formula in LaTeX, without the clip."""
        return self.genotype.to_latex()

    @property
    def gain(self) -> float:
        """By this factor the function preserves the second moment under N(0, 1): see `second_moment_gain`."""
        return second_moment_gain(self)

    def save(self, path: Path | str) -> Path:
        """Write the genotype as JSON; `actsearch.load` reads it. Raises RunError."""
        return self.genotype.save(path)

    def extra_repr(self) -> str:
        clip = self.genotype.clip
        return self.formula if clip.kind == "none" else f"{self.formula}, {clip.kind} clip at {clip.limit:g}"


def second_moment_gain(function: Callable[[Tensor], Tensor]) -> float:
    """1 / sqrt(E[f(z)²]) for z ~ N(0, 1), on 8,001 points in [-8, 8] in float64; infinite for the zero function.

    A module is evaluated on its own device.
    """
    tensors = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
    z = np.linspace(-8, 8, 8001)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        values = function(torch.from_numpy(z).to(tensors[0].device if tensors else "cpu")).double().cpu().numpy()
    moment = float(np.trapezoid(values**2 * density, z))
    return 1 / math.sqrt(moment) if moment > 0 else math.inf


def load(source: Path | str) -> Activation:
    """The activation of a genotype file, or of a run directory that holds one. Raises GenotypeError."""
    path = Path(source)
    return Activation(Genotype.load(path / "genotype.json" if path.is_dir() else path))
