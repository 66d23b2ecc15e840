"""The table evaluator: the cell is a function of one real number, so it is computed on knots and looked up.

What an element costs does not depend on the number of candidates, and autograd on the few thousand knots gives the
gradients of α and of op parameters. All sites are evaluated at once: first on the coarse knots, which they share, to
see where each function is hard, then on the knots of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from actsearch.cell.dense import DenseEvaluator
from actsearch.cell.half import half_tables
from actsearch.cell.knots import HIGHEST, Refinement
from actsearch.cell.lookup import Exact, Table, lookup
from actsearch.cell.piecewise import piecewise_tables
from actsearch.ops.clip import Clip
from actsearch.ops.guard import HALF

DTYPES = (torch.float32, *HALF)


def tabulable(clip: Clip) -> bool:
    """Whether a clip bounds the cell well within the table; nothing bounds one without a clip."""
    return clip.kind != "none" and clip.limit <= 2.0 ** (HIGHEST - 1)


class TableEvaluator:
    """Tables of a relaxed cell for all sites, and their lookup; op parameters of network scope."""

    def __init__(self, dense: DenseEvaluator) -> None:
        self._dense = dense
        self._refinement: Refinement | None = None

    def tables(
        self, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Sequence[Table]:
        """The tables of S sites for inputs of `dtype`, one of DTYPES; `weights` of a slot have shape (S, n)."""
        by_column = {slot: w.T for slot, w in weights.items()}
        first = next(iter(weights.values()))
        if dtype in HALF:
            constant = {slot: w.detach() for slot, w in by_column.items()}
            constants = {name: p.detach() for name, p in parameters.items()}
            return half_tables(
                lambda x: self._dense(x, by_column, parameters),
                lambda x: self._dense(x, constant, constants),
                dtype,
                len(first),
                first.device,
            )
        if self._refinement is None or self._refinement.device != first.device:
            self._refinement = Refinement(first.device)
        with torch.inference_mode():  # an eighth shorter than without gradients alone
            coarse = self._dense.on_knots(self._refinement.points[None], by_column, parameters)
        with torch.no_grad():
            knots = self._refinement(coarse)
        return piecewise_tables(self._dense.on_knots(knots.start, by_column, parameters), knots)

    def lookup(
        self,
        x: Tensor,
        table: Table,
        of_site: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
        keeps_input: bool,
        compiled: bool,
    ) -> Tensor:
        """The cell at `x` (any shape) from a site's table for its dtype.

        Second derivatives are those of the dense cell with the weights, (n,) for each slot, and parameters `of_site`;
        in float32 they need `keeps_input`.
        """
        if not keeps_input and x.dtype not in HALF:
            return lookup(x, table, None, compiled)
        weights, parameters = of_site()
        slots, names = list(weights), list(parameters)

        def dense(x: Tensor, *tensors: Tensor) -> Tensor:
            return self._dense(
                x.float(),
                dict(zip(slots, tensors[: len(slots)], strict=True)),
                dict(zip(names, tensors[len(slots) :], strict=True)),
            ).to(x.dtype)

        return lookup(x, table, Exact(dense, (*weights.values(), *parameters.values())), compiled)
