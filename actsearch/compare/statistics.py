"""Paired statistics over seeds: intervals, tests, Holm's correction, and what so few seeds could have shown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

MOST_EXACT = 16  # differences whose 2¹⁶ patterns of signs are gone through one by one
POWER, LEVEL = 0.8, 0.05


@dataclass(frozen=True)
class Paired:
    """Statistics of paired differences d_1 … d_n.

    Attributes:
        n: their number.
        mean, sd: of them; sd is that of the sample (n - 1), NaN below two.
        interval: 95 % confidence interval of the mean by Student's t, infinite below two. NaN without any spread,
            from which nothing can be estimated, unless all are 0.
        p_t: two-sided, of the paired t test; NaN as the interval is, and 1 if all are 0.
        p_permutation: two-sided, of the sign-flip permutation test; exact up to 16 differences.
        detectable: the least true mean that n such differences show with a probability of 80 %.
    """

    n: int
    mean: float
    sd: float
    interval: tuple[float, float]
    p_t: float
    p_permutation: float
    detectable: float


def paired(differences: ArrayLike, resolution: float = 0.0) -> Paired:
    """The statistics of one-dimensional differences; all NaN, with an infinite interval, if there are none.

    resolution: numbers that differ by no more are equal. Rounding errors would be taken for a spread, a minute one,
    and a difference of one test image in every seed for the surest result of all.
    """
    d = np.asarray(differences, dtype=float)
    d = np.where(np.abs(d) <= resolution, 0.0, d)
    n = len(d)
    if n == 0:
        return Paired(0, math.nan, math.nan, (-math.inf, math.inf), math.nan, math.nan, math.inf)
    mean = float(d.mean())
    if n == 1:
        return Paired(1, mean, math.nan, (-math.inf, math.inf), math.nan, 1.0, math.inf)
    if np.ptp(d) <= resolution:
        d = np.full(n, d[0])
        nothing = 0.0 if d[0] == 0 else math.nan
        p_t = 1.0 if d[0] == 0 else math.nan
        return Paired(n, float(d[0]), 0.0, (nothing, nothing), p_t, sign_flip(d), nothing)
    sd = float(d.std(ddof=1))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    p_t = float(2 * stats.t.sf(abs(mean) / sd * math.sqrt(n), n - 1))
    return Paired(n, mean, sd, (mean - half, mean + half), p_t, sign_flip(d), detectable(sd, n))


def sign_flip(d: NDArray[np.float64]) -> float:
    """Share of sign patterns whose mean is at least as far from 0; with more than 16 differences, of a sample."""
    if len(d) <= MOST_EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
        extreme = _as_extreme(signs, d)
        return float(extreme.mean())
    signs = np.random.default_rng(0).choice((-1, 1), size=(65_536, len(d)))
    # The pattern that was observed is one of the sample, so that p is never 0.
    return float((_as_extreme(signs, d).sum() + 1) / (len(signs) + 1))


def _as_extreme(signs: NDArray[np.int_], d: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Sums in another order differ by rounding errors.
    return np.abs(signs @ d) >= abs(d.sum()) - 1e-12 * np.abs(d).sum()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979); NaN stays NaN and does not count."""
    order = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[k] = highest
    return corrected


def detectable(sd: float, n: int) -> float:
    """The least true difference that a two-sided paired t test at 5 % finds with a probability of 80 %.

    sd: of the differences. n: seeds. The power is that of the non-central t distribution. Infinite below two seeds.
    A correction for several tests makes it greater.
    """
    if n < 2 or math.isnan(sd):
        return math.inf
    if sd == 0:
        return 0.0
    limit = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) ** 2

    def missing(effect: float) -> float:
        # t² follows a non-central F distribution, which scipy computes where its non-central t gives NaN.
        return float(stats.ncf.sf(limit, 1, n - 1, n * effect**2)) - POWER

    upper = 1.0
    while missing(upper) < 0:
        upper *= 2
    return sd * float(optimize.brentq(missing, 1e-6, upper))
