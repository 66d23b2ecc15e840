"""The data module of equations: points of the domain as Lightning wants them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import actsearch._torchvision  # noqa: F401

from actsearch.data.held import HeldData
from actsearch.data.pde.points import SAMPLINGS, PointSet, draw_points, grid_points
from actsearch.data.pde.problem import Problem
from actsearch.data.registry import EQUATIONS, check, read
from actsearch.errors import SettingsError, unknown_name


@dataclass(frozen=True)
class _Loaded:
    title: str
    problem: Problem
    train: PointSet
    test: PointSet

    @property
    def eval_train(self) -> PointSet:
        """Points are not augmented."""
        return self.train


class PointData(HeldData):
    """Points of an equation by name (`actsearch.data.names("equations")`), for `actsearch.tasks.PINN`.

    Batches: coordinates (B, d) and solution (B, 1), float32, and whether the solution is known there (B,) bool. The
    test part is a grid with the solution at each of its points; no training uses it.

    n_residual: points inside the domain, where the equation is to hold.
    n_data: points on the faces of the domain, where the solution is given. The equation is to hold there too.
    sampling: "sobol" or "uniform"; drawn by `seed`.
    options: of the equation itself, such as `viscosity` of "burgers".

    Raises UnknownNameError and SettingsError.
    """

    kind = "pinn"

    def __init__(
        self,
        name: str = "burgers",
        batch_size: int = 10_400,
        num_workers: int = 0,
        n_residual: int = 10_000,
        n_data: int = 400,
        sampling: str = "sobol",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(name, None, batch_size, num_workers, None, None, seed, options)
        check(EQUATIONS, name, options)
        if sampling not in SAMPLINGS:
            raise SettingsError(unknown_name("sampling of points", sampling, SAMPLINGS))
        self.n_residual = n_residual
        self.n_data = n_data
        self.sampling = sampling

    @property
    def problem(self) -> Problem:
        return self._loaded.problem

    @property
    def facts(self) -> dict[str, Any]:
        """What model and task must know of the data: see `actsearch.models.build` and `actsearch.tasks.build`."""
        return {"domain": self.problem.domain, "problem": self.problem}

    @cached_property
    def _loaded(self) -> _Loaded:
        problem: Problem = read(EQUATIONS, self.name, self.root, self.options)
        return _Loaded(
            title=f"{problem.title} ({self.n_residual:,} + {self.n_data:,} points)",
            problem=problem,
            train=draw_points(problem, self.n_residual, self.n_data, self.sampling, self.seed),
            test=grid_points(problem),
        )
