"""The dense evaluator: every surviving candidate at every element, one at a time.

What a mixture saves for the backward pass is its inputs and its output, whatever the number of candidates: each
candidate is computed again there. It is the reference for any other evaluator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from actsearch.ops.clip import Clip
from actsearch.ops.graph import INPUT
from actsearch.ops.guard import inputs_within
from actsearch.ops.spec import OpSpec, registry
from actsearch.space import SearchSpace

LARGEST = 2.0**15  # of knots, and of what inner slots have there


@dataclass(frozen=True)
class _Term:
    """A candidate as it is summed into one row, or into several that share its values."""

    spec: OpSpec
    clip: Clip | None
    rows: tuple[int, ...]
    parameters: tuple[int, ...]  # positions in the bundle's list of parameter tensors, in the order of the spec

    def __call__(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        if self.parameters:
            named = {p.name: parameters[k] for p, k in zip(self.spec.parameters, self.parameters, strict=True)}
            y = self.spec.function(*inputs, **named)
        else:
            y = self.spec.function(*inputs)
        return y if self.clip is None else self.clip(y)


class _Mixture(torch.autograd.Function):
    """rows_r = Σ_k W[r, k] term_k(inputs), recomputing the terms in the backward pass; differentiable twice.

    W has shape (rows, terms), or (rows, terms, S) for S sites at once: the inputs then have shape (1 or S, …) and the
    rows (S, …).
    """

    @staticmethod
    def forward(
        ctx: Any, terms: tuple[_Term, ...], n_rows: int, n_inputs: int, weights: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.terms, ctx.n_rows, ctx.n_inputs = terms, n_rows, n_inputs
        ctx.save_for_backward(weights, *tensors)
        inputs, parameters = tensors[:n_inputs], tensors[n_inputs:]
        values = _on_host(weights)
        rows: list[Tensor | None] = [None] * n_rows
        for k, term in enumerate(terms):
            wanted = [r for r in term.rows if values is None or values[r][k] != 0]
            if not wanted:
                continue
            y = term(inputs, parameters)
            for r in wanted:
                row = rows[r]
                if row is None:
                    rows[r] = y * _column(weights[r, k], y)
                elif values is not None:
                    row.add_(y, alpha=values[r][k])
                else:
                    row.addcmul_(y, _column(weights[r, k], y))
        empty = inputs[0].new_zeros((*weights.shape[2:], *inputs[0].shape[weights.ndim - 2 :]))
        return tuple(empty if row is None else row for row in rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # create_graph=True: let autograd see every step
            found = _plain_gradients(ctx, weights, tensors, grads, needs)
        else:
            found = _recomputed_gradients(ctx, weights, tensors, grads, needs)
        return (None, None, None, *found)


def _on_host(weights: Tensor) -> list[list[float]] | None:
    """Weights as numbers, so that zeros (one-hot samples) are skipped, where looking costs no synchronisation."""
    return weights.tolist() if weights.ndim == 2 and weights.device.type == "cpu" else None


def _column(weight: Tensor, y: Tensor) -> Tensor:
    """A weight, or one a site, in a shape that multiplies `y`."""
    return weight if weight.ndim == 0 else weight.reshape(-1, *[1] * (y.ndim - 1))


def _plain_gradients(
    ctx: Any, weights: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    # Aliases: an earlier site holds the same parameters, and the gradients would go on through the inputs to those.
    weights, *tensors = [t.view_as(t) for t in (weights, *tensors)]
    inputs, parameters = tensors[: ctx.n_inputs], tensors[ctx.n_inputs :]
    rows: list[Tensor] = [torch.zeros_like(g) for g in grads]
    for k, term in enumerate(ctx.terms):
        y = term(inputs, parameters)
        for r in term.rows:
            rows[r] = rows[r] + _column(weights[r, k], y) * y
    wanted = [t for t, need in zip([weights, *tensors], needs, strict=True) if need]
    # A row may be constant: a slot whose last candidate is a β that is not trained now.
    pairs = [(row, g) for row, g in zip(rows, grads, strict=True) if row.requires_grad]
    if not pairs:
        return [None] * len(needs)
    outputs, cotangents = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, cotangents, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]


def _recomputed_gradients(
    ctx: Any, weights: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    d_weights = torch.zeros_like(weights) if needs[0] else None
    leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs[1:], strict=True)]
    inputs, parameters = leaves[: ctx.n_inputs], leaves[ctx.n_inputs :]
    totals: list[Tensor | None] = [None] * len(leaves)
    values = _on_host(weights)
    for k, term in enumerate(ctx.terms):
        if d_weights is None and values is not None and all(values[r][k] == 0 for r in term.rows):
            continue
        reached = [*range(ctx.n_inputs), *(ctx.n_inputs + p for p in term.parameters)]
        wanted = [i for i in reached if leaves[i].requires_grad]
        with torch.enable_grad():
            y = term(inputs, parameters)
        if d_weights is not None:
            for r in term.rows:
                d_weights[r, k] = _inner(grads[r], y.detach(), weights.ndim - 2)
        if not wanted or not y.requires_grad:
            continue
        g = sum(grads[r] * _column(weights[r, k], y) for r in term.rows)
        assert isinstance(g, Tensor)
        found = torch.autograd.grad(y, [leaves[i] for i in wanted], g.sum_to_size(y.shape), allow_unused=True)
        for i, d in zip(wanted, found, strict=True):
            if d is not None:
                total = totals[i]
                totals[i] = d if total is None else total + d
    return [
        d_weights,
        *(
            (torch.zeros_like(leaf) if total is None else total) if leaf.requires_grad else None
            for leaf, total in zip(leaves, totals, strict=True)
        ),
    ]


def _inner(a: Tensor, b: Tensor, batch_dims: int) -> Tensor:
    """Σ a·b over all but the first `batch_dims` dimensions; `b` may have size 1 in those."""
    if batch_dims == 0:
        return torch.dot(a.flatten(), b.flatten())
    return (a * b).flatten(1).sum(1)


class DenseEvaluator:
    """Evaluates a relaxed cell of `space` in which only `survivors` are left.

    Slots that read the same inputs are one bundle: a candidate without parameters is computed once for all of them.
    """

    def __init__(self, space: SearchSpace, survivors: Mapping[str, Sequence[int]]) -> None:
        self._output = space.output
        self._bundles: list[tuple[tuple[str, ...], tuple[str, ...], tuple[_Term, ...], list[str], Tensor]] = []
        grouped: dict[tuple[str, ...], list[str]] = {}
        for slot in space.slots:
            grouped.setdefault(slot.inputs, []).append(slot.name)
        done = {INPUT}
        waiting = dict(grouped)
        while waiting:
            inputs = next(i for i in waiting if done.issuperset(i))
            names = waiting.pop(inputs)
            self._bundles.append(self._bundle(space, inputs, names, survivors))
            done.update(names)

    @staticmethod
    def _bundle(
        space: SearchSpace, inputs: tuple[str, ...], names: list[str], survivors: Mapping[str, Sequence[int]]
    ) -> tuple[tuple[str, ...], tuple[str, ...], tuple[_Term, ...], list[str], Tensor]:
        limited = INPUT not in inputs
        parameters: list[str] = []
        rows: dict[tuple[str, str], dict[int, int]] = {}  # (op, owner of its parameters) -> row -> place among weights
        place = 0
        for r, name in enumerate(names):
            for k in survivors[name]:
                op = space.slot(name).candidates[k]
                owner = name if registry[op].parameters else ""
                rows.setdefault((op, owner), {})[r] = place
                place += 1
        terms = []
        # One more place than weights: the zero that stands where a row has no such candidate.
        index = torch.full((len(names), len(rows)), place)
        for k, ((op, owner), places) in enumerate(rows.items()):
            spec = registry[op]
            positions = []
            for p in spec.parameters:
                positions.append(len(parameters))
                parameters.append(f"{owner}/{op}/{p.name}")
            clip = space.clip if space.clip.needed(spec, limited) else None
            terms.append(_Term(spec, clip, tuple(places), tuple(positions)))
            for r, where in places.items():
                index[r, k] = where
        return inputs, tuple(names), tuple(terms), parameters, index

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """The cell at `x`; `weights` of each slot's survivors by slot, and parameters by `slot/op/name`.

        With weights of shape (n,), `x` has any shape and the result the same. With weights of shape (n, S), S sites are
        evaluated at once: `x` has shape (1, …) and the result (S, …).
        """
        values = {INPUT: x}
        for inputs, names, terms, named, index in self._bundles:
            matrix = _matrix(names, index, weights).to(x.dtype)
            tensors = [*(values[i] for i in inputs), *(parameters[p] for p in named)]
            rows = _Mixture.apply(terms, len(names), len(inputs), matrix, *tensors)
            values.update(zip(names, rows, strict=True))
        return values[self._output]

    def on_knots(self, x: Tensor, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """The same for few points x, float32 (1 or S, P) → (S, P), of S sites, in few tensor operations.

        x, and the space's clip, must be within ±LARGEST.

        The terms of slots that read the same are weighted by one product of matrices. Those of unary slots are computed
        again, together, in the backward pass: kept until then, they would be half as large as the activations of a
        small network.
        """
        values = {INPUT: x}
        for inputs, names, terms, named, index in self._bundles:
            matrix = _matrix(names, index, weights).permute(2, 0, 1)
            tensors = [*(values[i] for i in inputs), *(parameters[p] for p in named)]
            # Binary slots have few candidates, whose graph is kept: that is shorter than to compute them again.
            run = _rows_on_knots if len(inputs) == 2 else _RowsOnKnots.apply
            rows = run(terms, len(inputs), matrix, *tensors)
            values.update(zip(names, rows.unbind(1), strict=True))
        return values[self._output]


class _RowsOnKnots(torch.autograd.Function):
    """`_rows_on_knots`, which keeps its inputs and computes its terms again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, terms: Sequence[_Term], n_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.terms, ctx.n_inputs = terms, n_inputs
        ctx.save_for_backward(*tensors)
        return _rows_on_knots(terms, n_inputs, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needs, strict=True)]
        with torch.enable_grad():
            rows = _rows_on_knots(ctx.terms, ctx.n_inputs, *leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(rows, wanted, gradient, allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needs))


def _rows_on_knots(terms: Sequence[_Term], n_inputs: int, matrix: Tensor, *tensors: Tensor) -> Tensor:
    """Rows (S, rows, P) of a bundle from its `matrix` (S, rows, terms), inputs (1 or S, P) and parameters."""
    inputs, parameters = tensors[:n_inputs], tensors[n_inputs:]
    with inputs_within(LARGEST):
        terms_at_points = [term(inputs, parameters) for term in terms]
    # An operation with parameters by site has values for each, even where the sites share the points.
    values = torch.broadcast_tensors(inputs[0], *terms_at_points)[1:]
    stacked = torch.stack(values).transpose(0, 1)
    if matrix.is_cuda:  # where float32 products may be computed in TF32
        return (matrix.double() @ stacked.double()).float()
    if len(stacked) == 1:  # the sites share the points
        return (matrix.flatten(0, 1) @ stacked[0]).unflatten(0, matrix.shape[:2])
    return matrix @ stacked


def _matrix(names: Sequence[str], index: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The weights of a bundle's terms in its rows, (rows, terms, …); 0 where a row lacks a term."""
    flat = torch.cat([weights[name] for name in names])
    padded = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
    return padded[index.to(flat.device)]
