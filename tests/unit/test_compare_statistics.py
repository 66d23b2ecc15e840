"""Paired statistics against scipy, hand-computed values, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from actsearch.compare import detectable, holm, paired
from actsearch.compare.statistics import sign_flip

rng = np.random.default_rng(3)
SAMPLES = [(rng.normal(0.1, 1, n), rng.normal(0, 1, n)) for n in (2, 3, 5, 8, 12)]


@pytest.mark.parametrize(("a", "b"), SAMPLES, ids=lambda v: f"n{len(v)}")
def test_t_test_and_interval_are_scipys(a: np.ndarray, b: np.ndarray) -> None:
    found, expected = paired(a - b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.n == len(a)
    assert found.mean == pytest.approx(np.mean(a - b))
    assert found.sd == pytest.approx(np.std(a - b, ddof=1))
    assert found.p_t == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize(("a", "b"), SAMPLES, ids=lambda v: f"n{len(v)}")
def test_permutation_test_is_scipys_exact_one(a: np.ndarray, b: np.ndarray) -> None:
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert paired(a - b).p_permutation == pytest.approx(expected.pvalue, rel=1e-12)


def test_permutation_test_by_hand() -> None:
    # Of the 8 patterns of signs of 1, 2, 3, two give the greatest sum, 6.
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == 2 / 8
    # |sum| of -1, 2, 3 is 4; as far or further are ±4 and ±6.
    assert sign_flip(np.array([-1.0, 2.0, 3.0])) == 4 / 8


def test_many_differences_are_sampled_and_never_give_zero() -> None:
    d = rng.normal(0.4, 1, 20)
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.03)
    assert 0 < sign_flip(np.full(40, 1.0) + rng.normal(0, 1e-3, 40)) < 1e-4


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3, 0.03·2 (raised to 0.06), 0.04·1 (raised to 0.06).
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_cannot_be_tested_does_not_count_for_holm() -> None:
    corrected = holm([math.nan, 0.02, 0.03])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_detectable_difference_has_the_power_that_it_promises(n: int) -> None:
    effect = detectable(2.0, n)
    drawn = np.random.default_rng(n).normal(effect, 2.0, (20_000, n))
    power = float(np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05))
    assert power == pytest.approx(0.8, abs=0.015)


def test_detectable_difference_of_a_table() -> None:
    # Cohen (1988): a paired t test needs 34 pairs for d = 0.5, and 15 for d = 0.8 (rounded up).
    assert detectable(1.0, 34) == pytest.approx(0.5, abs=0.01)
    assert detectable(1.0, 15) < 0.8 < detectable(1.0, 14)
    assert detectable(3.0, 15) == pytest.approx(3 * detectable(1.0, 15))
    assert detectable(1.0, 1) == math.inf


def test_a_single_seed_shows_nothing() -> None:
    found = paired([0.3])
    assert found.mean == 0.3
    assert found.interval == (-math.inf, math.inf)
    assert math.isnan(found.p_t)
    assert found.p_permutation == 1
    assert paired([]).n == 0


def test_equal_values_are_no_difference() -> None:
    found = paired([0.0, 0.0, 0.0])
    assert (found.mean, found.interval, found.p_t, found.p_permutation) == (0, (0, 0), 1, 1)


def test_rounding_errors_are_no_spread() -> None:
    """One test image of 200 in each of three seeds, in single precision: nothing can be estimated from that."""
    a, b = np.float32([0.985, 0.930, 0.115]), np.float32([0.980, 0.925, 0.110])
    d = a.astype(float) - b.astype(float)
    assert paired(d).p_t < 1e-8  # what would otherwise be believed
    found = paired(d, resolution=2e-6)
    assert found.mean == pytest.approx(0.005, abs=1e-6)
    assert found.sd == 0
    assert math.isnan(found.p_t)
    assert math.isnan(found.interval[0])
    assert found.p_permutation == 2 / 8
    assert paired([1e-8, -1e-8], resolution=2e-6).p_t == 1
