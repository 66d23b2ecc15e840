"""Ask, train, judge, tell, until the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import optuna

from actsearch.genotype import Genotype
from actsearch.search.strategies.log import TrialLog, TrialRecord
from actsearch.search.strategies.sampler import Sampler

Judge = Callable[[int, float], bool]
"""Told the training steps done and the loss on α's part at each rung; whether the trial goes on."""
Train = Callable[[Genotype, Sequence[int], Judge], None]
"""Trains a function from scratch, and has it judged after each of the given numbers of steps until it is stopped."""


def sample(
    sampler: Sampler,
    train: Train,
    rungs: Sequence[int],
    budget: int,
    log: TrialLog,
    told: Callable[[TrialRecord], None] | None = None,
) -> None:
    """Run trials into `log` as long as `budget` training steps, less those of the trials in it, reach a first rung.

    A trial goes to the next rung if successive halving keeps it, and the budget reaches that rung. So all trials
    together never take more than the budget, and leave less than a first rung of it, unless no new function is found.
    """
    while (left := budget - log.steps) >= rungs[0]:
        asked = sampler.ask(log.records)
        if asked is None:
            return
        study, trial, genotype = asked
        judgement = _Judgement(trial, [step for step in rungs if step <= left])
        started = time.perf_counter()
        train(genotype, judgement.rungs, judgement)
        steps = max(judgement.losses)
        record = TrialRecord(
            number=len(log.records),
            params=dict(trial.params),
            formula=genotype.formula,
            losses=judgement.losses,
            steps=steps,
            pruned=judgement.pruned,
            seconds=time.perf_counter() - started,
            attrs=sampler.tell(study, trial, judgement.losses[steps], judgement.pruned),
        )
        log.add(record)
        if told is not None:
            told(record)


class _Judgement:
    """Reports a trial's losses to its study, which decides whether it goes on."""

    def __init__(self, trial: optuna.Trial, rungs: Sequence[int]) -> None:
        self.trial, self.rungs = trial, rungs
        self.losses: dict[int, float] = {}
        self.pruned = False

    def __call__(self, step: int, loss: float) -> bool:
        finite = math.isfinite(loss)
        self.losses[step] = loss if finite else math.inf
        self.trial.report(self.losses[step], step)
        # At its end nothing is left to prune. Without a finite loss there is nothing to go on with.
        self.pruned = step != self.rungs[-1] and (not finite or self.trial.should_prune())
        return not self.pruned
