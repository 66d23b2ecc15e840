"""The heat equation, with a solution in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from actsearch.data.pde.problem import Array, Face, Problem, derivative
from actsearch.errors import SettingsError


@dataclass(frozen=True)
class Heat(Problem):
    """u_t = κ u_xx on x ∈ [-1, 1], t ∈ [0, 1]; u = exp(-κπ²t) sin πx, given for t = 0 and at both ends.

    `diffusivity` is κ; the default lets u fall to e⁻¹ by t = 1. Raises SettingsError unless it is above 0.
    """

    title = "heat"
    variables = ("x", "t")
    domain = ((-1.0, 1.0), (0.0, 1.0))
    faces = (Face(1, 0.0, 0.5), Face(0, -1.0, 0.25), Face(0, 1.0, 0.25))

    diffusivity: float = 1 / math.pi**2

    def __post_init__(self) -> None:
        if not 0 < self.diffusivity < math.inf:
            raise SettingsError(f"diffusivity of the heat equation must be above 0, not {self.diffusivity}")

    def equation(self, u: Tensor, points: Tensor) -> Tensor:
        u_x, u_t = derivative(u, points).split(1, dim=1)
        return u_t - self.diffusivity * derivative(u_x, points)[:, :1]

    def reference(self, points: Array) -> Array:
        x, t = points.T
        solution: Array = np.exp(-self.diffusivity * math.pi**2 * t) * np.sin(math.pi * x)
        return solution
