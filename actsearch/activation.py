"""Activation: a genotype as an nn.Module, the thing that a user carries away."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actsearch.genotype import Genotype
from actsearch.ops.graph import evaluate

HALF = (torch.float16, torch.bfloat16)


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
        self.genotype = genotype
        self.trainable = trainable
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
        slots = self.genotype.slots
        return evaluate(
            x,
            self.genotype.order,
            {name: slots[name].op for name in self.genotype.order},
            {name: slots[name].inputs for name in self.genotype.order},
            lambda slot, op, name: getattr(self, f"{slot}_{name}"),
            self.genotype.clip,
        )

    @property
    def formula(self) -> str:
        """The canonical formula of the genotype."""
        return self.genotype.formula

    def to_latex(self) -> str:
        """The formula in LaTeX, without the clip."""
        return self.genotype.to_latex()

    @cached_property
    def gain(self) -> float:
        """1 / sqrt(E[f(z)²]) for z ~ N(0, 1): by this factor the function preserves the second moment.

        Integrated on 8,001 points in [-8, 8] in float64; infinite for the zero function.
        """
        z = torch.linspace(-8, 8, 8001, dtype=torch.float64)
        density = np.exp(-0.5 * z.numpy() ** 2) / math.sqrt(2 * math.pi)
        with torch.no_grad():
            moment = float(np.trapezoid(self.forward(z).numpy() ** 2 * density, z.numpy()))
        return 1 / math.sqrt(moment) if moment > 0 else math.inf

    def save(self, path: Path | str) -> Path:
        """Write the genotype as JSON; `actsearch.load` reads it. Raises RunError."""
        return self.genotype.save(path)

    def extra_repr(self) -> str:
        clip = self.genotype.clip
        return self.formula if clip.kind == "none" else f"{self.formula}, {clip.kind} clip at {clip.limit:g}"


def load(source: Path | str) -> Activation:
    """The activation of a genotype file, or of a run directory that holds one. Raises GenotypeError."""
    path = Path(source)
    return Activation(Genotype.load(path / "genotype.json" if path.is_dir() else path))
