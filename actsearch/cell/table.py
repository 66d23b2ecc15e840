"""The table evaluator: the cell is a function of one real number, so it is computed on knots and looked up.

What an element costs does not depend on the number of candidates. Forwards y = a_i + b_i x, with the segment i of x
read off its bits; backwards dL/dx = g b_i, and dL/da_i = Σ g, dL/db_i = Σ g x over the elements of a segment, from
where autograd on the few thousand knots gives the gradients of α and of op parameters. Only x is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from actsearch.cell.dense import DenseEvaluator

# Knots follow the float32's exponent and leading mantissa bits: 2^MANTISSA_BITS segments an octave, from 2^LOWEST to
# 2^HIGHEST on both sides of 0, and one segment between 0 and 2^LOWEST. The square root of the published space has its
# floor at 1e-3 = 2^-9.97. Beyond 2^HIGHEST the function is continued by its last value: asinh, the slowest to reach the
# published clip at 10, is there by 11,013; only periodic operations still change.
MANTISSA_BITS = 8
LOWEST = -11
HIGHEST = 14

_SHIFT = 23 - MANTISSA_BITS
_FIRST = ((127 + LOWEST) << MANTISSA_BITS) - 1
SEGMENTS = ((HIGHEST - LOWEST) << MANTISSA_BITS) + 1  # of one sign, without the unbounded one
_SIDE = SEGMENTS + 1
POINTS = 2 * _SIDE


def knots() -> Tensor:
    """The knots of both sides, float64, shape (2 · (SEGMENTS + 1),): 0 … 2^HIGHEST, then their negatives."""
    mantissa = 1 + torch.arange(1 << MANTISSA_BITS, dtype=torch.float64) / (1 << MANTISSA_BITS)
    octaves = 2.0 ** torch.arange(LOWEST, HIGHEST, dtype=torch.float64)
    positive = torch.cat(
        [torch.zeros(1), (octaves[:, None] * mantissa).flatten(), torch.tensor([2.0**HIGHEST])]
    ).double()
    return torch.cat([positive, -positive])


def segment(x: Tensor) -> Tensor:
    """The segment of every element of a float32 tensor, int32, in [0, 2 · (SEGMENTS + 1))."""
    bits = x.detach().contiguous().view(torch.int32)
    position = (bits & 0x7FFFFFFF).bitwise_right_shift_(_SHIFT).clamp_(_FIRST, _FIRST + SEGMENTS)
    # bits >> 31 is -1 for negative numbers.
    return position.sub_(_FIRST).sub_(bits.bitwise_right_shift(31), alpha=_SIDE)


class _Lookup(torch.autograd.Function):
    """y = a_i + b_i x. `dense(x, *tensors)` computes the same exactly, for a backward pass that is differentiated."""

    @staticmethod
    def forward(ctx: Any, dense: Callable[..., Tensor], x: Tensor, a: Tensor, b: Tensor, *tensors: Tensor) -> Tensor:
        ctx.dense = dense
        ctx.save_for_backward(x, b, *tensors)
        i = segment(x).flatten()
        flat = x.detach().contiguous().flatten()
        return torch.addcmul(a.index_select(0, i), b.index_select(0, i), flat).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, b, *tensors = ctx.saved_tensors
        _, needs_x, needs_a, needs_b, *needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # Second derivatives of a piecewise linear function are wrong: take the exact cell. Its weights and
            # parameters get their gradients directly, so the table gets none.
            wanted = [t for t, need in zip([x, *tensors], [needs_x, *needs], strict=True) if need]
            exact = ctx.dense(x, *tensors)
            found = iter(torch.autograd.grad(exact, wanted, grads, create_graph=True, allow_unused=True))
            d_x, *d_tensors = [next(found) if need else None for need in (needs_x, *needs)]
            return (None, d_x, None, None, *d_tensors)
        g = grads[0].contiguous()
        i = segment(x).flatten()
        d_x = (g.flatten() * b.index_select(0, i)).view(x.shape) if needs_x else None
        d_a = d_b = None
        if needs_a or needs_b:
            d_a = torch.bincount(i, g.flatten(), minlength=POINTS).to(b.dtype)
            d_b = torch.bincount(i, (g * x).flatten(), minlength=POINTS).to(b.dtype)
        return (None, d_x, d_a, d_b, *[None] * len(tensors))


class TableEvaluator:
    """Tables of a relaxed cell for all sites at once, and their lookup. Float32 only; site or network scope."""

    def __init__(self, dense: DenseEvaluator) -> None:
        self._dense = dense
        self._knots = knots()

    def tables(self, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Intercepts a and slopes b of every site's segments, each float32 (S, 2 · (SEGMENTS + 1)).

        `weights` of a slot have shape (S, n). Computed in float64: a slope is a quotient of small differences.
        """
        first = next(iter(weights.values()))
        x = self._knots = self._knots.to(first.device)
        double = {slot: w.T.double() for slot, w in weights.items()}
        y = self._dense(x[None], double, {name: p.double() for name, p in parameters.items()})
        y = y.view(-1, 2, _SIDE)
        x = x.view(2, _SIDE)
        slope = y.diff(dim=-1) / x.diff(dim=-1)
        intercept = y[..., :-1] - slope * x[..., :-1]
        # The unbounded segment keeps the last value.
        b = torch.cat([slope, torch.zeros_like(slope[..., :1])], dim=-1)
        a = torch.cat([intercept, y[..., -1:]], dim=-1)
        return a.flatten(1).float(), b.flatten(1).float()

    def lookup(
        self,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weights: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """The cell at `x` (float32, any shape) from one site's `a` and `b`; `weights` of a slot have shape (n,)."""
        slots, names = list(weights), list(parameters)

        def dense(x: Tensor, *tensors: Tensor) -> Tensor:
            return self._dense(
                x,
                dict(zip(slots, tensors[: len(slots)], strict=True)),
                dict(zip(names, tensors[len(slots) :], strict=True)),
            )

        return _Lookup.apply(dense, x, a, b, *weights.values(), *parameters.values())
