"""The lookup of a table as one node of the graph: what any table of a cell has to offer, and what is saved for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from actsearch.cell.flat import Order
from actsearch.errors import EvaluatorError

Codes = tuple[Tensor, ...]


class Table(Protocol):
    """The table of one activation site.

    An element-wise kernel has the same bits as plain PyTorch. Where `compiled` says so it may take torch.compile, which
    takes seconds at the first call.
    """

    @property
    def coefficients(self) -> Tensor:
        """What the function is made of, float32 (P, …): what gradients go back to."""

    def at(self, elements: Tensor, compiled: bool) -> tuple[Tensor, Codes]:
        """The function at elements (N,), and the codes by which the other methods know them."""

    def times_slope(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        """g (N,) times the function's derivative at the elements, in the dtype of g."""

    def gradient(self, g: Tensor, codes: Codes, compiled: bool) -> Tensor:
        """Gradient of `coefficients` for the gradient g (N,) of the elements' function, float32 (P, …)."""


@dataclass(frozen=True)
class Exact:
    """The dense cell, for what a table cannot tell.

    Attributes:
        function: `(x, *tensors)` → the cell at x.
        tensors: its weights and parameters.
    """

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


def lookup(x: Tensor, table: Table, exact: Exact | None, compiled: bool) -> Tensor:
    """The table at `x`, of any shape and memory format; differentiable in `x` and in the table's coefficients.

    A backward pass that is itself differentiated is computed by `exact`, for which `x` is kept, and its gradients go to
    `x` and to `exact.tensors`. Without `exact` it raises EvaluatorError.
    """
    tensors = exact.tensors if exact else ()
    result: Tensor = _Lookup.apply(table, exact, compiled, x, table.coefficients, *tensors)
    return result


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Table, exact: Exact | None, compiled: bool, x: Tensor, coefficients: Tensor, *tensors: Tensor
    ) -> Tensor:
        order = Order.of(x)
        y, codes = table.at(order.flatten(x.detach()), compiled)
        ctx.table, ctx.exact, ctx.compiled, ctx.order, ctx.n_codes = table, exact, compiled, order, len(codes)
        ctx.save_for_backward(*codes, *((x, *tensors) if exact else ()))
        return order.restore(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        codes, kept = saved[: ctx.n_codes], saved[ctx.n_codes :]
        *_, needs_x, needs_table = ctx.needs_input_grad[:5]
        needs = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():
            d_x, *d_tensors = _exact_gradients(ctx.exact, kept, grads, [needs_x, *needs])
            return (None, None, None, d_x, None, *d_tensors)
        g = ctx.order.flatten(grads[0])
        d_x = ctx.order.restore(ctx.table.times_slope(g, codes, ctx.compiled)) if needs_x else None
        d_table = ctx.table.gradient(g, codes, ctx.compiled) if needs_table else None
        return (None, None, None, d_x, d_table, *[None] * len(needs))


def _exact_gradients(
    exact: Exact | None, kept: Sequence[Tensor], grads: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients whose graph is that of the dense cell: second derivatives of a piecewise linear function are wrong."""
    if exact is None:
        raise EvaluatorError(
            "a second derivative of the mixture was asked for, and its input was not kept; set keeps_input of the "
            "cell to true, or its evaluator to dense"
        )
    kept = [t.view_as(t) for t in kept]  # aliases, so that gradients stop here: other sites hold the same parameters
    wanted = [t for t, need in zip(kept, needs, strict=True) if need]
    found = iter(torch.autograd.grad(exact.function(*kept), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]
