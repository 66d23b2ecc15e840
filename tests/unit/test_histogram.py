"""Sums by code."""

from __future__ import annotations

import pytest
import torch

from actsearch.cell.histogram import fixed_point_sums, sum_by_code


def given(n: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 50, (n,), dtype=torch.int32), torch.randn(n) * torch.rand(n).exp()


def expected(codes: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return torch.zeros(64, dtype=torch.float64).index_add(0, codes, g.double())


def test_sums_are_those_of_float64() -> None:
    codes, g = given()
    assert torch.allclose(sum_by_code(codes, g, 64), expected(codes, g), atol=1e-4)
    assert torch.allclose(fixed_point_sums(codes, g, 64), expected(codes, g), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
def test_fixed_point_is_as_exact_at_any_scale(scale: float) -> None:
    codes, g = given()
    g = g * scale
    found = fixed_point_sums(codes, g, 64)
    assert torch.allclose(found, expected(codes, g), rtol=1e-9, atol=float(g.abs().max()) * 1e-9)


def test_fixed_point_has_the_same_bits_in_any_order() -> None:
    codes, g = given()
    found = fixed_point_sums(codes, g, 64)
    for _ in range(5):
        order = torch.randperm(len(g))
        assert torch.equal(fixed_point_sums(codes[order], g[order], 64), found)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    codes, g = given()
    g[7] = bad
    assert not fixed_point_sums(codes, g, 64).isfinite().any()
    assert not sum_by_code(codes, g, 64)[codes[7]].isfinite()


def test_nothing_and_zeros_sum_to_zero() -> None:
    codes, g = given(0)
    assert torch.equal(fixed_point_sums(codes, g, 64), torch.zeros(64, dtype=torch.float64))
    codes, g = given(10)
    assert torch.equal(fixed_point_sums(codes, 0 * g, 64), torch.zeros(64, dtype=torch.float64))
