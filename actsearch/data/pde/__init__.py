"""Differential equations whose solutions a network is trained to be, and the points that it is trained on."""

import actsearch._torchvision  # noqa: F401

from actsearch.data.pde.burgers import Burgers
from actsearch.data.pde.heat import Heat
from actsearch.data.pde.points import PointSet, draw_points, grid_points
from actsearch.data.pde.poisson import Poisson
from actsearch.data.pde.problem import Face, Problem, derivative

__all__ = [
    "Burgers",
    "Face",
    "Heat",
    "PointSet",
    "Poisson",
    "Problem",
    "derivative",
    "draw_points",
    "grid_points",
]
