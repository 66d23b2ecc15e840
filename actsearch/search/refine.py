"""Refine: a local search over the discrete cell, by validation loss under the shared weights. Ours, not published."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product

from actsearch.genotype import Genotype
from actsearch.search.settings import RefineSettings
from actsearch.space import SearchSpace

Ops = Mapping[str, str]


@dataclass(frozen=True)
class Refinement:
    """Outcome of a local search: the best cell found, its loss and that of the start, and what was spent."""

    ops: dict[str, str]
    loss: float
    start_loss: float
    evaluations: int


class _BudgetSpent(Exception):
    """Raised inside to leave nested loops."""


class _Scorer:
    """Losses by function: cells that compute the same function are measured once."""

    def __init__(self, score: Callable[[Ops], float], genotype: Callable[[Ops], Genotype], budget: int) -> None:
        self._score, self._genotype = score, genotype
        self._losses: dict[Genotype, float] = {}
        self.limit = budget

    @property
    def evaluations(self) -> int:
        return len(self._losses)

    def __call__(self, ops: Ops) -> float:
        key = self._genotype(ops)
        if key not in self._losses:
            if self.evaluations >= self.limit:
                raise _BudgetSpent
            loss = self._score(ops)
            self._losses[key] = loss if math.isfinite(loss) else math.inf
        return self._losses[key]


def refine(
    space: SearchSpace,
    start: Ops,
    score: Callable[[Ops], float],
    genotype: Callable[[Ops], Genotype],
    settings: RefineSettings,
    seed: int = 0,
) -> Refinement:
    """Change one slot at a time, then two, as long as it lowers the loss.

    Args:
        space: whose candidates are tried, within its greatest complexity.
        start: the searched cell; further starts are random cells of the space.
        score: validation loss of a cell.
        genotype: the genotype of a cell; equal functions are measured once.
        settings: evaluations are shared out over the restarts, what one leaves goes to the next.
        seed: of the random starts.

    Returns the best cell met. It is never worse than the start.
    """
    scorer = _Scorer(score, genotype, settings.evaluations)
    start = dict(start)
    start_loss = scorer(start)
    best, best_loss = start, start_loss
    for restart in range(settings.restarts):
        scorer.limit = math.ceil(settings.evaluations * (restart + 1) / settings.restarts)
        origin = start if restart == 0 else _random_ops(space, seed + restart)
        found, loss = _descend(space, origin, scorer, settings.width, settings.tolerance)
        if _lower(loss, best_loss, settings.tolerance):
            best, best_loss = found, loss
    return Refinement(dict(best), best_loss, start_loss, scorer.evaluations)


def _lower(loss: float, than: float, tolerance: float) -> bool:
    """Whether `loss` is lower by more than a share `tolerance` of what it is compared with."""
    return loss < than if math.isinf(than) else than - loss > tolerance * abs(than)


def _random_ops(space: SearchSpace, seed: int) -> dict[str, str]:
    return {name: choice.op for name, choice in space.random(seed).slots.items()}


def _descend(
    space: SearchSpace, start: Ops, score: _Scorer, width: int, tolerance: float
) -> tuple[dict[str, str], float]:
    """Slot by slot the best candidate until none helps, then pairs of the best of each slot, and over again."""
    best, loss = dict(start), math.inf

    def attempt(ops: dict[str, str]) -> float:
        nonlocal best, loss
        if not space.admits(ops):
            return math.inf
        value = score(ops)
        # Smaller gains than the tolerance are noise of the shared weights, and cost simplicity.
        if _lower(value, loss, tolerance):
            best, loss = ops, value
        return value

    try:
        attempt(best)
        while True:
            before = loss
            ranking = {}
            for slot in space.slots:
                base = dict(best)
                losses = {op: attempt({**base, slot.name: op}) for op in slot.candidates}
                ranking[slot.name] = sorted(losses, key=losses.__getitem__)[:width]
            if loss < before:
                continue
            base = dict(best)
            for (a, tops_a), (b, tops_b) in combinations(ranking.items(), 2):
                for first, second in product(tops_a, tops_b):
                    attempt({**base, a: first, b: second})
            if loss >= before:
                break
    except _BudgetSpent:
        pass  # the best so far is what the budget buys
    return best, loss
