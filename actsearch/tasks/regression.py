"""Regression with the mean squared error, for teacher-student problems and measured targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import TaskError
from actsearch.tasks.optim import Task


class Regression(Task):
    """Trains `model`, (B, …) → (B, …), on batches (inputs, targets) with the mean squared error over all numbers.

    Logs, once an epoch, train_loss, val_loss and test_loss. `optim` are the fields of `actsearch.tasks.OptimSettings`.
    Targets (B,) go with outputs (B, 1); any other difference in shape is a TaskError rather than a broadcast.
    """

    def __init__(self, model: nn.Module, **optim: Any) -> None:
        super().__init__(model, **optim)
        self.save_hyperparameters(ignore=["model"])

    def step(self, part: str, batch: Sequence[Tensor]) -> Tensor:
        x, y = batch
        output = self(x)
        target = y[:, None] if output.shape == (*y.shape, 1) else y
        if target.shape != output.shape:
            raise TaskError(f"outputs {tuple(output.shape)} and targets {tuple(y.shape)} must have the same shape")
        loss = F.mse_loss(output, target)
        self.log_epoch(part, len(y), loss=loss.detach())
        return loss
