"""Poisson's equation on a square, which knows no time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actsearch.data.pde.problem import Array, Face, Problem, derivative
from actsearch.errors import SettingsError


@dataclass(frozen=True)
class Poisson(Problem):
    """-Δu = 2(kπ)² sin(kπx) sin(kπy) on the unit square, u = 0 on its edges; u = sin(kπx) sin(kπy).

    The residual is divided by (kπ)², so that it is of the size of u. `waves` is k, whole and at least 1, else
    SettingsError.
    """

    title = "Poisson"
    variables = ("x", "y")
    domain = ((0.0, 1.0), (0.0, 1.0))
    faces = tuple(Face(axis, value, 0.25) for axis in (0, 1) for value in (0.0, 1.0))

    waves: int = 1

    def __post_init__(self) -> None:
        if self.waves < 1:
            raise SettingsError(f"waves of Poisson's equation must be at least 1, not {self.waves}")

    def equation(self, u: Tensor, points: Tensor) -> Tensor:
        k = self.waves * math.pi
        u_x, u_y = derivative(u, points).split(1, dim=1)
        laplacian = derivative(u_x, points)[:, :1] + derivative(u_y, points)[:, 1:]
        return laplacian / k**2 + 2 * torch.sin(k * points).prod(dim=1, keepdim=True)

    def reference(self, points: Array) -> Array:
        solution: Array = np.sin(self.waves * math.pi * points).prod(axis=1)
        return solution
