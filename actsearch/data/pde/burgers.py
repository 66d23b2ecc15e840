"""The viscous Burgers equation, whose smooth start steepens into a shock."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import roots_hermite
from torch import Tensor

from actsearch.data.pde.problem import Array, Face, Problem, derivative
from actsearch.errors import SettingsError

NODES = 160
# Where the quadrature is exact to 1e-7: a lesser viscosity leaves float64's range, a greater one its resolution.
VISCOSITIES = (0.002, 1.0)


@dataclass(frozen=True)
class Burgers(Problem):
    """u_t + u u_x = ν u_xx on x ∈ [-1, 1], t ∈ [0, 1] with u(x, 0) = -sin πx and u(±1, t) = 0.

    `viscosity` is ν, by default 0.01/π as in Raissi et al. (J. Comput. Phys. 378, 2019) and Jagtap et al. (arXiv
    1909.12228); measured on the 256 × 100 grid of their reference. Raises SettingsError for ν outside 0.002 to 1,
    where the quadrature of the reference does not hold.
    """

    title = "Burgers"
    variables = ("x", "t")
    domain = ((-1.0, 1.0), (0.0, 1.0))
    faces = (Face(1, 0.0, 0.5), Face(0, -1.0, 0.25), Face(0, 1.0, 0.25))

    viscosity: float = 0.01 / math.pi

    def __post_init__(self) -> None:
        least, most = VISCOSITIES
        if not least <= self.viscosity <= most:
            raise SettingsError(f"viscosity of Burgers must be from {least} to {most:g}, not {self.viscosity}")

    def equation(self, u: Tensor, points: Tensor) -> Tensor:
        u_x, u_t = derivative(u, points).split(1, dim=1)
        u_xx = derivative(u_x, points)[:, :1]
        return u_t + u * u_x - self.viscosity * u_xx

    def reference(self, points: Array) -> Array:
        """By the Cole-Hopf transform: with f(y) = exp(-cos(πy) / 2πν) and η ~ N(0, 2νt),

            u(x, t) = -E[sin(π(x - η)) f(x - η)] / E[f(x - η)],

        each mean by Gauss-Hermite quadrature (Basdevant et al., Computers & Fluids 14, 1986).
        """
        nodes, weights = roots_hermite(NODES)
        x, t = points[:, :1], points[:, 1:]
        y = math.pi * (x - np.sqrt(4 * self.viscosity * t) * nodes)
        exponents = -np.cos(y) / (2 * math.pi * self.viscosity)
        weighted = weights * np.exp(exponents - exponents.max(axis=1, keepdims=True))
        solution: Array = -(np.sin(y) * weighted).sum(axis=1) / weighted.sum(axis=1)
        return solution

    @property
    def axes(self) -> tuple[Array, ...]:
        return np.linspace(-1, 1, 256), np.arange(100) / 100
