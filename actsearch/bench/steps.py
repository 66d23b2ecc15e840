"""One weight step and one α step: of a network under search, of one that is only trained, of a bare function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from actsearch.cell import MixedCell
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.settings import RefineSettings, SearchSettings
from actsearch.swap import swap
from actsearch.tasks.optim import Task

Step = Callable[[], object]
Steps = Mapping[str, Step]
"""By name, `weight` and, under search, `alpha`. The training step of a standard activation is its weight step."""


class SteppedSearch(BilevelSearch):
    """A BilevelSearch of which one level can be run alone: its `training_step` does the levels in `levels`.

    Nothing of a step is written again here, so what is timed is what a search does.
    """

    levels: frozenset[Literal["weight", "alpha"]] = frozenset({"weight", "alpha"})

    def begin(self) -> None:
        """What a search does before its first step; the optimisers are there."""
        self.deferred = self.device.type == "cuda"
        self._make_gates()
        self._begin_epoch()

    def _arch_step(self, *args: Any, **kwargs: Any) -> None:
        if "alpha" in self.levels:
            super()._arch_step(*args, **kwargs)

    def _weight_step(self, *args: Any, **kwargs: Any) -> None:
        if "weight" in self.levels:
            super()._weight_step(*args, **kwargs)


class Searching:
    """A task whose activations are mixed cells, with the steps of a search on one batch that stays the same.

    The trainer holds the optimisers and does not loop: whoever calls does. Neither warm start nor shrinking; every
    batch is a step of both optimisers (the published searches accumulate some). A loss or gradient that is not finite
    raises NonFiniteError: to skip such a step costs another time.
    """

    def __init__(self, task: Task, cell: MixedCell, batch: Any, device: torch.device) -> None:
        swap(task, lambda site: cell.add_site(site.name))
        settings = SearchSettings(warm_epochs=0, shrink=False, max_skipped=0, refine=RefineSettings(enabled=False))
        self.cell = cell
        self.search = SteppedSearch(task, {"network": cell}, settings).to(device)
        self._batch = batch
        self._count = 0
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.search.trainer = trainer
        trainer.strategy.connect(self.search)
        trainer.strategy.setup_optimizers(trainer)
        self.search.begin()

    def _step(self, *levels: Literal["weight", "alpha"]) -> None:
        self.search.levels = frozenset(levels)
        self.search.training_step({"weights": self._batch, "arch": self._batch}, self._count)
        self._count += 1

    def weight(self) -> None:
        """A step of the weights' optimiser."""
        self._step("weight")

    def alpha(self) -> None:
        """A step of α's optimiser, and of that of the operations' parameters."""
        self._step("alpha")

    def pair(self) -> None:
        """An α step, then a weight step."""
        self._step("alpha", "weight")

    def validate(self) -> None:
        """What the end of an epoch does with each validation batch: the loss of the discrete cell."""
        self.search.score(batches=[self._batch])


def training(task: Task, activation: nn.Module, batch: Any, device: torch.device) -> Step:
    """A plain training step with `activation` at every site: forward, backward, the optimiser."""
    swap(task, activation)
    task.to(device).train()
    optimizer = task.optim.make_optimizer(task)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = task.training_step(batch)
        loss.backward()
        optimizer.step()

    return step


def bare_training(activation: nn.Module, x: Tensor, g: Tensor) -> Step:
    """Forward and backward of the function alone: dL/dx from dL/dy = `g`."""
    activation.to(x.device)

    def step() -> Tensor:
        return torch.autograd.grad(activation(x), x, g)[0]

    return step


def bare_searching(cell: MixedCell, x: Tensor, g: Tensor) -> Steps:
    """The same for a mixed cell, with the draw of its weights; an α step adds the gradients of α and parameters."""
    cell.to(x.device)
    cell.evaluator.keeps_input = False  # as in a search
    site = cell.add_site("bare")
    upper = [*cell.alpha.values(), *cell.op_parameters.values()]

    def step(wanted: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
        for p in upper:
            p.requires_grad_(bool(wanted))
        cell.resample()
        return torch.autograd.grad(site(x), [x, *wanted], g, allow_unused=True)

    return {"weight": lambda: step([]), "alpha": lambda: step(upper)}
