"""SlopeRecovery: a callback that adds the slope-recovery term to what any LightningModule minimises."""

from __future__ import annotations

import math
from typing import get_args

import pytorch_lightning as pl
import torch
from torch import nn

from actsearch.errors import SettingsError, unknown_name
from actsearch.ops.slope_recovery import Reduction, layer_slopes, slope_recovery


class SlopeRecovery(pl.Callback):
    """Trains a model with adaptive slopes on loss + weight·S(a), without a change of its `training_step`.

    After each backward pass weight·∂S/∂a is added to the gradients, which are then those of the sum. The losses that
    the task logs stay those on data; S(a), without the weight, is logged as `slope_recovery`, its mean over the epoch.
    A task with several backward passes a step gets the term at each of them.

    Args:
        weight: of S(a) in the sum.
        reduction: see `actsearch.ops.slopes.recovery`.

    Raises SettingsError for settings out of range, and, when training starts, for a model without slopes, or with an
    optimiser that evaluates the loss itself (L-BFGS): there add `weight * slope_recovery(model)` to the loss.
    Reference: Jagtap et al. 2020, arXiv 1909.12228; see `actsearch.ops.slopes.slope_recovery`.
    """

    def __init__(self, weight: float = 1.0, reduction: Reduction = "mean") -> None:
        if not 0 <= weight < math.inf:
            raise SettingsError(f"weight must be a number of at least 0, not {weight}")
        if reduction not in get_args(Reduction):
            raise SettingsError(unknown_name("reduction of slopes", str(reduction), get_args(Reduction)))
        self.weight = weight
        self.reduction = reduction

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise SettingsError("L-BFGS searches along the loss, to which slope_recovery(model) must then be added")
        layer_slopes(pl_module)  # an error that comes before the first step

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        term = slope_recovery(pl_module, self.reduction)
        _add_gradient(pl_module, term, self.weight * _scale(trainer))
        pl_module.log("slope_recovery", term.detach(), on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


def _scale(trainer: pl.Trainer) -> float:
    """By what the gradients of this batch are multiplied already: its share of the step, and the loss scale."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return (1.0 if scaler is None else scaler.get_scale()) / trainer.accumulate_grad_batches


def _add_gradient(model: nn.Module, term: torch.Tensor, factor: float) -> None:
    """Add that of factor · term.

    Not by `backward`, whose hooks DistributedDataParallel counts. It has averaged the gradients by now, and needs not
    know of this: slopes are the same in all processes, so S and its gradient are too, and equal their mean. Without
    synchronisation (batches that are accumulated) the same number is added in all, which a mean keeps.
    """
    if not term.requires_grad:  # the slopes are frozen
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(term, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = factor * gradient
            else:
                parameter.grad.add_(gradient, alpha=factor)
