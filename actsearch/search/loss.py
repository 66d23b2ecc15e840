"""The loss of any LightningModule on a batch, outside of a trainer's own loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor

from actsearch.errors import TaskError
from actsearch.search.averages import Averages
from actsearch.search.statistics import batch_statistics


def task_loss(task: pl.LightningModule, batch: Any, index: int) -> Tensor:
    """The loss of `training_step`, 0-d. Raises TaskError if it returns none."""
    takes_index = len(inspect.signature(task.training_step).parameters) > 1
    output = task.training_step(*((batch, index) if takes_index else (batch,)))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = "None" if loss is None else type(loss).__name__
        raise TaskError(
            f"{type(task).__name__}.training_step returned {got}; a search needs it to return the loss, "
            "a tensor of one element (or a mapping with the key 'loss')"
        )
    return loss.reshape(())


def mean_loss(task: pl.LightningModule, batches: Iterable[Any], device: torch.device) -> float:
    """Mean of `task_loss` over validation batches, as a search measures its discrete cell; NaN without batches.

    Normalisation layers use the statistics of each batch and keep their own, dropout is off, nothing is logged.
    """
    total, n = 0.0, 0
    with torch.no_grad(), batch_statistics(task), Averages().recording(task, None):
        for index, batch in enumerate(batches):
            total += float(task_loss(task, to_device(task, batch, device), index))
            n += 1
    return total / n if n else float("nan")


def to_device(task: pl.LightningModule, batch: Any, device: torch.device) -> Any:
    """The batch on `device`, by the way that the task prescribes, in the precision of its trainer."""
    if task._trainer is not None:
        batch = task._trainer.precision_plugin.convert_input(batch)
    batch = task.on_before_batch_transfer(batch, 0)
    batch = task.transfer_batch_to_device(batch, device, 0)
    return task.on_after_batch_transfer(batch, 0)
