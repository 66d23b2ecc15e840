"""Language modelling: each token from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.errors import TaskError
from actsearch.tasks.optim import Task


class LanguageModelling(Task):
    """Trains `model`, tokens (B, T) int64 → logits (B, T, vocabulary), on batches (inputs, targets), each (B, T).

    The loss is the mean cross-entropy over all tokens, in nats a token; its exponential is the perplexity. Losses of
    different tokenizers do not compare. Logs, once an epoch, train_loss, val_loss and test_loss.
    `optim` are the fields of `actsearch.tasks.OptimSettings`.
    Raises TaskError for a model that does not return such logits.
    """

    def __init__(self, model: nn.Module, **optim: Any) -> None:
        super().__init__(model, **optim)
        self.save_hyperparameters(ignore=["model"])

    def step(self, part: str, batch: Sequence[Tensor]) -> Tensor:
        tokens, targets = batch
        logits = self(tokens)
        if logits.ndim != 3 or logits.shape[:2] != targets.shape:
            raise TaskError(
                f"the model must return logits {(*targets.shape, 'vocabulary')} for tokens {tuple(tokens.shape)}, "
                f"not {tuple(logits.shape)}"
            )
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.log_epoch(part, len(targets), loss=loss.detach())
        return loss
