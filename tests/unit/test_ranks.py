"""Rank correlation between a search's losses and retrained metrics."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from actsearch.compare.ranks import LEAST, rank_correlation

LOSSES = [0.5, 0.2, 0.9, 0.4, 0.7, 0.3]
ACCURACIES = [0.80, 0.95, 0.60, 0.90, 0.85, 0.88]


def test_it_is_that_of_scipy_and_positive_where_a_lower_loss_means_a_better_metric() -> None:
    found = rank_correlation(LOSSES, ACCURACIES, higher_is_better=True)
    assert found is not None
    assert found.n == 6
    assert found.spearman == pytest.approx(-stats.spearmanr(LOSSES, ACCURACIES).statistic)
    assert found.p_spearman == pytest.approx(stats.spearmanr(LOSSES, ACCURACIES).pvalue)
    assert found.kendall == pytest.approx(-stats.kendalltau(LOSSES, ACCURACIES).statistic)
    assert found.p_kendall == pytest.approx(stats.kendalltau(LOSSES, ACCURACIES).pvalue)
    assert -1 < found.interval[0] < found.spearman < found.interval[1] < 1
    errors = [1 - a for a in ACCURACIES]
    assert rank_correlation(LOSSES, errors, higher_is_better=False) == found
    assert "n = 6" in str(found)


def test_perfect_agreement_is_one() -> None:
    found = rank_correlation(LOSSES, [-x for x in LOSSES], higher_is_better=True)
    assert found is not None
    assert (found.spearman, found.kendall) == pytest.approx((1, 1))
    assert found.interval == pytest.approx((1, 1))


def test_failed_retrainings_are_left_out_and_an_infinite_loss_is_the_worst() -> None:
    with_failure = rank_correlation([*LOSSES, 0.1], [*ACCURACIES, math.nan], higher_is_better=True)
    assert with_failure == rank_correlation(LOSSES, ACCURACIES, higher_is_better=True)
    diverged = rank_correlation([*LOSSES, math.inf], [*ACCURACIES, 0.1], higher_is_better=True)
    assert diverged == rank_correlation([*LOSSES, 99.0], [*ACCURACIES, 0.1], higher_is_better=True)


def test_nothing_is_told_of_too_few_functions_or_of_equal_ones() -> None:
    few = LEAST - 1
    assert rank_correlation(LOSSES[:few], ACCURACIES[:few], higher_is_better=True) is None
    assert rank_correlation([1.0] * 6, ACCURACIES, higher_is_better=True) is None
    assert rank_correlation(LOSSES, [1.0] * 6, higher_is_better=True) is None


def test_the_interval_covers_what_it_should() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    rho, n, inside = 0.6, 20, 0
    pearson = 2 * math.sin(math.pi * rho / 6)  # of a bivariate normal whose Spearman correlation is rho
    for _ in range(400):
        x, noise = generator.normal(size=(2, n))
        y = pearson * x + math.sqrt(1 - pearson**2) * noise
        found = rank_correlation((-x).tolist(), y.tolist(), higher_is_better=True)
        assert found is not None
        inside += found.interval[0] <= rho <= found.interval[1]
    assert 0.92 <= inside / 400 <= 0.98
