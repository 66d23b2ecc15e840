"""A search by trials (random, TPE, genetic): from data and what builds a task to a genotype in a run directory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from actsearch.errors import SettingsError, SmoothnessError
from actsearch.execution import Execution
from actsearch.genotype import Genotype
from actsearch.launched import check_started_alone
from actsearch.lock import locked
from actsearch.ops import registry
from actsearch.report.tensorboard import TrialsBoard, log_scores
from actsearch.run import RunDirectory
from actsearch.search.loader import check_template, validation_loader, weights_loader
from actsearch.search.settings import SearchSettings, TrialSettings
from actsearch.search.split import labels_of, split
from actsearch.search.strategies import (
    Sampler,
    StepBudget,
    TrialLog,
    TrialRecord,
    TrialTraining,
    pairs,
    rungs,
    sample,
    to_genotype,
)
from actsearch.space import SearchSpace
from actsearch.work import under_way

Told = Callable[[TrialRecord, int, int], None]
"""Told a trial that has ended, the training steps of all so far, and the budget."""


@dataclass(frozen=True)
class TrialsResult:
    """What a search by trials found.

    Attributes:
        genotype: of least loss among the trials that took the most steps.
        best: that trial.
        run_dir: where everything was written.
        inputs: sample of the inputs of the activation sites in the best trial, 1-d float32.
        trials: how many there were.
        steps: training steps of all.
        seconds: of all.
        budget: the most that the gradient search with the same settings may take.
        losses: of the other functions that were to be measured, after as many steps as the best trial took.
    """

    genotype: Genotype
    best: TrialRecord
    run_dir: Path
    inputs: torch.Tensor
    trials: int
    steps: int
    seconds: float
    budget: StepBudget
    losses: Mapping[str, float]


def search_by_trials(
    build_task: Callable[[Genotype], pl.LightningModule],
    datamodule: pl.LightningDataModule,
    *,
    strategy: str,
    space: SearchSpace,
    settings: SearchSettings,
    trials: TrialSettings,
    run_root: str | Path = "runs",
    name: str | None = None,
    resume: str | Path | None = None,
    trainer: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
    config: Mapping[str, Any] | None = None,
    measured: Mapping[str, Genotype] | None = None,
    told: Told | None = None,
    started: Callable[[Path], None] | None = None,
) -> TrialsResult:
    """Find an activation function by training many, each from scratch, for the steps of a gradient search.

    The training set is split as the gradient search with the same settings splits it; test data is not touched. Every
    trial is written to trials.jsonl when it ends.

    Args:
        build_task: a fresh task with a function in it; equal weights at every call.
        datamodule: set up, with a `train_dataloader`.
        strategy: random, tpe or genetic.
        space: of one function for the whole network.
        settings: of the gradient search; they say what may be spent, and how weights are trained.
        trials: how it is spent.
        run_root, name, resume, config: as in `actsearch.search`.
        trainer, execution: likewise; a trial runs on one device.
        measured: functions that are trained and measured like the best trial after the search, by name.
        told: told every trial that ends in this call.
        started: told the run directory before the first trial.

    Raises an ActsearchError in one line for anything that the caller can mend.
    """
    options = dict(trainer or {})
    execution = execution or Execution()
    execution.check(str(options.get("accelerator", "auto")), settings.accumulate)
    _check(space, options, strategy)
    loader = datamodule.train_dataloader()
    check_template(loader)
    weights, arch = _parts(loader, settings)
    own = weights_loader(loader, weights)
    budget = StepBudget.of_gradient_search(settings, pairs(own, settings), space, may_train_on(settings, space))
    _check_smoothness(build_task, space)
    steps = rungs(trials, budget)
    sampler = Sampler(strategy, space, trials, steps[0], settings.seed)
    run = RunDirectory.begin(space, config or {}, run_root, name, resume)
    conditions = {"strategy": strategy, "seed": settings.seed, "space": space.hash, "rungs": list(steps)}
    conditions |= {"budget": budget.total, "population": trials.population}
    with locked(run.path):
        log = TrialLog(run.path, conditions)
        if started is not None:
            started(run.path)
        training = TrialTraining(
            build_task,
            datamodule,
            own,
            validation_loader(datamodule, loader, arch, settings.seed, settings.validation_batches),
            settings,
            steps[-1],
            {k: v for k, v in options.items() if k not in ("devices", "strategy", "num_nodes")},
            execution,
        )

        def ended(record: TrialRecord) -> None:
            if log.best() is record:
                run.write_inputs(training.inputs)
            board(record)
            if told is not None:
                told(record, log.steps, budget.total)

        with (
            TrialsBoard(run.path, space, log.records) as board,
            under_way(f"{strategy} search", budget.total, "steps") as work,
        ):
            training.stepped = lambda done: work.at(log.steps + done, f"trial {len(log.records)}")
            sample(sampler, training, steps, budget.total, log, ended)
        best = log.best()
        genotype = _found(space, best, run, strategy, settings.seed)
        log_scores(run.path, {"discrete_loss": best.loss}, run.read_config())
        inputs = run.read_inputs()
        with under_way("measuring other functions by a trial each", len(measured or {})) as work:
            training.stepped = lambda done: work.at(int(work.done) + min(done / best.steps, 0.99))
            losses = {}
            for name, other in (measured or {}).items():
                losses[name] = _measured(training, other, best.steps)
                work.at(len(losses))
        return TrialsResult(
            genotype,
            best,
            run.path,
            torch.empty(0) if inputs is None else inputs,
            len(log.records),
            log.steps,
            log.seconds,
            budget,
            losses,
        )


def _measured(training: TrialTraining, genotype: Genotype, steps: int) -> float:
    losses: list[float] = []

    def judge(step: int, loss: float) -> bool:
        losses.append(loss if math.isfinite(loss) else math.inf)
        return False

    training(genotype, [steps], judge)
    return losses[0]


def _check(space: SearchSpace, options: Mapping[str, Any], strategy: str) -> None:
    if space.sharing != "network":
        raise SettingsError(
            f"strategy {strategy} finds one function for the whole network, and space {space.name} has one for each "
            f"{space.sharing}; set its sharing to network, or take strategy gradient"
        )
    check_started_alone(f"search --strategy {strategy}", "--compare.jobs N retrains N functions at a time")
    if options.get("devices", 1) not in (1, "auto") or options.get("num_nodes", 1) != 1:
        raise SettingsError(f"the trials of strategy {strategy} run on one device; set trainer.devices to 1")


def _check_smoothness(build_task: Callable[[Genotype], pl.LightningModule], space: SearchSpace) -> None:
    """Raise SmoothnessError, before any trial, if some function of `space` is less smooth than the task needs."""
    worst = {slot.name: min(slot.candidates, key=lambda op: registry[op].smoothness) for slot in space.slots}
    try:
        build_task(space.genotype(worst))
    except SmoothnessError as error:
        raise SmoothnessError(f"{str(error).rpartition(';')[0]}; or set search.force to true") from None


def gradient_steps(
    loader: DataLoader[Any], settings: SearchSettings, space: SearchSpace, to_the_end: bool = False, world: int = 1
) -> StepBudget:
    """The steps of a gradient search over this training loader, in `world` processes that share each step.

    `to_the_end`: see `StepBudget.of_gradient_search`.
    """
    weights, _ = _parts(loader, settings)
    own = weights_loader(loader, weights[: len(weights) // world])
    return StepBudget.of_gradient_search(settings, pairs(own, settings), space, to_the_end)


def may_train_on(settings: SearchSettings, space: SearchSpace) -> bool:
    """Whether α's steps may go on to the end of a gradient search, for the parameters (β) of what is left.

    It is known only afterwards. So that nobody has less than the gradient search, the others may spend as if they did.
    """
    ops = {op for slot in space.slots for op in slot.candidates}
    return any(settings.level_of(parameter) == "alpha" for op in ops for parameter in registry[op].parameters)


def _parts(loader: DataLoader[Any], settings: SearchSettings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    n = len(loader.dataset)  # type: ignore[arg-type]
    return split(n, settings.arch_fraction, settings.seed, labels_of(loader.dataset))


def _found(space: SearchSpace, best: TrialRecord, run: RunDirectory, strategy: str, seed: int) -> Genotype:
    provenance: dict[str, Any] = {"run": run.path.name, "seed": seed, "strategy": strategy, "trial": best.number}
    provenance |= {"steps": best.steps, "loss": best.loss if math.isfinite(best.loss) else None}
    genotype = dataclasses.replace(to_genotype(space, best.params), provenance=provenance)
    genotype.save(run.genotype)
    return genotype
