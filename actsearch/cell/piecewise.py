"""A table in float32: y = v + t (a + t c) for an element at place t of a piece."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL, c_int, c_int64
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from actsearch import native
from actsearch.cell.compiled import Compiled
from actsearch.cell.histogram import sum_by_code
from actsearch.cell.knots import COARSE, COARSE_BITS, K_BITS, LOWEST, Knots, locate
from actsearch.cell.lookup import Codes
from actsearch.cell.pieces import PIECES, pieces

# A code holds the piece and the element's place in it, in parts of 32: all that a backward pass needs, in two bytes.
PLACE_BITS = 5
PLACES = 1 << PLACE_BITS
CODES = 1 << 16
assert PIECES << PLACE_BITS <= CODES

_STRETCH = 1 << 17  # elements of which one thread adds up at least


@dataclass(frozen=True)
class PiecewiseTable:
    """A continuous function of pieces; an actsearch.cell.lookup.Table. An element's code has two bytes.

    Attributes:
        coefficients, rows, slopes, others: see `actsearch.cell.pieces.Pieces`, of one site.
        descriptors: int32 (2 · COARSE,), see `actsearch.cell.knots`.
    """

    coefficients: Tensor
    rows: Tensor
    slopes: Tensor
    others: Tensor
    descriptors: Tensor

    def at(self, elements: Tensor, compiled: bool) -> tuple[Tensor, Codes]:
        if kernels := _kernels(elements):
            y, codes = torch.empty_like(elements), torch.empty_like(elements, dtype=torch.int16)
            n = elements.numel()
            tensors = (self.descriptors, self.rows, self.others, y, codes)
            kernels.look_up_all(
                native.pointer(elements), c_int64(n), *map(native.pointer, tensors), c_int(native.threads(n))
            )
            return y, (codes,)
        run = _look_up if compiled and not elements.is_cpu else look_up
        y, codes = run(elements, self.descriptors, self.rows, self.others)
        return y, (codes,)

    def times_slope(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        if kernels := _kernels(g):
            out, n = torch.empty_like(g), g.numel()
            kernels.times_slope(
                native.pointer(g),
                native.pointer(*codes),
                c_int64(n),
                native.pointer(self.slopes),
                native.pointer(out),
                c_int(native.threads(n)),
            )
            return out
        run = _scale_by_slope if compiled and not g.is_cpu else scale_by_slope
        (kept,) = codes
        return run(g, kept, self.slopes)

    def gradient(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        # Of y = v + t a + t² c the gradients are sums of g, g t and g t².
        n = g.numel()
        if g.device.type != "cpu":
            run = _decode if compiled else decode
            return code_moments(sum_by_code(run(*codes), g, CODES)).float()
        # The stretches do not depend on the number of threads, so that the bits do not.
        stretches = max(1, min(n // _STRETCH, 16))
        sums = torch.zeros(stretches, PIECES, 4, dtype=torch.float64)
        if kernels := _kernels(g):
            kernels.moments(
                native.pointer(g),
                native.pointer(*codes),
                c_int64(n),
                native.pointer(sums),
                c_int(stretches),
                c_int64(PIECES),
                c_int(native.threads(n)),
            )
        else:
            code = decode(*codes)
            for k, total in enumerate(sums):
                some = slice(n * k // stretches, n * (k + 1) // stretches)
                moments_(total, code[some], g[some])
        return sums.sum(0)[:, :3].float()


def piecewise_tables(values: Tensor, knots: Knots) -> Sequence[PiecewiseTable]:
    """The tables of S sites, from the `values` (S, SEGMENTS) of their functions at `knots.start`."""
    found = pieces(values, knots)
    # Taken apart once: a gradient for each site would otherwise fill the whole.
    of_sites = (found.coefficients.unbind(), found.rows, found.slopes, found.others, knots.descriptors)
    return [PiecewiseTable(*tensors) for tensors in zip(*of_sites, strict=True)]


def look_up(x: Tensor, descriptors: Tensor, rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The function at flat float32 elements, and their codes; NaN stays NaN."""
    segment, place = locate(x, descriptors)
    piece = torch.where(place < rows[:, 3][segment], segment, others[segment])
    v, a, c = (rows[:, k][piece] for k in range(3))
    y = v + place * (a + place * c)
    code = (piece << PLACE_BITS) + (place * PLACES).int()
    return torch.where(x != x, x, y), code.to(torch.int16)


def scale_by_slope(g: Tensor, codes: Tensor, slopes: Tensor) -> Tensor:
    """g times the function's slope at the elements with these codes."""
    code = decode(codes)
    piece = code >> PLACE_BITS
    place = ((code & (PLACES - 1)).float() + 0.5) * (1 / PLACES)
    return g * (slopes[:, 0][piece] + place * slopes[:, 1][piece])


def decode(codes: Tensor) -> Tensor:
    """The codes, int32 in [0, CODES), of what is kept of them."""
    return codes.int() & (CODES - 1)


def code_moments(sums: Tensor) -> Tensor:
    """From sums of a quantity g by code (CODES,): Σ g, Σ g·t and Σ g·t² of each piece, (PIECES, 3)."""
    by_piece = sums.view(-1, PLACES)[:PIECES]
    places = (torch.arange(PLACES, device=sums.device, dtype=sums.dtype) + 0.5) / PLACES
    return by_piece @ torch.stack([torch.ones_like(places), places, places.square()], 1)


def moments_(total: Tensor, code: Tensor, g: Tensor) -> None:
    """Write Σ g, Σ g·t and Σ g·t² of each piece into `total` (PIECES, 4), added up in the order of the elements."""
    place = ((code & (PLACES - 1)).double() + 0.5) / PLACES
    for k in range(3):
        total[:, k] = torch.bincount(code >> PLACE_BITS, g.double() * place**k, minlength=PIECES)


def _kernels(elements: Tensor) -> CDLL | None:
    """The kernels for these elements, where there are some."""
    return library.kernels if elements.is_cpu else None


library = native.Library(
    Path(__file__).with_name("pieces.cpp"),
    {"COARSE_BITS": COARSE_BITS, "COARSE": COARSE, "LOWEST": LOWEST, "K_BITS": K_BITS, "PLACE_BITS": PLACE_BITS},
)
_look_up = Compiled(look_up)
_scale_by_slope = Compiled(scale_by_slope)
_decode = Compiled(decode)
