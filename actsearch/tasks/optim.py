"""The optimiser and the learning-rate schedule that every task shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from actsearch.errors import SettingsError, unknown_name

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True)
class OptimSettings:
    """How a task trains its weights. The defaults are those of He et al. 2016 with the cosine of Loshchilov 2017.

    optimizer: "sgd", "adam" or "adamw"; lr: the peak learning rate; momentum: of "sgd" only.
    weight_decay: on every parameter; decay_1d=False spares biases and the gains of normalisations. A module can spare
        parameters of its own (slopes, coefficients) by naming them in an attribute `undecayed`.
    schedule: "cosine" to zero, "step" by `gamma` at each of `milestones`, or "constant", set once an epoch.
    milestones: epochs, or fractions of the run where below 1.
    warmup_epochs: epochs in which the rate first rises linearly; the cosine spans those that are left.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_1d: bool = True
    schedule: str = "cosine"
    milestones: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        for kind, value, known in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if value not in known:
                raise SettingsError(unknown_name(kind, value, known))
        if not (self.lr > 0 and self.gamma > 0):  # so written, it refuses NaN too
            raise SettingsError(f"lr and gamma must be above 0, not {self.lr} and {self.gamma}")
        if self.weight_decay < 0 or self.warmup_epochs < 0 or min(self.milestones, default=0) < 0:
            raise SettingsError("weight_decay, warmup_epochs and milestones cannot be negative")
        if not 0 <= self.momentum < 1:
            raise SettingsError(f"momentum must be from 0 to below 1, not {self.momentum}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> OptimSettings:
        """From keyword arguments. Raises SettingsError, which lists near matches, for one that is not known."""
        known = [f.name for f in fields(cls)]
        for option in options:
            if option not in known:
                raise SettingsError(unknown_name("optimiser setting", option, known))
        return cls(**options)

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimiser of all trainable parameters of `model`."""
        groups = parameter_groups(model, self.weight_decay, self.decay_1d)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr)

    def rate(self, epoch: int, max_epochs: int | None) -> float:
        """The learning rate in `epoch` (from 0) of a run of `max_epochs`, as a multiple of `lr`.

        Raises SettingsError if the schedule depends on the length of the run, and that is not known.
        """
        if epoch < self.warmup_epochs:
            return (epoch + 1) / (self.warmup_epochs + 1)
        if self.schedule == "cosine":
            span = self._length(max_epochs) - self.warmup_epochs
            progress = min(1.0, (epoch - self.warmup_epochs) / max(1, span))
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "step":
            starts = (m * self._length(max_epochs) if m < 1 else m for m in self.milestones)
            return self.gamma ** sum(epoch >= start for start in starts)
        return 1.0

    def _length(self, max_epochs: int | None) -> int:
        if max_epochs is None or max_epochs < 1:
            raise SettingsError(f"schedule {self.schedule!r} needs the trainer's max_epochs; set it, or use 'constant'")
        return max_epochs


def parameter_groups(model: nn.Module, weight_decay: float, decay_1d: bool) -> list[dict[str, Any]]:
    """The trainable parameters of `model` in one group that decays and, where there are such, one that does not."""
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in getattr(module, "undecayed", ()) or (parameter.ndim <= 1 and not decay_1d)
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed: Iterable[nn.Parameter] = [p for p in parameters if id(p) not in spared]
    undecayed = [p for p in parameters if id(p) in spared]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Task(pl.LightningModule):
    """A model with an optimiser and a schedule, still without a loss; `optim` are the fields of OptimSettings."""

    def __init__(self, model: nn.Module, **optim: Any) -> None:
        super().__init__()
        self.model = model
        self.optim = OptimSettings.of(optim)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule by the epoch over the trainer's max_epochs."""
        optimizer = self.optim.make_optimizer(self)
        max_epochs = self.trainer.max_epochs
        schedule = LambdaLR(optimizer, lambda epoch: self.optim.rate(epoch, max_epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def log_epoch(self, part: str, batch_size: int, **values: Tensor) -> None:
        """Log `<part>_<name>` as the mean over the epoch's examples and over processes; nothing without a trainer."""
        try:
            _ = self.trainer
        except RuntimeError:  # Lightning's way to say that there is none: the step was called by hand
            return
        named = {f"{part}_{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch_size, sync_dist=True)
