"""A training as work under way."""

from __future__ import annotations

import math
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl

from actsearch.work import Work


class Advancing(pl.Callback):
    """Moves `work`, whose unit is epochs, with the batches of a training."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take note of the number of epochs, and of those that are done."""
        self._work.total = trainer.max_epochs
        self._work.at(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it by a fraction of an epoch."""
        total = trainer.num_training_batches
        if math.isfinite(total) and total:
            self._work.at(trainer.current_epoch + (batch_idx + 1) / total)
