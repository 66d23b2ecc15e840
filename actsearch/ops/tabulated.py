"""A fixed function on the CPU, as a table of cubics that is as exact as float32, whatever the function costs.

Two tables hold the function and its slope. Segments follow a float's bits: 2^bits an octave, from 2^LOWEST to some
2^highest on both sides of 0, and one between 0 and 2^LOWEST. In each stands the cubic through four points, computed in
float64. Where the function has a kink or a jump within a segment, the place is found by bisection, and there is a cubic
on either side of it. Every segment is compared with the function between the points; where one is off by more than
rounding would be, there are more segments an octave, or fewer octaves, or no table.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from actsearch import native

LOWEST = -14
HIGHEST = 7  # activations are seldom beyond 128; those that are, are computed one by one
LEAST_HIGHEST = 3
BITS = (6, 7, 8)  # 2^bits segments an octave, tried in turn

# Of a cubic before its numbers are rounded to float32, which takes as much: of values as a share of the greater of
# |f(x)| and |x|, of slopes as a share of the greater of |f'(x)| and 1.
VALUE_ERROR = 8e-8
SLOPE_ERROR = 2.0**-22
# In float32 an operation may be bounded where it is not in float64. As a share of the greatest of |f(x)|, |x| and 1.
SAME = 1e-3
LARGEST = 1e36  # of a cubic's numbers, so that float32 has them and their sums

_INSIDE = 2.0**-33  # of a segment: its ends are taken from within, since a derivative may jump there
_TINY = 1e-200
_AT = (0.0, 1 / 3, 2 / 3, 1.0)
_BETWEEN = (0.08, 0.5, 0.92, 0.23, 0.77)
# The place of a kink in its segment is found to 2^-_BISECTIONS, and its sides are taken from so far away.
_BISECTIONS, _ASIDE = 40, 2.0**-36
_MOST_KINKS = 64
# Parts of a segment that are narrower than this hold a line, and those a constant, where a cubic's numbers would be
# those of rounding.
_NARROW, _NONE = 1e-2, 1e-9

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From x to f(x) and f'(x), all float64 and of one shape."""


@dataclass(frozen=True)
class Tabulated:
    """A function and its slope on float32 elements.

    Attributes:
        values, slopes: float32 (P, 4), rows as `tabulated.cpp` takes them: those of the segments above 0, of those
            below, and of both sides of each kink.
        bits: 2^bits segments an octave.
        highest: elements from 2^highest on are outside.
    """

    values: Tensor
    slopes: Tensor
    bits: int
    highest: int

    def value(self, x: Tensor) -> tuple[Tensor, int]:
        """The function at flat `x`, and how many elements are outside: there the result means nothing."""
        return self._look_up(x, None, self.values)

    def times_slope(self, x: Tensor, g: Tensor) -> tuple[Tensor, int]:
        """`g` times the slope at `x`, both flat, and how many elements are outside."""
        return self._look_up(x, g, self.slopes)

    def is_outside(self, x: Tensor) -> Tensor:
        """Which elements are outside; those that are not finite are."""
        return ~(x.abs() < 2.0**self.highest)

    def _look_up(self, x: Tensor, g: Tensor | None, rows: Tensor) -> tuple[Tensor, int]:
        assert library.kernels is not None
        library.kernels.tabulated.restype = ctypes.c_int64
        y, n = torch.empty_like(x), x.numel()
        outside = library.kernels.tabulated(
            native.pointer(x),
            None if g is None else native.pointer(g),
            ctypes.c_int64(n),
            23 - self.bits,
            ((127 + LOWEST) << self.bits) - 1,
            self._segments,
            (127 + self.highest) << 23,
            ctypes.c_float(2.0**-LOWEST),
            native.pointer(rows),
            native.pointer(y),
            native.threads(n),
        )
        return y, int(outside)

    @cached_property
    def _segments(self) -> int:
        return ((self.highest - LOWEST) << self.bits) + 1


library = native.Library(Path(__file__).with_name("tabulated.cpp"), {})


class Tables:
    """The tables of functions, by anything that decides the function; the last MOST that were asked for are kept."""

    MOST = 128

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, Tabulated | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Tabulated | None]) -> Tabulated | None:
        """That of `key`, from `make` where it is not known; None if there is none, or there are no kernels."""
        with self._lock:
            if key not in self._found:
                self._found[key] = make() if library.kernels is not None else None
                if len(self._found) > self.MOST:
                    self._found.popitem(last=False)
            self._found.move_to_end(key)
            return self._found[key]


def tabulate(function: Function, in_float32: Callable[[Tensor], Tensor]) -> Tabulated | None:
    """The tables of a function, which `in_float32` computes as it is elsewhere; None where none is exact enough."""
    for bits in BITS:
        if table := _tabulate(function, in_float32, bits):
            return table
    return None


def _tabulate(function: Function, in_float32: Callable[[Tensor], Tensor], bits: int) -> Tabulated | None:
    starts, widths = _segments(bits)
    fits = _fit(function, starts, widths)
    odd = _differs(function, in_float32, starts + widths / 2)
    split = (fits.is_bad & ~odd).nonzero().flatten()[:_MOST_KINKS]
    kinks = _split(function, starts[split], widths[split])
    is_bad = (fits.is_bad | odd).index_put((split[~kinks.is_bad],), torch.tensor(False))
    # The least |x| of what could not be followed decides how far the table reaches.
    highest = HIGHEST
    if is_bad.any():
        least = float(starts[is_bad].abs().min())
        highest = min(HIGHEST, math.floor(math.log2(least))) if least else LOWEST
    if highest < LEAST_HIGHEST:
        return None
    within = starts.abs() < 2.0**highest
    n = int(within.sum())
    numbers = (torch.cumsum(within, 0) - 1)[split]  # of the split segments, among those that are left
    kept = within[split]
    tables = []
    for whole, parts in ((fits.values, kinks.values), (fits.slopes, kinks.slopes)):
        rows = torch.cat([whole[within], parts[kept].flatten(0, 1)])
        marks = torch.full((int(kept.sum()), 4), torch.nan, dtype=torch.float64)
        marks[:, 0] = kinks.place[kept]
        marks[:, 1] = n + 2 * torch.arange(len(marks), device="cpu")
        rows[numbers[kept]] = marks
        tables.append(rows.float().contiguous())
    values, slopes = tables
    return Tabulated(values, slopes, bits, highest)


def _differs(function: Function, in_float32: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    exact, _ = function(x.float().double())
    found = in_float32(x.float()).double()
    scale = torch.maximum(exact.abs(), x.abs()).clamp(min=1)
    return ~((found - exact).abs() <= SAME * scale)


def _segments(bits: int) -> tuple[Tensor, Tensor]:
    """Ends nearer to 0, and signed widths, of all segments: those above 0 and then those below; float64."""
    mantissa = 1 + torch.arange(1 << bits, dtype=torch.float64, device="cpu") / (1 << bits)
    octaves = 2.0 ** torch.arange(LOWEST, HIGHEST, dtype=torch.float64, device="cpu")
    ends = octaves.new_tensor([0.0, 2.0**HIGHEST])
    knots = torch.cat([ends[:1], (octaves[:, None] * mantissa).flatten(), ends[1:]])
    width = knots.diff()
    return torch.cat([knots[:-1], -knots[:-1]]), torch.cat([width, -width])


@dataclass(frozen=True)
class _Fits:
    """Cubics of segments: coefficients (N, 4) of the values and of the slopes, and whether one of them is off."""

    values: Tensor
    slopes: Tensor
    is_bad: Tensor


def _fit(function: Function, start: Tensor, width: Tensor) -> _Fits:
    """The cubics on [start, start + width], each (N,), in the place t from 0 to 1."""
    within = start.new_tensor(_AT).clamp(_INSIDE, 1 - _INSIDE)
    values, slopes = function(start[:, None] + width[:, None] * within)
    # Row k of the inverse has the coefficients of t^k.
    inverse = torch.linalg.inv(torch.stack([within**k for k in range(4)], 1))
    of_values, of_slopes = values @ inverse.T, slopes @ inverse.T
    # Nearest to 0 a function of 0 at 0 is as small as its input, and so must be what is off.
    tiny = torch.where(start == 0, torch.copysign(torch.full_like(start, _TINY), width), start)
    of_values[:, 0] = torch.where(start == 0, function(tiny)[0], of_values[:, 0])
    between = start.new_tensor(_BETWEEN)
    x = start[:, None] + width[:, None] * between
    powers = torch.stack([between**k for k in range(4)], 0)
    exact_values, exact_slopes = function(x)
    value_error = (of_values @ powers - exact_values).abs() / torch.maximum(exact_values.abs(), x.abs())
    slope_error = (of_slopes @ powers - exact_slopes).abs() / exact_slopes.abs().clamp(min=1)
    good = (value_error <= VALUE_ERROR).all(1) & (slope_error <= SLOPE_ERROR).all(1)
    good &= (of_values.abs() < LARGEST).all(1) & (of_slopes.abs() < LARGEST).all(1)
    return _Fits(of_values, of_slopes, ~good)


@dataclass(frozen=True)
class _Kinks:
    """Segments with a kink: its place, the cubics (N, 2, 4) on either side in the segment's place, whether off."""

    place: Tensor
    values: Tensor
    slopes: Tensor
    is_bad: Tensor


def _split(function: Function, start: Tensor, width: Tensor) -> _Kinks:
    """Where the kinks of these segments are, and the cubics on either side of them."""
    low, high = torch.zeros_like(start), torch.ones_like(start)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # Left of the middle all is well: the kink lies right of it.
        is_left_bad = _fit(function, start + low * width, (middle - low) * width).is_bad
        low, high = torch.where(is_left_bad, low, middle), torch.where(is_left_bad, middle, high)
    place = (low + high) / 2
    ends = [(torch.zeros_like(place), (place - _ASIDE).clamp(min=_ASIDE)),
            ((place + _ASIDE).clamp(max=1 - _ASIDE), torch.ones_like(place))]  # fmt: skip
    sides = [(_fit(function, start + a * width, (b - a) * width), a, b - a) for a, b in ends]
    return _Kinks(
        place,
        torch.stack([_stretched(fit.values, at, share) for fit, at, share in sides], 1),
        torch.stack([_stretched(fit.slopes, at, share) for fit, at, share in sides], 1),
        sides[0][0].is_bad | sides[1][0].is_bad,
    )


def _stretched(cubic: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """A cubic in (t - start) / width as one in t; coefficients (N, 4), start and width (N,)."""
    rise = cubic[:, 1:].sum(1)
    narrow, none = width < _NARROW, width < _NONE
    a = torch.where(none, cubic[:, 0] + rise / 2, cubic[:, 0])
    b = torch.where(none, 0.0, torch.where(narrow, rise, cubic[:, 1]) / width)
    c, d = (torch.where(narrow, 0.0, cubic[:, k] / width**k) for k in (2, 3))
    s = -start
    return torch.stack([a + s * (b + s * (c + s * d)), b + s * (2 * c + 3 * s * d), c + 3 * s * d, d], 1)
