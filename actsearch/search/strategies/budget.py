"""What a search may spend, in training steps, and the rungs at which a trial is judged."""

from __future__ import annotations

from dataclasses import dataclass

from actsearch.search.schedule import drop_times
from actsearch.search.settings import SearchSettings, TrialSettings
from actsearch.space import SearchSpace

UNROLLED = 4  # gradients of a second-order α step: the unrolled step, α's, and the two of the finite difference


@dataclass(frozen=True)
class StepBudget:
    """The training steps of a gradient search.

    A training step is one gradient of the loss through the network, over the batches that make one step of an
    optimiser (`accumulate`). A step of the weights counts as one. A step of α counts as one too, and as UNROLLED with
    order 2. What needs no gradient does not count in any strategy: the validation after an epoch or at a rung, and the
    local search over the discrete cell (`refine`), which only the gradient search does. Nor does it count that a step
    through the mixture takes longer than one through a single function; the seconds tell.

    Attributes:
        weights: steps of the weights.
        alpha: steps of α, times what one counts.
    """

    weights: int
    alpha: int

    @property
    def total(self) -> int:
        return self.weights + self.alpha

    @classmethod
    def of_gradient_search(
        cls, settings: SearchSettings, pairs: int, space: SearchSpace, to_the_end: bool = False
    ) -> StepBudget:
        """Of a search with these settings in `space`, whose epochs have so many `pairs` of batches.

        α's steps end with the last drop, as every slot is then decided; `to_the_end` counts those after it, which are
        taken where the function that is left has parameters that α's steps train (β).
        """
        batches = settings.epochs * pairs
        weights = alpha = batches // settings.accumulate
        if settings.shrink and not to_the_end:
            per_epoch = settings.shrink_unit == "epoch"
            length = settings.epochs if per_epoch else weights
            last = max(drop_times(space.n_candidates, len(space.slots), length, settings.shrink_start), default=0)
            alpha = min(alpha, last * pairs // settings.accumulate if per_epoch else last)
        steps = -(-alpha // settings.arch_every)
        return cls(weights, steps * (UNROLLED if settings.order == 2 else 1))


def rungs(settings: TrialSettings, budget: StepBudget) -> tuple[int, ...]:
    """Training steps after which a trial is judged, ascending; the last ends it.

    The last is about `length` of the gradient search's weight steps; each is `reduction` times the one before.
    """
    longest = settings.length * budget.weights
    first = max(1, round(longest / settings.reduction ** (settings.rungs - 1)))
    return tuple(first * settings.reduction**k for k in range(settings.rungs))
