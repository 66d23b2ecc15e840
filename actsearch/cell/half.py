"""A table in half precision: there are 65,536 inputs, so it holds them all and is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actsearch.cell.compiled import Compiled
from actsearch.cell.histogram import sum_by_code
from actsearch.cell.lookup import Codes

INPUTS = 1 << 16


@dataclass(frozen=True)
class HalfTable:
    """The function at every number of a two-byte dtype, by its bits; an actsearch.cell.lookup.Table.

    An element is its own code.

    Attributes:
        coefficients: float32 (INPUTS,), its values.
        rounded: the same in the dtype, what is looked up.
        slopes: float32 (INPUTS,), the derivative.
    """

    coefficients: Tensor
    rounded: Tensor
    slopes: Tensor

    def at(self, elements: Tensor, compiled: bool) -> tuple[Tensor, Codes]:
        run = _look_up if compiled else look_up
        return run(places(elements), self.rounded), (elements,)

    def times_slope(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        run = _scale_by_slope if compiled else scale_by_slope
        return run(g, places(*codes), self.slopes)

    def gradient(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        return sum_by_code(places(*codes), g.float(), INPUTS).float()


def half_tables(
    function: Callable[[Tensor], Tensor],
    constant: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    sites: int,
    device: torch.device,
) -> list[HalfTable]:
    """The tables of S sites; `function` maps float32 (1 or S, P) to (S, P), a row a site.

    `constant` is the same, differentiable in its argument alone.
    """
    x = every_input(dtype, device)
    finite = x.isfinite()
    # What is not finite has no part in the graph, where 0 · NaN would be NaN.
    values = function(torch.where(finite, x, 0.0)[None])
    with torch.enable_grad():
        each = x.repeat(sites, 1).requires_grad_()
        found = constant(each)
        (slopes,) = torch.autograd.grad(found.sum(), each)
    rounded = torch.where(finite, values, found).detach().to(dtype)
    return [HalfTable(*row) for row in zip(values.unbind(), rounded, slopes, strict=True)]


def every_input(dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Every number of a two-byte dtype in the order of its bits, with infinities and NaN; float32 (INPUTS,)."""
    bits = torch.arange(INPUTS, device=device, dtype=torch.int32)
    return torch.where(bits < INPUTS // 2, bits, bits - INPUTS).to(torch.int16).view(dtype).float()


def places(x: Tensor) -> Tensor:
    """Where a flat tensor of a two-byte dtype is looked up, int32."""
    return x.view(torch.int16).int() & (INPUTS - 1)


def look_up(place: Tensor, rounded: Tensor) -> Tensor:
    """The function at these places."""
    return rounded[place]


def scale_by_slope(g: Tensor, place: Tensor, slopes: Tensor) -> Tensor:
    """g times the function's slope at these places, rounded once."""
    return (g.float() * slopes[place]).to(g.dtype)


_look_up = Compiled(look_up)
_scale_by_slope = Compiled(scale_by_slope)
