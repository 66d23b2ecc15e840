"""The optimiser and the learning-rate schedule that every task shares."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from actsearch.errors import SettingsError, unknown_name

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "exponential", "step", "constant")
INTERVALS = ("epoch", "step")


@dataclass(frozen=True)
class OptimSettings:
    """How a task trains its weights. The defaults are those of He et al. 2016 with the cosine of Loshchilov 2017.

    optimizer: "sgd", "adam" or "adamw"; lr: the peak learning rate; momentum: of "sgd" only; betas: of the others.
    weight_decay: on every parameter; decay_1d=False spares biases and the gains of normalisations. A module can spare
        parameters of its own (slopes, coefficients) by naming them in an attribute `undecayed`, and have them trained
        at multiples of `lr` by `lr_factors`: see `parameter_groups`.
    schedule: "cosine" to `final_lr`, "exponential" to `final_lr` by the same factor every time (DeePMD-kit, arXiv
        1712.03641), "step" by `gamma` at each of `milestones`, or "constant".
    interval: whether the rate is set once an "epoch" or at every "step" of the optimiser.
    milestones: epochs (or steps), or fractions of the run where below 1.
    final_lr: where "cosine" and "exponential" end, as a learning rate; above 0 for the latter.
    warmup_epochs, warmup_steps: in which the rate first rises linearly, whichever is of the `interval`; these two
        schedules span what is left.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_1d: bool = True
    schedule: str = "cosine"
    interval: str = "epoch"
    milestones: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1
    final_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for kind, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("interval", INTERVALS)):
            if getattr(self, kind) not in known:
                raise SettingsError(unknown_name(kind, getattr(self, kind), known))
        if not (self.lr > 0 and self.gamma > 0):  # so written, it refuses NaN too
            raise SettingsError(f"lr and gamma must be above 0, not {self.lr} and {self.gamma}")
        if min(self.weight_decay, self.warmup_epochs, self.warmup_steps, *self.milestones) < 0:
            raise SettingsError("weight_decay, warmup_epochs, warmup_steps and milestones cannot be negative")
        if not 0 <= self.momentum < 1:
            raise SettingsError(f"momentum must be from 0 to below 1, not {self.momentum}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise SettingsError(f"betas must be two numbers from 0 to below 1, not {list(self.betas)}")
        if not 0 <= self.final_lr <= self.lr:
            raise SettingsError(f"final_lr must be from 0 to lr = {self.lr}, not {self.final_lr}")
        if self.schedule == "exponential" and self.final_lr == 0:
            raise SettingsError("schedule 'exponential' never reaches 0: set final_lr above 0")
        for unit in INTERVALS:
            warmup = getattr(self, f"warmup_{unit}s")
            if warmup and self.interval != unit:
                raise SettingsError(f"warmup_{unit}s is for interval {unit!r}; with {self.interval!r} set the other")

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
        groups = parameter_groups(model, self.weight_decay, self.decay_1d, self.lr)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]))

    def rate(self, time: int, length: int | float | None) -> float:
        """The learning rate in epoch or step `time` (from 0) of a run of `length` of them, as a multiple of `lr`.

        Raises SettingsError if the schedule depends on the length of the run, and that is not known.
        """
        warmup = self.warmup_epochs + self.warmup_steps  # at most one of them is not 0
        if time < warmup:
            return (time + 1) / (warmup + 1)
        if self.schedule in ("cosine", "exponential"):
            progress = min(1.0, (time - warmup) / max(1, _known(length, self.schedule) - warmup))
            final = self.final_lr / self.lr
            if self.schedule == "exponential":
                return float(final**progress)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "step":
            starts = (m * _known(length, self.schedule) if m < 1 else m for m in self.milestones)
            return self.gamma ** sum(time >= start for start in starts)
        return 1.0


def _known(length: int | float | None, schedule: str) -> int | float:
    if length is None or not 1 <= length < math.inf:
        raise SettingsError(f"schedule {schedule!r} needs the trainer's max_epochs; set it, or use 'constant'")
    return length


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_1d: bool = True, lr: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as groups for any optimiser of torch: those that decay, those that do not.

        torch.optim.RAdam(parameter_groups(model, weight_decay=1e-4, lr=1e-3), lr=1e-3)

    A module can spare its own parameters from decay by naming them in an attribute `undecayed`, a tuple, and can have
    them trained at multiples of the learning rate by an attribute `lr_factors`, a dict from names to factors. Those
    come in further groups, one for each factor, after the others of the same decay.

    weight_decay, decay_1d: see OptimSettings. lr: the optimiser's learning rate.
    Raises SettingsError for a factor other than 1 where `lr` is not given.
    """
    spared: set[int] = set()
    factors: dict[int, float] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name in getattr(module, "undecayed", ()) or (parameter.ndim <= 1 and not decay_1d):
                spared.add(id(parameter))
            factors[id(parameter)] = getattr(module, "lr_factors", {}).get(name, factors.get(id(parameter), 1.0))
    members: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members.setdefault((id(parameter) in spared, factors[id(parameter)]), []).append(parameter)
    groups = []
    for is_spared, factor in sorted(members, key=lambda key: (key[0], key[1] != 1)):
        group = {"params": members[is_spared, factor], "weight_decay": 0.0 if is_spared else weight_decay}
        if factor != 1:
            if lr is None:
                raise SettingsError(f"the model trains parameters at {factor:g} times the learning rate: give lr")
            group["lr"] = factor * lr
        groups.append(group)
    return groups


class Task(pl.LightningModule, ABC):
    """A model with an optimiser and a schedule; its loss is that of `step`. `optim` are the fields of OptimSettings."""

    def __init__(self, model: nn.Module, **optim: Any) -> None:
        super().__init__()
        self.model = model
        self.optim = OptimSettings.of(optim)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    @abstractmethod
    def step(self, part: str, batch: Sequence[Tensor]) -> Tensor:
        """The loss on a batch of the `part` train, val or test, a 0-d tensor; what is to be logged is logged here."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        return self.step("val", batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        return self.step("test", batch)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule over the trainer's run."""
        optimizer = self.optim.make_optimizer(self)
        length = self.trainer.max_epochs if self.optim.interval == "epoch" else self._steps()
        schedule = LambdaLR(optimizer, lambda time: self.optim.rate(time, length))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.optim.interval}}

    def _steps(self) -> int | float:
        """Steps of the optimiser in the trainer's whole run.

        The trainer does not see batches that a search accumulates by itself; it tells their number as `accumulate`.
        """
        return self.trainer.estimated_stepping_batches // getattr(self.trainer.lightning_module, "accumulate", 1)

    @property
    def has_trainer(self) -> bool:
        """Whether there is one; without, a step is called by hand, and nothing is logged."""
        try:
            _ = self.trainer
        except RuntimeError:  # Lightning's way to say that there is none
            return False
        return True

    @property
    def rate(self) -> float:
        """The present learning rate as a multiple of `lr`, as its schedule has it; 1 where there is no schedule."""
        for config in self.trainer.lr_scheduler_configs if self.has_trainer else ():
            schedule = config.scheduler
            if isinstance(schedule, LambdaLR):
                return float(schedule.get_last_lr()[0]) / float(schedule.base_lrs[0])
        return 1.0

    def log_epoch(self, part: str, batch_size: int, **values: Tensor) -> None:
        """Log `<part>_<name>` as the mean over the epoch's examples and over processes; nothing without a trainer."""
        if not self.has_trainer:
            return
        named = {f"{part}_{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch_size, sync_dist=True)
