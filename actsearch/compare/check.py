"""Whether all contestants are smooth enough for a model, told before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from actsearch.compare.contestants import Contestant
from actsearch.errors import SmoothnessError
from actsearch.swap import swap, unswap
from actsearch.swap.smoothness import SMOOTH_SPACES, least_smoothness


def check_smoothness(build_task: Callable[[], nn.Module], contestants: Sequence[Contestant]) -> None:
    """Raise SmoothnessError for the first of `contestants` that is less smooth than the task's model needs.

    It takes one task, which draws from a copy of torch's global generator, and puts every contestant into it.
    """
    with torch.random.fork_rng(devices=[]):
        task = build_task()
        if least_smoothness(task) < 0:
            return
        for contestant in contestants:
            try:
                unswap(task, swap(task, copy.deepcopy(contestant.make), shared=contestant.shared))
            except SmoothnessError as error:
                reason = str(error).rpartition(";")[0]
                advice = _ADVICE.get(contestant.kind, "")
                raise SmoothnessError(
                    f"contestant {contestant.name}: {reason}; {advice}set compare.force to true to take it all the same"
                ) from None


_SMOOTHER = "set compare.activations to smooth ones, such as [own, tanh, silu], or "
_ADVICE = {
    "standard": _SMOOTHER,
    "control": _SMOOTHER,
    "random": f"draw random ones from space {' or '.join(SMOOTH_SPACES)}, or ",
}
