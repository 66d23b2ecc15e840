"""Rank correlation between what a search measured of functions and what retraining gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST = 5  # functions; of fewer no correlation is told


@dataclass(frozen=True)
class RankCorrelation:
    """How well a search's loss orders functions as their retraining does; 1 is the same order.

    Attributes:
        n: functions.
        spearman, p_spearman: ρ and its two-sided p.
        interval: 95 % of ρ, by Fisher's z with the variance of Bonett and Wright (Psychometrika 65, 2000).
        kendall, p_kendall: τ_b and its two-sided p, exact for few functions without ties.
    """

    n: int
    spearman: float
    p_spearman: float
    interval: tuple[float, float]
    kendall: float
    p_kendall: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"Spearman {self.spearman:+.2f} (95 % CI {low:+.2f} to {high:+.2f}, p = {self.p_spearman:.2g}), "
            f"Kendall {self.kendall:+.2f} (p = {self.p_kendall:.2g}), n = {self.n}"
        )


def rank_correlation(
    losses: Sequence[float], values: Sequence[float], higher_is_better: bool
) -> RankCorrelation | None:
    """Of the search's `losses` and the metric after retraining, function by function; positive where they agree.

    NaN is left out. An infinite loss is the worst. None with fewer than LEAST functions, or where all losses or all
    values are equal, as they then have no order.
    """
    pairs = [(x, y) for x, y in zip(losses, values, strict=True) if not (math.isnan(x) or math.isnan(y))]
    if len(pairs) < LEAST:
        return None
    x, y = np.array(pairs).T
    x, y = stats.rankdata(-x), stats.rankdata(y if higher_is_better else -y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    rho, tau = stats.spearmanr(x, y), stats.kendalltau(x, y)
    r, n = float(rho.statistic), len(pairs)
    half = 1.96 * math.sqrt((1 + r**2 / 2) / (n - 3))
    z = math.atanh(r) if abs(r) < 1 else math.copysign(math.inf, r)
    interval = (math.tanh(z - half), math.tanh(z + half))
    return RankCorrelation(n, r, float(rho.pvalue), interval, float(tau.statistic), float(tau.pvalue))
