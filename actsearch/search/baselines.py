"""Baselines of a search: random functions of the same space, for the same time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from actsearch.genotype import Genotype
from actsearch.seeds import mix_seed
from actsearch.space import SearchSpace


@dataclass(frozen=True)
class RandomSearch:
    """The best of `tried` random functions by loss, and the seconds that they took."""

    genotype: Genotype
    loss: float
    tried: int
    seconds: float


def random_search(
    space: SearchSpace, score: Callable[[Genotype], float], *, seconds: float, seed: int = 0
) -> RandomSearch:
    """Draw functions of `space` uniformly and score them until `seconds` are over; at least one.

    The budget is time, which is what a user has: a gradient step through all candidates costs as much as many
    evaluations of single functions. Losses that are not finite count as the worst.
    """
    started = time.perf_counter()
    best: Genotype | None = None
    best_loss = math.inf
    tried = 0
    while best is None or time.perf_counter() - started < seconds:
        genotype = space.random(mix_seed(seed, 104_729, tried))
        loss = score(genotype)
        tried += 1
        if best is None or loss < best_loss:
            best, best_loss = genotype, loss if math.isfinite(loss) else math.inf
    return RandomSearch(best, best_loss, tried, time.perf_counter() - started)
