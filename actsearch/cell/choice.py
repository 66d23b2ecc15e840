"""Whether a table is faster than the dense evaluator here, found out by a trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TRIAL = 1 << 16  # elements; the result is scaled up from there
REPEATS = 3


def faster(
    tables: Callable[[], Sequence[Any]],
    lookup: Callable[[Tensor, Any], Tensor],
    dense: Callable[[Tensor], Tensor],
    trained: tuple[Sequence[Tensor], Sequence[Tensor]],
    elements: int,
    sites: int,
    like: Tensor,
) -> bool:
    """Whether an α step by tables is shorter than one by the dense evaluator, each at its shortest of three.

    Args:
        tables: makes the tables of all sites.
        lookup: the cell at one site, from its table.
        dense: the same, from every candidate.
        trained: what an α step takes gradients of: through the tables, and through `dense`.
        elements: of all sites together.
        sites: how many there are.
        like: has the dtype and device of the elements.
    """
    n = min(max(elements // sites, 1), TRIAL)
    # Spread as after a normalisation; drawn from no generator that a search uses.
    x = torch.special.ndtri(torch.linspace(1e-6, 1 - 1e-6, n, device=like.device)).to(like.dtype).requires_grad_()

    def seconds(run: Callable[[], object]) -> float:
        run()
        return min(_timed(run, like.device) for _ in range(REPEATS))

    def of_tables() -> object:
        made = tables()
        return torch.autograd.grad(
            torch.stack([t.coefficients.sum() for t in made]).sum(),
            trained[0],
            allow_unused=True,
        )

    table = tables()[0]
    per_element = seconds(
        lambda: torch.autograd.grad(lookup(x, table).sum(), [x, table.coefficients], retain_graph=True)
    )
    by_dense = seconds(lambda: torch.autograd.grad(dense(x).sum(), [x, *trained[1]], allow_unused=True))
    return seconds(of_tables) + per_element * elements / n < by_dense * elements / n


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
