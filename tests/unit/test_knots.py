"""Where a table has its knots."""

from __future__ import annotations

import torch
from torch import Tensor

from actsearch.cell.knots import (
    COARSE,
    HIGHEST,
    LOWEST,
    SEGMENTS,
    UNBOUNDED,
    Refinement,
    coarse_knots,
    locate,
)


def wiggly(x: Tensor) -> Tensor:
    """Two functions (2, P) that are hard at different places."""
    x = x.double()
    first = 10 * (x - 0.7).clamp(min=1e-3).sqrt() + x.abs()
    second = (x + 2.3).clamp(-1, 1) * 5 + (3 * x).tanh()
    return torch.stack([first, second]).float()


def numbers() -> Tensor:
    x = torch.cat([torch.randn(20_000), 300 * torch.randn(1000), 1e-4 * torch.randn(1000), coarse_knots()])
    return torch.cat([x, -coarse_knots(), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, torch.inf, -torch.inf])])


def test_every_float_lies_between_the_ends_of_its_segment() -> None:
    refinement = Refinement(torch.device("cpu"))
    knots = refinement(wiggly(refinement.points))
    for site in range(2):
        x = numbers()
        segment, place = locate(x, knots.descriptors[site])
        start, width = knots.start[site][segment].double(), knots.width[site][segment].double()
        start = torch.where(start.abs() < 1e-30, 0.0, start)
        bounded = width != 0
        magnitude = x.double().abs()
        assert (start.abs() <= magnitude).all()
        assert (magnitude < (start + width).abs())[bounded].all()
        assert (magnitude[~bounded] >= 2.0**HIGHEST).all()
        # Zero lies on the side of its sign.
        assert (torch.signbit(x) == torch.signbit(knots.start[site][segment])).all()
        exact = (magnitude - start.abs()) / width.abs()
        assert torch.allclose(place[bounded].double(), exact[bounded], atol=1e-6)
        assert ((place >= 0) & (place < 1))[bounded].all()


def test_segments_of_a_side_follow_one_another_without_a_gap() -> None:
    refinement = Refinement(torch.device("cpu"))
    knots = refinement(wiggly(refinement.points))
    for start, width in zip(knots.start.double(), knots.width.double(), strict=True):
        ends = torch.nonzero(width == 0).flatten()
        assert len(ends) == 2
        assert ends[1] == SEGMENTS - 1
        for side in (slice(0, int(ends[0]) + 1), slice(int(ends[0]) + 1, SEGMENTS)):
            assert torch.allclose(start[side][:-1] + width[side][:-1], start[side][1:], rtol=0, atol=1e-30)
            assert start[side].abs().max() == 2.0**HIGHEST


def test_segments_are_short_where_the_function_is_hard() -> None:
    refinement = Refinement(torch.device("cpu"))
    knots = refinement(wiggly(refinement.points))
    coarse_width = 2.0**-4  # of segments from 0.5 to 1

    def width_at(site: int, x: float) -> float:
        segment, _ = locate(torch.tensor([x]), knots.descriptors[site])
        return float(knots.width[site][segment].abs())

    assert width_at(0, 0.7012) <= coarse_width / 64  # where the square root leaves its floor
    assert width_at(0, -0.7) == coarse_width
    assert width_at(1, -1.3) <= 2 * coarse_width / 8  # an edge of the clamp
    assert width_at(0, 500.0) == 256 / 8


def test_not_even_a_function_that_is_not_finite_breaks_the_knots() -> None:
    refinement = Refinement(torch.device("cpu"))
    values = wiggly(refinement.points)
    values[0, 5:300] = torch.nan
    values[1, 3] = torch.inf
    knots = refinement(values)
    for site in range(2):
        segment, _ = locate(numbers(), knots.descriptors[site])
        assert ((segment >= 0) & (segment < SEGMENTS)).all()
    assert torch.equal(knots.start.isfinite(), torch.ones_like(knots.start, dtype=torch.bool))


def test_knots_reach_below_the_floor_of_the_square_root() -> None:
    knots = coarse_knots()
    assert len(knots) == COARSE == UNBOUNDED + 1
    assert knots[1] == 2.0**LOWEST < 1e-3
    assert 1e-3 < knots[knots > 1e-3].min() < 1e-3 * (1 + 0.15)
