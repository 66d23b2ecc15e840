"""Where a table has its knots, and which of them an element lies between.

Knots follow the float32's exponent and leading mantissa bits: 32 coarse segments an octave, from 2^LOWEST to 2^HIGHEST
on both sides of 0, one between 0 and 2^LOWEST, and one beyond 2^HIGHEST. A relaxed cell is not equally hard everywhere:
where an inner slot crosses 0, the floor of the square root or the edge of a clip, its derivative jumps, or falls from
16 to 1 within a hundredth. So the coarse segments whose slopes differ most from their neighbours' are split into up to
128 equal parts, for each activation site and each draw anew. How many are split is fixed, and so is every shape:
nothing has to wait for the device.

An element finds its coarse segment and its place in it from its bits alone. The *descriptor* of the coarse segment
tells its first part and into how many it is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COARSE_BITS = 5
# The square root of the published space has its floor at 1e-3 = 2^-9.97, and log(|x| + 1e-3) is steepest below it.
# Beyond 2^HIGHEST the function is continued by its last value: asinh, the slowest to reach the published clip at 10, is
# there by 11,013; periodic operations, and clips at more than 10, still change.
LOWEST = -14
HIGHEST = 14
COARSE = ((HIGHEST - LOWEST) << COARSE_BITS) + 2  # coarse segments of one sign
UNBOUNDED = COARSE - 1

# (so many coarse segments of a site, split into 2^k parts each), the hardest first.
SPLITS = ((8, 7), (24, 5), (64, 3), (200, 1))
SEGMENTS = 2 * COARSE + sum(n * ((1 << k) - 1) for n, k in SPLITS)

# A code holds the segment and the element's place in it in eighths: all that a backward pass needs, in two bytes.
PLACE_BITS = 3
CODES = 1 << 16
assert SEGMENTS << PLACE_BITS <= CODES

_SHIFT = 23 - COARSE_BITS
_REST = (1 << _SHIFT) - 1
_FIRST = ((127 + LOWEST) << COARSE_BITS) - 1
_K_BITS = 4
_RANKED = sum(n for n, _ in SPLITS)


def coarse_knots(device: torch.device | None = None) -> Tensor:
    """The least |x| of each coarse segment, float32 (COARSE,): 0, 2^LOWEST, … 2^HIGHEST."""
    mantissa = 1 + torch.arange(1 << COARSE_BITS, device=device) / (1 << COARSE_BITS)
    octaves = 2.0 ** torch.arange(LOWEST, HIGHEST, device=device)
    ends = [torch.zeros(1, device=device), (octaves[:, None] * mantissa).flatten()]
    return torch.cat([*ends, torch.full((1,), 2.0**HIGHEST, device=device)])


@dataclass(frozen=True)
class Knots:
    """The segments of S sites.

    Attributes:
        descriptors: int32 (S, 2 · COARSE), of the coarse segments above 0 and then of those below.
        start: float32 (S, SEGMENTS), the knot of each segment that is nearer to 0; never 0 itself, so that the two
            sides of 0 stay apart.
        width: float32 (S, SEGMENTS), signed: the other knot less `start`; 0 for the unbounded segments.
    """

    descriptors: Tensor
    start: Tensor
    width: Tensor


class Refinement:
    """Places knots; keeps what does not change, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        knots = coarse_knots(device)
        one_side = torch.cat([knots.diff(), torch.zeros(1, device=device)])
        self._width = torch.cat([one_side, -one_side])
        self._start = torch.cat([knots, -knots])
        # Which side of 0 a cell is asked for.
        self.points = torch.where(self._start == 0, torch.finfo(torch.float32).tiny, 1.0) * torch.where(
            self._width < 0, -1.0, 1.0
        )
        self.points = torch.where(self._start == 0, self.points, self._start)
        middle = knots[:-1] + one_side[:-1] / 2
        # How much an error of the slope in a segment costs: its share of the elements, which after normalisation are
        # mostly within ±4, in a way that does not favour one scale among the smaller ones.
        self._cost = one_side[:-1] / (1 / 16 + middle) / (1 + (middle / 4) ** 4)
        self._splits = torch.cat([torch.full((n,), k, device=device) for n, k in SPLITS])
        self._places = torch.arange(SEGMENTS, device=device)

    def __call__(self, values: Tensor) -> Knots:
        """Knots for functions with `values` (S, 2 · COARSE) at `points`; nothing of it is differentiated."""
        n = len(values)
        sides = values.detach().view(n, 2, COARSE)
        slopes = sides.diff() / self._width[: COARSE - 1]
        jumps = slopes.diff().abs()
        zero = torch.zeros_like(jumps[..., :1])
        # A segment is hard if it differs from either neighbour: a kink within it shows on both.
        hard = torch.cat([jumps, zero], -1) + torch.cat([zero, jumps], -1)
        hard = torch.cat([hard.square() * self._cost, torch.full_like(zero, -1.0)], -1).flatten(1)
        hard[:, [0, COARSE]] = -1.0  # a float's bits do not divide the segment next to 0 evenly
        hardest = hard.nan_to_num(nan=0.0).topk(_RANKED).indices
        k = torch.zeros_like(hard, dtype=torch.int64).scatter_(1, hardest, self._splits.expand(n, -1))
        ends = (1 << k).cumsum(1)
        first = ends - (1 << k)
        coarse = torch.searchsorted(ends, self._places.expand(n, -1).contiguous(), right=True)
        parts = (1 << k.gather(1, coarse)).float()
        part = self._places - first.gather(1, coarse)
        width = self._width[coarse] / parts
        start = torch.where(part == 0, self.points[coarse], self._start[coarse] + width * part)
        return Knots((first << _K_BITS | k).int(), start, width)


def locate(x: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor]:
    """Segment (int32) and place in it (float32, in [0, 1)) of each element of a flat float32 tensor.

    Pure, so that it can be compiled. In the unbounded segment the place means nothing; so do both for NaN.
    """
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    coarse = (magnitude >> _SHIFT).clamp(_FIRST, _FIRST + UNBOUNDED) - _FIRST
    descriptor = descriptors[torch.where(bits < 0, coarse + COARSE, coarse)]
    # Bits below those of the coarse segment: the first k tell the part, the others the place in it.
    rest = (magnitude & _REST) << (descriptor & ((1 << _K_BITS) - 1))
    segment = (descriptor >> _K_BITS) + (rest >> _SHIFT)
    place = (rest & _REST).float() * (1 / (1 << _SHIFT))
    return segment, torch.where(coarse == 0, x.abs() * 2.0**-LOWEST, place)


def encode(segment: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of elements, in [0, CODES), as their high and low bytes: uint8, which compilers turn into vectors."""
    code = (segment << PLACE_BITS) + (place * (1 << PLACE_BITS)).int()
    return (code >> 8).to(torch.uint8), (code & 0xFF).to(torch.uint8)


def decode(high: Tensor, low: Tensor) -> Tensor:
    """The codes, int32, of their bytes."""
    return (high.int() << 8) + low.int()


def code_moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """From sums of a quantity g by code (CODES,): Σ g and Σ g·place of each segment, (SEGMENTS,) each."""
    by_segment = sums.view(-1, 1 << PLACE_BITS)[:SEGMENTS]
    places = (torch.arange(1 << PLACE_BITS, device=sums.device, dtype=sums.dtype) + 0.5) / (1 << PLACE_BITS)
    return by_segment.sum(1), by_segment @ places
