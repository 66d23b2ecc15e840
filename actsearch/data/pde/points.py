"""The points at which an equation and its conditions are to hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor
from torch.utils.data import Dataset

from actsearch.data.batch import Batch
from actsearch.data.pde.problem import Array, Face, Problem
from actsearch.errors import SettingsError, unknown_name

SAMPLINGS = ("sobol", "uniform")


class PointSet(Dataset):
    """Points (N, d) float32; an item is (coordinates (d,), solution (1,), whether the solution is known there: bool).

    The solution is 0 where it is not known. A DataLoader asks for a whole batch through `__getitems__`.
    """

    def __init__(self, coordinates: Tensor, solution: Tensor, is_data: Tensor) -> None:
        self.coordinates = coordinates
        self.solution = solution
        self.is_data = is_data

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return Batch(partial(self._make, torch.as_tensor(indices)))

    def _make(self, indices: Tensor, placed: bool) -> list[Tensor]:
        return [self.coordinates[indices], self.solution[indices], self.is_data[indices]]

    @property
    def labels(self) -> np.ndarray:
        """1 where the solution is known, else 0: a search then gives both of its parts a share of these points."""
        return self.is_data.long().numpy()


def draw_points(problem: Problem, n_residual: int, n_data: int, sampling: str = "sobol", seed: int = 0) -> PointSet:
    """`n_residual` points in the domain, and `n_data` on its faces, where the solution is known.

    `sampling` "sobol" takes the first of a scrambled Sobol sequence, "uniform" independent ones; both follow from
    `seed`. Raises SettingsError for an unknown sampling, or counts that leave a face without a point.
    """
    if sampling not in SAMPLINGS:
        raise SettingsError(unknown_name("sampling of points", sampling, SAMPLINGS))
    if n_residual < 0 or n_data < len(problem.faces):
        raise SettingsError(
            f"{problem.title} needs n_residual ≥ 0 and n_data ≥ {len(problem.faces)}, not {n_residual} and {n_data}"
        )
    d = len(problem.domain)
    counts = _shares(problem.faces, n_data)
    draws = [_draw(n, d, sampling, [seed, k]) for k, n in enumerate([n_residual, *counts])]
    low, high = np.array(problem.domain).T
    inside, *outer = [low + (high - low) * unit for unit in draws]
    for face, points in zip(problem.faces, outer, strict=True):
        points[:, face.axis] = face.value
    known = np.concatenate(outer)
    solution = np.concatenate([np.zeros(n_residual), problem.reference(known)])
    coordinates = np.concatenate([inside, known])
    return _set(coordinates, solution, np.arange(len(coordinates)) >= n_residual)


def grid_points(problem: Problem) -> PointSet:
    """The grid on which a solution is measured, with the solution at each of its points."""
    return _set(problem.grid, problem.reference(problem.grid), np.ones(len(problem.grid), dtype=bool))


def _set(coordinates: Array, solution: Array, is_data: np.ndarray) -> PointSet:
    return PointSet(
        torch.from_numpy(coordinates).float(), torch.from_numpy(solution).float()[:, None], torch.from_numpy(is_data)
    )


def _shares(faces: Sequence[Face], n: int) -> list[int]:
    """How many of `n` points each face gets, at least one."""
    ends = np.cumsum([face.share for face in faces])
    bounds = np.rint(ends * (n - len(faces))).astype(int)
    return [1 + int(k) for k in np.diff(bounds, prepend=0)]


def _draw(n: int, d: int, sampling: str, seed: Sequence[int]) -> Array:
    """Points (n, d) of the unit cube."""
    generator = np.random.default_rng(seed)
    if sampling == "uniform" or n == 0:
        return generator.random((n, d))
    # The sequence is balanced in powers of two; it is drawn so, and cut.
    found: Array = qmc.Sobol(d, scramble=True, seed=generator).random_base2(math.ceil(math.log2(n)))[:n]
    return found
