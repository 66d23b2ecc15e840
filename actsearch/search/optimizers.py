"""The user's optimiser as a search needs it, and gradients that were taken without `backward`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from actsearch.errors import TaskError


def one_optimizer(configured: Any) -> tuple[Optimizer, list[Any]]:
    """The optimiser and the scheduler configurations in what a `configure_optimizers` returned. Raises TaskError."""
    schedulers: list[Any] = []
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list | tuple):
        configured, found = configured
        schedulers = list(found) if isinstance(found, list | tuple) else [found]
    if isinstance(configured, list | tuple):
        if len(configured) != 1:
            raise TaskError(f"configure_optimizers gives {len(configured)} optimizers; a search can drive one")
        configured = configured[0]
    if isinstance(configured, Mapping):
        if configured.get("lr_scheduler") is not None:
            schedulers.append(configured["lr_scheduler"])
        configured = configured.get("optimizer")
    if not isinstance(configured, Optimizer):
        raise TaskError("configure_optimizers returns no optimizer; a search needs one for the weights")
    return configured, [
        dict(s) if isinstance(s, Mapping) else {"scheduler": s, "interval": "epoch"} for s in schedulers
    ]


def distributed() -> bool:
    """Whether there are several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_agree(flag: Tensor) -> Tensor:
    """Whether a flag (0-d, bool) is set in every process; a tensor like it, and no wait on an accelerator."""
    if not distributed():
        return flag
    least = flag.to(torch.int32)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return least.bool()


def all_reduce_mean(gradients: Sequence[Tensor]) -> None:
    """Mean over processes, in one flat message; backward-by-grad does not go through Lightning's DDP."""
    if not distributed() or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for g, reduced in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(reduced.view_as(g))
