"""The settings of the command line, typed; the docstrings are the help texts. Reading them does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actsearch.errors import SettingsError
from actsearch.search.settings import SearchSettings


@dataclass
class DataConfig:
    """What the model sees.

    Args:
        name: data set, such as digits, mnist, fashion_mnist, cifar10, cifar10_jpeg, npz or folder.
        root: its folder (its file for npz); default: the environment's ACTSEARCH_DATA, else ~/.cache/actsearch/data.
        batch_size: examples a step.
        num_workers: processes that load data; what is held in memory needs none.
        augment: unset for what is standard for the set, true or false to insist.
        limit_train: use only that many training images, each class in proportion.
        limit_test: use only that many test images.
        seed: of the choice of these images.
        options: of the set itself, such as image_size of folder.
    """

    name: str = "digits"
    root: str | None = None
    batch_size: int = 64
    num_workers: int = 0
    augment: bool | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """Whose activation is searched.

    Args:
        name: model, such as resnet8, resnet20, lenet or mlp.
        options: its own arguments, such as width.
    """

    name: str = "resnet8"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingConfig:
    """How weights are trained, in the search and in the comparison alike.

    Args:
        optimizer: of the weights.
        lr: its peak learning rate.
        momentum: of sgd only.
        weight_decay: of every weight.
        decay_1d: whether biases and the gains of normalisations decay too.
        schedule: of the learning rate, set once an epoch; cosine falls to zero, step by gamma at each of milestones.
        milestones: epochs, or fractions of the run where below 1.
        gamma: what step multiplies the learning rate by.
        warmup_epochs: epochs in which the learning rate first rises.
        label_smoothing: of the training loss.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_1d: bool = True
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    gamma: float = 0.1
    warmup_epochs: int = 0
    label_smoothing: float = 0.0


@dataclass
class TrainerConfig:
    """Where it runs; the arguments of Lightning's Trainer.

    Args:
        accelerator: cpu, gpu, or auto for what is there.
        devices: how many of them.
        strategy: how several devices share the work, such as ddp.
        num_nodes: machines.
        precision: such as 32-true or bf16-mixed.
        threads: CPU threads of torch; default: one a core.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"trainer.{name} must be at least 1, not {value}")

    def options(self) -> dict[str, Any]:
        """The arguments of the Trainer."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "threads"}


@dataclass
class CompareConfig:
    """Retraining from scratch with what was found and with standard activations, on the test set, after the search.

    Args:
        enabled: off leaves the comparison to a later `actsearch compare RUN`.
        seeds: retrainings of each activation.
        epochs: of a retraining; default: as many as the search had.
        activations: unary operations to compare with.
        random: so many functions drawn from the same search space are compared too, as controls.
    """

    enabled: bool = True
    seeds: int = 3
    epochs: int | None = None
    activations: list[str] = field(default_factory=lambda: ["relu", "gelu", "silu"])
    random: int = 2

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.random < 0 or (self.epochs is not None and self.epochs < 1):
            raise SettingsError("compare needs seeds and epochs of at least 1, and random of at least 0")


@dataclass
class RunConfig:
    """Where the results go: root/name/DATE.

    Args:
        root: folder of all runs.
        name: of this one; default: that of the search space.
        quiet: say nothing before the result.
    """

    root: str = "runs"
    name: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name.strip(". ") or any(c in self.name for c in "/\\\0")):
            raise SettingsError(f"run.name must be the name of one folder, not {self.name!r}")


@dataclass
class SearchConfig:
    """Everything that a search by the command line depends on.

    Args:
        space: search space: the name of a shipped one (see `actsearch spaces`), or a YAML file.
    """

    space: str = "grafs"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    search: SearchSettings = field(default_factory=SearchSettings)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a YAML file; read again, it gives the same configuration."""
        return {**dataclasses.asdict(self), "search": self.search.to_dict()}

    @property
    def compare_epochs(self) -> int:
        """Epochs of a retraining."""
        return self.compare.epochs or self.search.epochs


SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "search": SearchSettings,
    "trainer": TrainerConfig,
    "compare": CompareConfig,
    "run": RunConfig,
}
