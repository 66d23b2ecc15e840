"""One retraining: a fresh task with a contestant in it, trained at a given budget and tested."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from actsearch.advancing import Advancing
from actsearch.compare.contestants import Contestant
from actsearch.compare.cost import StepClock
from actsearch.compare.saved import model_file, save_model
from actsearch.data.placement import PlaceData
from actsearch.endings import explained
from actsearch.errors import SettingsError, TaskError, unknown_name
from actsearch.execution import Execution, make_trainer
from actsearch.models import scale_weights
from actsearch.ops.slope_recovery import has_slopes
from actsearch.search.batches import SeededBatches, SeededSteps
from actsearch.seeds import seed_all
from actsearch.swap import swap
from actsearch.tasks.slope_recovery import SlopeRecovery
from actsearch.work import Work, under_way

Curve = Literal["none", "train", "test"]


@dataclass(frozen=True)
class Budget:
    """How long, and how, every contestant is trained.

    epochs: at most; of `epoch_batches` batches each, else of the whole training set.
    accumulate: batches whose gradients make one step.
    gradient_clip: greatest norm of the gradient.
    slope_recovery: weight of the slope-recovery term, for contestants with trained slopes.
    Raises SettingsError for what is out of range.
    """

    epochs: int
    accumulate: int = 1
    gradient_clip: float | None = None
    epoch_batches: int | None = None
    slope_recovery: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.slope_recovery < math.inf:
            raise SettingsError(f"slope_recovery of a comparison must be from 0 on, not {self.slope_recovery}")
        for name in ("epochs", "accumulate", "epoch_batches", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} of a comparison must be above 0, not {value}")

    def trainer(self) -> dict[str, Any]:
        """The arguments of Lightning's Trainer."""
        options: dict[str, Any] = {"max_epochs": self.epochs, "accumulate_grad_batches": self.accumulate}
        if self.gradient_clip is not None:
            options["gradient_clip_val"] = self.gradient_clip
        if self.epoch_batches is not None:
            options["limit_train_batches"] = self.epoch_batches
        return options


@dataclass(frozen=True)
class Retraining:
    """What one retraining gave.

    Attributes:
        activation, seed: whose.
        metrics: all that `test_step` logged; empty if the training failed.
        failure: why it counts as failed, such as a loss that is not finite; empty if it did not fail.
        curve: by name, one value an epoch (None where it is not finite).
        seconds: of the training, all in all.
        step_seconds: median training step without its data.
        peak_memory: greatest number of bytes of tensors on the GPU; None on CPU, where nobody counts them.
        added_parameters: trainable parameters of the task with the contestant, less those without.
        parameters: trainable parameters of the task without the contestant; 0 in results older than this count.
        device: type of device.
        jobs: so many retrainings ran at once, which matters for the times.
    """

    activation: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    curve: Mapping[str, list[float | None]] = field(default_factory=dict)
    seconds: float = math.nan
    step_seconds: float = math.nan
    peak_memory: int | None = None
    added_parameters: int = 0
    parameters: int = 0
    device: str = "cpu"
    jobs: int = 1

    def value(self, metric: str) -> float:
        """The metric; NaN if the retraining failed."""
        return math.nan if self.failure else self.metrics[metric]


@dataclass(frozen=True)
class Retrainer:
    """What all retrainings of a comparison have in common; call it with a contestant and a seed.

    Args:
        build_task: gives a fresh task; called after seeding, so that equal seeds give equal weights.
        datamodule: with `train_dataloader` and `test_dataloader`.
        budget: of each.
        trainer: further arguments of the Trainer.
        curve: what to record of every epoch: nothing, what the task logs in training, or also its validation step on
            the test set, as `test_…` (the task must then choose nothing by its validation).
        execution: how the network is run.
        force: take contestants that are less smooth than the model needs; see `swap`.
        save_to: a directory; the trained model of each that does not fail is written to its folder `models`, for
            `load_model`. `build_task` must then tell by a method `description` how it builds `task.model`, as that of
            the command line does.

    Raises SettingsError if it cannot be run so.
    """

    build_task: Callable[[], pl.LightningModule]
    datamodule: Any
    budget: Budget
    trainer: Mapping[str, Any] = field(default_factory=dict)
    curve: Curve = "train"
    execution: Execution = field(default_factory=Execution)
    force: bool = False
    save_to: Path | None = None

    def __post_init__(self) -> None:
        self.execution.check(str(self.trainer.get("accelerator", "auto")), self.budget.accumulate)
        if self.curve not in get_args(Curve):
            raise SettingsError(unknown_name("curve", str(self.curve), get_args(Curve)))
        if self.save_to is not None and not callable(getattr(self.build_task, "description", None)):
            raise SettingsError(
                "models can be saved only of tasks that are built by name, as by a configuration; this one is built by "
                "a function that cannot tell how: leave save_models out"
            )

    def prepare(self) -> None:
        """Let a LightningDataModule fetch and read its data."""
        if isinstance(self.datamodule, pl.LightningDataModule):
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            self.datamodule.setup("test")

    def __call__(self, contestant: Contestant, seed: int, device: int | None = None, jobs: int = 1) -> Retraining:
        """Train and test. `device` is the number of the accelerator; default: the first.

        Raises TaskError for a task that cannot be trained so; a loss that is not finite is a result, not an error.
        """
        task, added = fresh_task(self.build_task, self.datamodule, contestant, seed, self.force)
        title = f"retraining {contestant.name}, seed {seed}"
        with self.execution.applied(task), under_way(title, self.budget.epochs, "epochs") as work:
            return self._train(task, added, contestant, seed, device, jobs, work)

    def _train(
        self,
        task: pl.LightningModule,
        added: int,
        contestant: Contestant,
        seed: int,
        device: int | None,
        jobs: int,
        work: Work,
    ) -> Retraining:
        seed_all(seed, 1)
        clock, curve = StepClock(), _Curve(self.curve)
        own = list(self.trainer.get("callbacks") or [])
        if self.budget.slope_recovery and has_slopes(task):
            own.append(SlopeRecovery(self.budget.slope_recovery))
        trainer = make_trainer(
            {
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "limit_val_batches": 1.0 if self.curve == "test" else 0,
                **{k: v for k, v in self.trainer.items() if k not in PLACE or k == "accelerator"},
                **self.budget.trainer(),
                "devices": 1 if device is None else [device],
                "callbacks": [*own, PlaceData(self.datamodule), curve, SeededSteps(seed), clock, Advancing(work)],
            }
        )
        loader = SeededBatches(self.datamodule.train_dataloader(), seed, lambda: trainer.current_epoch)
        validation = self._validation(task)
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        started = time.perf_counter()
        with warnings.catch_warnings():
            # Left out on purpose.
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            with explained(trainer):
                trainer.fit(task, train_dataloaders=loader, val_dataloaders=validation)
        result = Retraining(
            contestant.name,
            seed,
            failure=curve.failure or _not_finite(task),
            curve=curve.values,
            seconds=time.perf_counter() - started,
            step_seconds=clock.seconds(),
            peak_memory=torch.cuda.max_memory_allocated(trainer.strategy.root_device) if on_gpu else None,
            added_parameters=added,
            parameters=_trainable(task) - added,
            device=trainer.strategy.root_device.type,
            jobs=jobs,
        )
        if result.failure:
            return result
        if self.save_to is not None:
            built = self.build_task.description()  # type: ignore[attr-defined]  # checked at the start
            save_model(model_file(self.save_to, contestant.name, seed), task.model, built, contestant)  # type: ignore[arg-type]
        work.at(self.budget.epochs, "test")
        seed_all(seed, 2)
        metrics: dict[str, float] = {}
        with explained(trainer):
            for part in trainer.test(task, dataloaders=self.datamodule.test_dataloader(), verbose=False):
                metrics |= part
        bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        return dataclasses.replace(result, metrics=metrics, failure=f"{bad[0]} is not finite" if bad else "")

    def _validation(self, task: pl.LightningModule) -> Any:
        if self.curve != "test":
            return None
        if not is_overridden("validation_step", task):
            raise TaskError(f"{type(task).__name__} has no validation_step to draw a test curve with; use curve train")
        return self.datamodule.test_dataloader()


def fresh_task(
    build_task: Callable[[], pl.LightningModule],
    datamodule: Any,
    contestant: Contestant,
    seed: int,
    force: bool = False,
) -> tuple[pl.LightningModule, int]:
    """A fresh task with the contestant in it, and the number of trainable parameters that this added.

    The arguments are those of `Retrainer`. Equal seeds give equal weights, whatever the contestant.
    """
    seed_all(seed)
    task = build_task()
    if contestant.weights != 1:
        scale_weights(task, contestant.weights)
    before = _trainable(task)
    swap(task, copy.deepcopy(contestant.make), shared=contestant.shared, force=force)
    if any(isinstance(module, LazyModuleMixin) for module in task.modules()):
        _settle(task, datamodule.train_dataloader())
    return task, _trainable(task) - before


# Where a retraining runs, not what it computes. Each runs on one device; several serve several retrainings at once.
PLACE = frozenset({"accelerator", "devices", "strategy", "num_nodes"})


class _Curve(pl.Callback):
    """Keeps what is logged at the end of each epoch; ends a training whose loss is no longer finite."""

    def __init__(self, wanted: Curve) -> None:
        self.values: dict[str, list[float | None]] = {}
        self.failure = ""
        self._wanted = wanted
        self._sum: Any = 0.0
        self._last: Any = 0.0
        self._count = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._sum, self._last, self._count = 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:  # as after a skipped step, or a manual one
            # Lightning divides it by the batches of a step.
            self._last = loss.detach() * trainer.accumulate_grad_batches
            self._sum, self._count = self._sum + self._last, self._count + 1

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._wanted == "test":
            self._add({k.replace("val", "test", 1): v for k, v in _logged(trainer).items() if k.startswith("val")})

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not math.isfinite(float(self._last)):
            epoch = trainer.current_epoch + 1
            self.failure = f"the training loss was {float(self._last):g} at the end of epoch {epoch}"
            trainer.should_stop = True
        if self._wanted == "none":
            return
        logged = {k: v for k, v in _logged(trainer).items() if k.startswith("train")}
        if not any(name.startswith("train_loss") for name in logged) and self._count:
            logged["train_loss"] = float(self._sum) / self._count
        self._add(logged)

    def _add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value if math.isfinite(value) else None)


def _logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}


def _trainable(task: nn.Module) -> int:
    return sum(p.numel() for p in task.parameters() if p.requires_grad)


def _not_finite(task: nn.Module) -> str:
    bad = [name for name, p in task.named_parameters() if not bool(p.isfinite().all())]
    return f"{len(bad)} parameter(s) are not finite after training, such as {bad[0]}" if bad else ""


def _settle(task: pl.LightningModule, loader: Iterable[Any]) -> None:
    """Give lazy modules of `task` their shapes, by one batch through a copy of it, in evaluation mode.

    The copy takes what a training step may change: running statistics, metrics, counters.
    Raises TaskError if that cannot be done, or if a site is not reached.
    """
    trial = copy.deepcopy(task).eval()
    for name in ("log", "log_dict"):
        object.__setattr__(trial, name, lambda *args, **kwargs: None)
    try:
        with torch.no_grad():
            # After an earlier retraining the data may lie on its device.
            batch = trial.transfer_batch_to_device(next(iter(loader)), torch.device("cpu"), 0)
            trial.training_step(batch, 0)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TaskError(
            f"parameters by channel need one training_step of {type(task).__name__} without a trainer: {reason}"
        ) from error
    for name, module in list(task.named_modules(remove_duplicate=False)):
        if isinstance(module, LazyModuleMixin):
            settled = trial.get_submodule(name)
            if isinstance(settled, LazyModuleMixin):
                raise TaskError(f"site {name} is not reached by a batch, so it has no channels; use parameters site")
            owner, _, attribute = name.rpartition(".")
            setattr(task.get_submodule(owner), attribute, settled.train(task.get_submodule(name).training))
