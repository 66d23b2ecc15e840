"""Problem: a partial differential equation on a box, with what is given on its faces and its solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Face:
    """The face of a box on which coordinate `axis` is `value`, and its `share` of the points with a given solution."""

    axis: int
    value: float
    share: float


class Problem(ABC):
    """An equation for u(x), x in a box of d dimensions; time is a coordinate like any other.

    A new one is a file in this folder and a line in `actsearch/data/registry.py`.

    Attributes:
        title: in tables.
        variables: names of the coordinates.
        domain: (low, high) of each.
        faces: where the solution is given, by initial and boundary conditions. Their shares add up to 1.
    """

    title: ClassVar[str]
    variables: ClassVar[tuple[str, ...]]
    domain: ClassVar[tuple[tuple[float, float], ...]]
    faces: ClassVar[tuple[Face, ...]]

    @abstractmethod
    def equation(self, u: Tensor, points: Tensor) -> Tensor:
        """What is 0 where `u` (N, 1), computed from `points` (N, d) by autograd, solves the equation: (N, 1)."""

    @abstractmethod
    def reference(self, points: Array) -> Array:
        """The solution (N,) at `points` (N, d), in float64; it holds on the faces too."""

    def residual(self, model: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        """`equation` of `model`, (N, d) → (N, 1), at `points`; works where gradients are switched off."""
        return self.solve(model, points)[1]

    def solve(self, model: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """u and the residual, (N, 1) each, by one pass through `model`.

        Gradients are on within it, whatever the caller has switched off; the results then need none.
        """
        wanted = torch.is_grad_enabled()
        # A copy: autograd cannot keep a tensor that was made in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            points = points.detach().clone().requires_grad_()
            u = model(points)
            residual = self.equation(u, points)
        return (u, residual) if wanted else (u.detach(), residual.detach())

    @property
    def axes(self) -> tuple[Array, ...]:
        """Coordinates of the grid on which a solution is measured."""
        return tuple(np.linspace(low, high, 101) for low, high in self.domain)

    @cached_property
    def grid(self) -> Array:
        """All points of that grid, (N, d); the last coordinate changes fastest."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1).reshape(-1, len(self.domain))


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """∂y_i/∂x_i for y (N, 1) of which row i depends on row i of x (N, d) alone; (N, d), and itself differentiable.

    0 where y does not depend on x, as for a network whose activation is constant.
    """
    if not y.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True, materialize_grads=True)
    return found
