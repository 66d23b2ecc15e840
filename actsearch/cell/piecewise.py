"""A table in float32: y = v_i + t (v_{i+1} - v_i) for an element at place t of segment i."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actsearch.cell.compiled import Compiled
from actsearch.cell.histogram import sum_by_code
from actsearch.cell.knots import CODES, PLACE_BITS, Knots, code_moments, decode, encode, locate
from actsearch.cell.lookup import Codes


@dataclass(frozen=True)
class PiecewiseTable:
    """A continuous, piecewise linear function; an actsearch.cell.lookup.Table. An element's code has two bytes.

    Attributes:
        values: float32 (SEGMENTS,), the function at the start of each segment.
        rises: float32 (SEGMENTS,), its difference over the segment.
        slopes: float32 (SEGMENTS,), its derivative within the segment.
        bounded: bool (SEGMENTS,), whether the segment has an end.
        descriptors: int32 (2 · COARSE,), see `actsearch.cell.knots`.
    """

    values: Tensor
    rises: Tensor
    slopes: Tensor
    bounded: Tensor
    descriptors: Tensor

    def at(self, elements: Tensor, compiled: bool) -> tuple[Tensor, Codes]:
        run = _look_up if compiled else look_up
        y, *codes = run(elements, self.descriptors, self.values.detach(), self.rises)
        return y, tuple(codes)

    def times_slope(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        run = _scale_by_slope if compiled else scale_by_slope
        high, low = codes
        return run(g, high, low, self.slopes)

    def gradient(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        run = _decode if compiled else decode
        high, low = codes
        total, leaning = code_moments(sum_by_code(run(high, low), g, CODES))
        # y = (1 - t) v_i + t v_{i+1}; an unbounded segment has the first only.
        leaning = leaning * self.bounded
        return (total - leaning + leaning.roll(1)).float()


def piecewise_tables(values: Tensor, knots: Knots) -> list[PiecewiseTable]:
    """The tables of S sites, from the `values` (S, SEGMENTS) of their functions at `knots.start`."""
    with torch.no_grad():
        bounded = knots.width != 0
        rises = torch.where(bounded, values.roll(-1, 1) - values, 0.0)
        slopes = torch.where(bounded, rises / knots.width, 0.0)
    # Taken apart once: a gradient for each site would otherwise fill the whole.
    rows = zip(values.unbind(), rises, slopes, bounded, knots.descriptors, strict=True)
    return [PiecewiseTable(*row) for row in rows]


def look_up(x: Tensor, descriptors: Tensor, values: Tensor, rises: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The function at flat float32 elements, and the bytes of their codes; NaN stays NaN."""
    segment, place = locate(x, descriptors)
    y = values[segment] + place * rises[segment]
    return torch.where(x != x, x, y), *encode(segment, place)


def scale_by_slope(g: Tensor, high: Tensor, low: Tensor, slopes: Tensor) -> Tensor:
    """g times the function's slope at the elements with these codes."""
    return g * slopes[decode(high, low) >> PLACE_BITS]


_look_up = Compiled(look_up)
_scale_by_slope = Compiled(scale_by_slope)
_decode = Compiled(decode)
