"""Where a table has its knots, and which of them an element lies between.

Knots follow the float32's exponent and leading mantissa bits: 8 coarse segments an octave, from 2^LOWEST to 2^HIGHEST
on both sides of 0, one between 0 and 2^LOWEST, and one beyond 2^HIGHEST. A relaxed cell is not equally hard everywhere:
where an inner slot crosses 0, the floor of the square root or the edge of a clip, its derivative jumps, or falls from
16 to 1 within a hundredth. So the coarse segments where the function is least like a parabola are split into up to 128
equal parts, for each activation site and each draw anew. How many are split is fixed, and so is every shape:
nothing has to wait for the device.

An element finds its coarse segment and its place in it from its bits alone. The *descriptor* of the coarse segment
tells its first part and into how many it is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COARSE_BITS = 3
# The square root of the published space has its floor at 1e-3 = 2^-9.97, and log(|x| + 1e-3) is steepest below it.
# Beyond 2^HIGHEST the function is continued by its last value: asinh, the slowest to reach the published clip at 10, is
# there by 11,013; periodic operations, and clips at more than 10, still change.
LOWEST = -14
HIGHEST = 14
COARSE = ((HIGHEST - LOWEST) << COARSE_BITS) + 2  # coarse segments of one sign
UNBOUNDED = COARSE - 1

# (so many coarse segments of a site, split into 2^k parts each), the hardest first.
SPLITS = ((4, 7), (8, 6), (8, 5), (20, 3), (56, 1))
SEGMENTS = 2 * COARSE + sum(n * ((1 << k) - 1) for n, k in SPLITS)
K_BITS = 4  # of a descriptor

_SHIFT = 23 - COARSE_BITS
_REST = (1 << _SHIFT) - 1
_FIRST = ((127 + LOWEST) << COARSE_BITS) - 1
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
        self._parts = torch.arange(SEGMENTS, device=device)

    def __call__(self, values: Tensor) -> Knots:
        """Knots for functions with `values` (S, 2 · COARSE) at `points`; nothing of it is differentiated."""
        n = len(values)
        hard = hardness(values.detach().view(n, 2, COARSE), self._width[: COARSE - 1])
        hard = torch.cat([hard.square() * self._cost, torch.full_like(hard[..., :1], -1.0)], -1).flatten(1)
        hard[:, [0, COARSE]] = -1.0  # a float's bits do not divide the segment next to 0 evenly
        hardest = hard.nan_to_num(nan=0.0).topk(_RANKED).indices
        k = torch.zeros_like(hard, dtype=torch.int64).scatter_(1, hardest, self._splits.expand(n, -1))
        parts = 1 << k
        ends = parts.cumsum(1)
        first = ends - parts
        # The coarse segment of each part, among those of all sites.
        coarse = torch.repeat_interleave(parts.flatten(), output_size=n * SEGMENTS).view(n, SEGMENTS)
        within = coarse - 2 * COARSE * torch.arange(n, device=self.device)[:, None]
        part = self._parts - first.flatten()[coarse]
        width = self._width[within] / parts.flatten()[coarse]
        start = torch.where(part == 0, self.points[within], self._start[within] + width * part)
        return Knots((first << K_BITS | k).int(), start, width)


def hardness(values: Tensor, width: Tensor) -> Tensor:
    """By how much the slopes of parabolas may be off in each bounded segment (…, n), from the values at its ends.

    That is by how much the function's bend changes there, and in either neighbour: what lies near an end shows on both
    sides of it.
    """
    bend = (values.diff() / width).diff() / (width[1:] + width[:-1])
    change = bend.diff().abs() * width[1:-1]
    none = torch.zeros_like(change[..., :1])
    padded = torch.cat([none, none, change, none, none], -1)
    return padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]


def locate(x: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor]:
    """Segment (int32) and place in it (float32, in [0, 1)) of each element of a flat float32 tensor.

    Pure, so that it can be compiled. In the unbounded segment the place means nothing; so do both for NaN.
    """
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    coarse = (magnitude >> _SHIFT).clamp(_FIRST, _FIRST + UNBOUNDED) - _FIRST
    descriptor = descriptors[torch.where(bits < 0, coarse + COARSE, coarse)]
    # Bits below those of the coarse segment: the first k tell the part, the others the place in it.
    rest = (magnitude & _REST) << (descriptor & ((1 << K_BITS) - 1))
    segment = (descriptor >> K_BITS) + (rest >> _SHIFT)
    place = (rest & _REST).float() * (1 / (1 << _SHIFT))
    return segment, torch.where(coarse == 0, x.abs() * 2.0**-LOWEST, place)
