"""Image classification, or any other with one class an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import SettingsError, TaskError
from actsearch.tasks.optim import Task


class Classification(Task):
    """Trains `model`, (B, …) → logits (B, num_classes), with cross-entropy on batches (inputs, labels (B,) int64).

    Logs, once an epoch, train_loss and train_acc (accuracies are fractions), val_… and test_…; label smoothing
    (Szegedy et al. 2016) applies to training only. `optim` are the fields of `actsearch.tasks.OptimSettings`:
    optimizer, lr, momentum, betas, weight_decay, decay_1d, schedule, interval, milestones, gamma, final_lr,
    warmup_epochs, warmup_steps.
    Raises SettingsError for settings out of range and TaskError for a model that does not return such logits.
    """

    def __init__(self, model: nn.Module, num_classes: int, *, label_smoothing: float = 0.0, **optim: Any) -> None:
        super().__init__(model, **optim)
        if not 0 <= label_smoothing < 1:
            raise SettingsError(f"label_smoothing must be from 0 to below 1, not {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.save_hyperparameters(ignore=["model"])

    def step(self, part: str, batch: Sequence[Tensor]) -> Tensor:
        x, y = batch
        logits = self(x)
        if logits.shape != (len(y), self.num_classes):
            raise TaskError(f"the model must return logits {(len(y), self.num_classes)}, not {tuple(logits.shape)}")
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing if part == "train" else 0.0)
        accuracy = (logits.detach().argmax(1) == y).float().mean()
        self.log_epoch(part, len(y), loss=loss.detach(), acc=accuracy)
        return loss
