"""One trial: a fresh task with one function in it, trained on the weights' part and judged on α's part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from actsearch.activation import Activation
from actsearch.data.placement import PlaceData
from actsearch.errors import TaskError
from actsearch.execution import Execution, make_trainer
from actsearch.genotype import Genotype
from actsearch.ops.slope_recovery import has_slopes
from actsearch.search.batches import SeededBatches, SeededSteps
from actsearch.search.loss import mean_loss
from actsearch.search.monitor import recorded_inputs
from actsearch.search.settings import SearchSettings
from actsearch.search.strategies.loop import Judge
from actsearch.tasks.slope_recovery import SlopeRecovery


@dataclass
class TrialTraining:
    """Trains functions, each from the same initial weights, on the same batches in the same order.

    The weights are trained as in a retraining: by the task's optimiser and schedule, which spans `longest` steps.

    Attributes:
        build_task: a fresh task with a function in it; equal weights at every call.
        datamodule: whose data is placed where it trains.
        loader: of the weights' part.
        validation: batches of α's part.
        settings: of the search; seed, accumulate, epoch_batches, weight_clip and slope_recovery are used.
        longest: steps of a trial that is never stopped.
        trainer: further arguments of the Trainer; a trial runs on one device.
        execution: how the network is run.
        inputs: of the activation sites of the last trial when it was last judged, 1-d float32.
        stepped: told the training steps that the trial has done, after each batch.
    """

    build_task: Callable[[Genotype], pl.LightningModule]
    datamodule: Any
    loader: DataLoader[Any]
    validation: DataLoader[Any]
    settings: SearchSettings
    longest: int
    trainer: Mapping[str, Any] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    stepped: Callable[[int], None] = lambda steps: None

    def __call__(self, genotype: Genotype, rungs: Sequence[int], judge: Judge) -> None:
        """Train up to the last of `rungs`, and have it judged after each, until it is to stop.

        Raises TaskError for a task that does not count one step of an optimiser for each step.
        """
        task = self.build_task(genotype)
        with self.execution.applied(task):
            self._fit(task, rungs, judge)

    def _fit(self, task: pl.LightningModule, rungs: Sequence[int], judge: Judge) -> None:
        s = self.settings
        judging = _Judging(self, rungs, judge)
        own = [SlopeRecovery(s.slope_recovery)] if s.slope_recovery and has_slopes(task) else []
        trainer = make_trainer(
            {
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "limit_val_batches": 0,
                **self.trainer,
                "devices": 1,
                "max_epochs": -(-self.longest * s.accumulate // pairs(self.loader, s)),
                "limit_train_batches": pairs(self.loader, s),
                "accumulate_grad_batches": s.accumulate,
                "gradient_clip_val": s.weight_clip,
                "callbacks": [*own, PlaceData(self.datamodule), SeededSteps(s.seed), judging],
            }
        )
        batches = SeededBatches(self.loader, s.seed, lambda: trainer.current_epoch)
        trainer.fit(task, train_dataloaders=batches)
        if not judging.done:
            raise TaskError(
                f"{type(task).__name__} took {trainer.global_step} steps of optimisers, not {rungs[0]}; "
                "strategies of trials need a task with one optimiser, stepped by the trainer"
            )


def pairs(loader: DataLoader[Any], settings: SearchSettings) -> int:
    """Batches of an epoch of the weights' part."""
    return min(len(loader), settings.epoch_batches or len(loader))


class _Judging(pl.Callback):
    """Measures the task on α's part at every rung, and stops the trainer when the judge says so, or after the last."""

    def __init__(self, training: TrialTraining, rungs: Sequence[int], judge: Judge) -> None:
        self.training, self.rungs, self.judge = training, rungs, judge
        self.done = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.training.stepped(trainer.global_step)
        if self.done == len(self.rungs) or trainer.global_step != self.rungs[self.done]:
            return
        with recorded_inputs(pl_module, Activation) as found:
            loss = mean_loss(pl_module, self.training.validation, pl_module.device)
        self.training.inputs = torch.cat(list(found.values())) if found else torch.empty(0)
        step = self.rungs[self.done]
        self.done += 1
        if not self.judge(step, loss) or self.done == len(self.rungs):
            trainer.should_stop = True
