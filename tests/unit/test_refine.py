"""Refine: never worse than its start, within its budget, and it finds what is there to be found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from actsearch.search.refine import refine
from actsearch.search.settings import RefineSettings
from actsearch.space import SearchSpace

Ops = Mapping[str, str]
GRAFS = SearchSpace.load("grafs")
CHAIN = {
    f"u{k}": {"inputs": f"u{k - 1}" if k else "x", "candidates": ["tanh", "sin", "relu", "exp", "erf"]}
    for k in range(4)
}


def exact(**options: Any) -> RefineSettings:
    """Settings by which every gain counts, however small."""
    found = RefineSettings(**options)
    found.tolerance = 0.0
    return found


class Score:
    """A loss of cells that counts its calls."""

    def __init__(self, space: SearchSpace, loss: Mapping[tuple[str, str], float], bonus: Ops | None = None) -> None:
        self.space, self.loss, self.bonus, self.calls = space, loss, bonus, []

    def __call__(self, ops: Ops) -> float:
        self.calls.append(dict(ops))
        pair = -10.0 if self.bonus and all(ops[s] == op for s, op in self.bonus.items()) else 0.0
        return sum(self.loss[item] for item in ops.items()) + pair


def separable(space: SearchSpace, seed: int) -> dict[tuple[str, str], float]:
    generator = np.random.default_rng(seed)
    return {(s.name, op): float(generator.random()) for s in space.slots for op in s.candidates}


def best_of(space: SearchSpace, loss: Mapping[tuple[str, str], float]) -> dict[str, str]:
    return {s.name: min(s.candidates, key=lambda op: loss[s.name, op]) for s in space.slots}


def start_of(space: SearchSpace, seed: int) -> dict[str, str]:
    return {name: choice.op for name, choice in space.random(seed).slots.items()}


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_optimum_of_a_separable_score_is_found(seed: int) -> None:
    space = SearchSpace.from_dict({"cell": CHAIN})
    loss = separable(space, seed)
    score = Score(space, loss)
    found = refine(space, start_of(space, seed), score, space.genotype, exact(evaluations=1000))
    assert found.ops == best_of(space, loss)
    assert found.loss == pytest.approx(sum(loss[item] for item in found.ops.items()))
    assert found.evaluations == len(score.calls) < 5**4


def test_a_pair_that_only_helps_together_is_found() -> None:
    space = SearchSpace.from_dict({"cell": CHAIN})
    loss = {key: float(key[1] != "tanh") for key in separable(space, 0)}  # every single change is worse
    score = Score(space, loss, bonus={"u1": "sin", "u3": "sin"})
    start = dict.fromkeys(CHAIN, "tanh")
    wide = refine(space, start, score, space.genotype, exact(evaluations=1000, width=5))
    assert wide.ops == {"u0": "tanh", "u1": "sin", "u2": "tanh", "u3": "sin"}
    narrow = refine(space, start, score, space.genotype, exact(evaluations=1000, width=1))
    assert narrow.ops == start


@pytest.mark.parametrize("budget", [1, 2, 7, 50, 300])
@pytest.mark.parametrize("restarts", [1, 3])
def test_the_result_is_never_worse_than_the_start_and_the_budget_is_kept(budget: int, restarts: int) -> None:
    for seed in range(3):
        loss = separable(GRAFS, seed)
        score, start = Score(GRAFS, loss), start_of(GRAFS, seed)
        found = refine(GRAFS, start, score, GRAFS.genotype, exact(evaluations=budget, restarts=restarts))
        assert len(score.calls) == found.evaluations <= budget
        assert found.loss <= found.start_loss == sum(loss[item] for item in start.items())
        assert found.loss == min(sum(loss[item] for item in ops.items()) for ops in score.calls)
        assert (found.ops == start) == (found.loss == found.start_loss)


def test_with_negative_losses_the_result_is_not_worse_than_the_start_either() -> None:
    space = SearchSpace.from_dict({"cell": CHAIN})
    start = dict.fromkeys(CHAIN, "tanh")

    def score(ops: Ops) -> float:
        return -100.0 if ops == start else -99.5

    found = refine(space, start, score, space.genotype, RefineSettings(evaluations=50))
    assert (found.ops, found.loss) == (start, -100.0)


def test_equal_functions_are_measured_once() -> None:
    space = SearchSpace.load("tiny")
    score = Score(space, separable(space, 1))
    refine(space, start_of(space, 0), score, space.genotype, exact(evaluations=10_000, width=7))
    genotypes = [space.genotype(ops) for ops in score.calls]
    assert len(set(genotypes)) == len(genotypes)


def test_losses_that_are_not_finite_are_the_worst() -> None:
    space = SearchSpace.from_dict({"cell": CHAIN})
    start = dict.fromkeys(CHAIN, "exp")

    def score(ops: Ops) -> float:
        return math.nan if "exp" in ops.values() else float(sum(op != "sin" for op in ops.values()))

    found = refine(space, start, score, space.genotype, exact(evaluations=600))
    assert found.start_loss == math.inf
    nowhere = refine(space, start, lambda ops: math.nan, space.genotype, exact(evaluations=600))
    assert nowhere.ops == start
    assert nowhere.loss == math.inf


def test_only_cells_within_the_complexity_are_tried() -> None:
    data = SearchSpace.load("tiny").to_dict() | {"constraints": {"max_complexity": 1}}
    space = SearchSpace.from_dict(data)
    score = Score(space, separable(space, 2))
    refine(space, start_of(space, 0), score, space.genotype, exact(evaluations=1000))
    assert all(space.admits(ops) for ops in score.calls)


def test_the_same_seed_gives_the_same_result() -> None:
    loss = separable(GRAFS, 0)
    results = [
        refine(GRAFS, start_of(GRAFS, 1), Score(GRAFS, loss), GRAFS.genotype, exact(restarts=3), seed)
        for seed in (1, 1)
    ]
    assert results[0] == results[1]
