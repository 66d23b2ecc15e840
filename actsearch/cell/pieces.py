"""The pieces of a table: parabolas where the function is smooth, and two lines that meet where it has a kink.

In each segment the parabola goes through both ends and bends as the two second differences around it do on average;
where they differ, as the flatter one: that of the side without a kink (the choice of ENO; Harten, Engquist, Osher and
Chakravarthy, J. Comput. Phys. 71 (1987) 231). A kink within a segment makes its slope lie between those of its
neighbours, which differ by far more than they bend: there each neighbour is continued as a line, and the two meet where
the kink is (Harten's subcell resolution, J. Comput. Phys. 83 (1989) 148). All is linear in the function's values, but
for the choices, which are constants of a derivative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actsearch.cell.knots import SEGMENTS, Knots

KINKS = 96  # of a site at most, the greatest first
PIECES = SEGMENTS + KINKS
_WHOLE = 2.0  # a place beyond every other: the piece does not end within its segment

# A kink's slopes differ by so many times what bends of the neighbours would make them differ, …
_BENDS = 4.0
# … and by this share of themselves: below is rounding.
_LEAST = 1e-3
# Bends are averaged if they differ by no more than this share of the greater.
_ALIKE = 0.5


@dataclass(frozen=True)
class Pieces:
    """The functions of S sites, y = v + t (a + t c) at place t of a piece.

    The first SEGMENTS pieces are those of the segments; in KINKS others, at `others` of a segment, the function goes
    on from its place `end`.

    Attributes:
        coefficients: v, a and c, float32 (S, PIECES, 3); differentiable in the values they were made of.
        rows: the same without history, and `end`, float32 (S, PIECES, 4).
        slopes: of the derivative a + t c, float32 (S, PIECES, 2).
        others: int32 (S, SEGMENTS).
    """

    coefficients: Tensor
    rows: Tensor
    slopes: Tensor
    others: Tensor


def pieces(values: Tensor, knots: Knots) -> Pieces:
    """Those of functions with `values` (S, SEGMENTS) at `knots.start`."""
    # Of neighbours across the end of a side the masks keep nothing.
    bounded = knots.width != 0
    inner = bounded & _before(bounded)  # whether a segment has one before it, on its side of 0
    between = inner & _after(inner)
    width = torch.where(bounded, knots.width, 1.0)
    slope = torch.where(bounded, (_after(values) - values) / width, 0.0)
    # The second divided difference at the start of each segment.
    bend = torch.where(inner, (slope - _before(slope)) / (width + _before(width)), 0.0)
    bend_after = _after(bend)
    with torch.no_grad():
        size = torch.where(inner, bend.abs(), torch.inf)
        size_after = _after(size)
        at_start = size <= size_after
        # Two infinities, at the ends of a side, make NaN, which is not alike.
        alike = (bend - bend_after).abs() <= _ALIKE * torch.maximum(size, size_after)
        alike &= between
        share = torch.where(alike, 0.5, at_start.float())
        # The neighbours' slopes at the ends of the segment, each from its own side.
        left = _before(slope + bend * width)
        right = _after(slope - bend_after * width)
        jump = right - left
        bent = (_before(bend).abs() + _after(bend_after).abs()) * width.abs()
        is_kink = between & ((slope - left) * (right - slope) > 0) & (jump.abs() > _BENDS * bent)
        is_kink &= jump.abs() > _LEAST * torch.maximum(left.abs(), right.abs())
        score = torch.where(is_kink, jump.square() * width.abs(), 0.0).nan_to_num(nan=0.0)
        kinks = score.topk(KINKS)
        is_kink = torch.zeros_like(is_kink).scatter_(1, kinks.indices, kinks.values > 0)
        end = torch.where(is_kink, (right - slope) / jump, _WHOLE)
        others = torch.zeros_like(is_kink, dtype=torch.int32)
        numbers = torch.arange(SEGMENTS, PIECES, dtype=torch.int32, device=values.device)
        others.scatter_(1, kinks.indices, numbers.expand(len(values), -1))
    square = width.square()
    c = torch.where(is_kink, 0.0, torch.lerp(bend_after, bend, share) * square)
    along = torch.where(is_kink, _before(slope + bend * width), slope) * width
    first = torch.stack([values, torch.where(bounded, along, 0.0) - c, c], -1)
    rise = (_after(slope - bend_after * width) * width).gather(1, kinks.indices)
    second = torch.stack([_after(values).gather(1, kinks.indices) - rise, rise, torch.zeros_like(rise)], -1)
    coefficients = torch.cat([first, second], 1)
    with torch.no_grad():
        ends = torch.cat([end, torch.full_like(kinks.values, _WHOLE)], 1)
        rows = torch.cat([coefficients.detach(), ends[..., None]], -1)
        per_width = torch.cat([1 / width, 1 / width.gather(1, kinks.indices)], 1)
        slopes = torch.stack([rows[..., 1], 2 * rows[..., 2]], -1) * per_width[..., None]
    return Pieces(coefficients, rows, slopes, others)


def _before(x: Tensor) -> Tensor:
    """For each segment, what the one before it has."""
    return x.roll(1, 1)


def _after(x: Tensor) -> Tensor:
    """For each segment, what the one after it has."""
    return x.roll(-1, 1)
