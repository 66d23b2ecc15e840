"""The settings of the command line, typed; the docstrings are the help texts. Reading them does not import torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from actsearch.errors import SettingsError
from actsearch.search.settings import SearchSettings, TrialSettings

Strategy = Literal["gradient", "random", "tpe", "genetic"]


@dataclass
class DataConfig:
    """What the model sees.

    Args:
        name: images, such as digits, mnist, fashion_mnist, cifar10, cifar10_jpeg, npz or folder, text:
            python_reference, tinyshakespeare, tinystories or text, an equation: burgers, heat or poisson, or frames of
            atoms: ethanol, copper, water, rmd17, mlearn, ani1, deepmd or xyz.
        root: its folder (its file for npz and text); default: the environment's ACTSEARCH_DATA, else
            ~/.cache/actsearch/data.
        batch_size: examples a step; of text, windows; of an equation, points; of atoms, frames.
        num_workers: processes that load data; what is held in memory needs none.
        augment: unset for what is standard for the set, true or false to insist, trivial for TrivialAugmentWide too.
        limit_train: use only that many training images, each class in proportion, windows of text, or frames.
        limit_test: use only that many test images, windows or frames.
        seed: of the choice of these; of an equation, of its points.
        device: where images are kept and augmented; cpu, cuda, or one such as cuda:1; default, auto: on the GPU that
            trains, if they take at most a quarter of its free memory.
        options: of the set itself, such as image_size of folder, context and tokenizer of text, n_residual, n_data
            and sampling of an equation, or cutoff, references and molecule of frames.
    """

    name: str = "digits"
    root: str | None = None
    batch_size: int = 64
    num_workers: int = 0
    augment: bool | Literal["standard", "trivial"] | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    seed: int = 0
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """Whose activation is searched.

    Args:
        name: model, such as resnet8, resnet20, lenet, vit_tiny, minigpt, mlp or pinn_mlp.
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
        betas: of adam and adamw only.
        weight_decay: of every weight.
        decay_1d: whether biases and the gains of normalisations decay too.
        schedule: of the learning rate; cosine falls to final_lr, exponential does by the same factor every time, step
            by gamma at each of milestones.
        interval: whether the schedule is set once an epoch or at every step.
        milestones: epochs, or fractions of the run where below 1.
        gamma: what step multiplies the learning rate by.
        warmup_epochs: epochs in which the learning rate first rises.
        warmup_steps: the same in steps, with interval step.
        final_lr: where cosine and exponential end; above 0 for the latter.
        label_smoothing: of the training loss; classification only.
        residual_weight: of the equation's residual in the loss; equations only.
        data_weight: of the initial and boundary conditions in the loss; equations only.
        lbfgs_steps: iterations of L-BFGS over all points after a retraining; equations only.
        energy_weight: of the energies in the loss, at the start and in the limit, which it nears as the learning rate
            falls; force fields only, as are those below.
        force_weight: of the forces, likewise.
        stress_weight: of the stress (as a virial), likewise.
        force_loss: mse or huber, of all three.
        ema: decay of a moving average of the weights, which then is tested; 0 is off. A search does without it.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_1d: bool = True
    schedule: Literal["cosine", "exponential", "step", "constant"] = "cosine"
    interval: Literal["epoch", "step"] = "epoch"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    gamma: float = 0.1
    warmup_epochs: int = 0
    warmup_steps: int = 0
    final_lr: float = 0.0
    label_smoothing: float = 0.0
    residual_weight: float = 1.0
    data_weight: float = 1.0
    lbfgs_steps: int = 0
    energy_weight: tuple[float, float] = (0.02, 1.0)
    force_weight: tuple[float, float] = (1000.0, 1.0)
    stress_weight: tuple[float, float] = (0.0, 0.0)
    force_loss: Literal["mse", "huber"] = "mse"
    ema: float = 0.0


@dataclass
class TrainerConfig:
    """Where and how it runs; the arguments of Lightning's Trainer, and of Execution.

    Args:
        accelerator: cpu, gpu, or auto for what is there.
        devices: how many of them.
        strategy: how several devices share the work, such as ddp.
        num_nodes: machines.
        precision: of all numbers (true), or of what bears less (mixed). Of bf16-true and 16-true α would be rounded too
            much: they are for retraining. 16-mixed is bf16-mixed on a CPU, and for retraining on a GPU.
        threads: CPU threads of torch; default: one a core.
        channels_last: images and weights of convolutions lie in memory with the channel last; ResNet-20 on a CPU then
            retrains with a fifth less time; the search was not timed since its tables keep the layout.
        compile: run the model through torch.compile; reduce-overhead captures CUDA graphs too. ResNet-20 on a CPU then
            retrains with a quarter less time and searches no faster, after up to minutes of compiling.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1
    precision: Literal["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"] = "32-true"
    threads: int | None = None
    channels_last: bool = False
    compile: bool | Literal["reduce-overhead"] = False

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"trainer.{name} must be at least 1, not {value}")
        if self.accelerator == "cpu" and self.compile == "reduce-overhead":
            raise SettingsError("trainer.compile=reduce-overhead needs a CUDA device; use true or false on a CPU")

    def check_alone(self, verb: str, instead: str) -> None:
        """Raise SettingsError if several devices are to share one training, which the trainings of `verb` do not."""
        if self.devices * self.num_nodes > 1:
            raise SettingsError(
                f"each training of {verb} runs on one device: leave out trainer.devices and num_nodes; {instead}"
            )

    def options(self) -> dict[str, Any]:
        """The arguments of the Trainer."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("threads", *self.execution())}

    def execution(self) -> dict[str, Any]:
        """The arguments of Execution."""
        return {"channels_last": self.channels_last, "compile": self.compile}


@dataclass
class RetrainConfig:
    """Retraining from scratch with what was found and with standard activations, measured on the test set.

    Args:
        seeds: retrainings of each activation.
        first_seed: of these.
        epochs: of a retraining.
        accumulate: batches whose gradients make one step.
        gradient_clip: greatest norm of the gradient.
        epoch_batches: an epoch ends after so many batches, if there are more.
        activations: to compare with: operations (relu), names of torch.nn (Hardswish), genotype files, zoo:NAME, the
            model's own (own), and these with trained bases or slopes (taafs:chebyshev, laaf:site).
        random: so many functions drawn from the same search space are compared too, as controls.
        random_seed: of that draw; default: that of the search, or 0.
        parameters: of discovered functions; declared trains slopes and coefficients by their own scopes and keeps β
            and γ; frozen keeps all; network, site and channel train all, one set for the network, a site, or a channel.
        channel_axis: where channel parameters find their channels; 1 for images, -1 for tokens.
        lr_factor: these are trained at this multiple of the learning rate; at 1, some diverge under SGD at 0.1.
        slope_recovery: weight of the slope-recovery term, where slopes are trained; default: as in the search, else 0.
        gain: what is rescaled to keep the second moment of N(0, 1); the activation, or the initial weights.
        compile: run genotypes by fused kernels, made when they are first met; faster, equal up to rounding.
        jobs: retrainings at the same time, each a process of its own.
        launcher: what starts these; submitit makes a job of a cluster (SLURM) of each.
        submit: options of submitit, such as timeout_min, gpus_per_node, cpus_per_task, mem_gb, slurm_partition and
            slurm_account; cluster is slurm where it is installed, or local.
        force: take activations that are less smooth than the model needs, as ReLU in a force field.
        save_models: keep the trained model of each, as models/NAME-SEED.pt beside the results.
    """

    seeds: int = 3
    first_seed: int = 0
    epochs: int | None = None
    accumulate: int | None = None
    gradient_clip: float | None = None
    epoch_batches: int | None = None
    activations: list[str] = field(default_factory=lambda: ["relu", "gelu", "silu"])
    random: int = 2
    random_seed: int | None = None
    parameters: Literal["declared", "frozen", "network", "site", "channel"] = "declared"
    channel_axis: int | None = None
    lr_factor: float = 0.1
    slope_recovery: float | None = None
    gain: Literal["none", "activation", "weights"] = "none"
    compile: bool = False
    jobs: int = 1
    launcher: Literal["local", "submitit"] = "local"
    submit: dict[str, Any] = field(default_factory=dict)
    force: bool = False
    save_models: bool = False

    @property
    def submission(self) -> dict[str, Any] | None:
        """The options of submitit; None if the retrainings are not its jobs."""
        return self.submit if self.launcher == "submitit" else None

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("random", 0), ("first_seed", 0), ("jobs", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"compare.{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("epochs", "accumulate", "epoch_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"compare.{name} must be at least 1, not {value}")
        if not 0 < self.lr_factor < 1e6:
            raise SettingsError(f"compare.lr_factor must be above 0, not {self.lr_factor}")
        if self.slope_recovery is not None and not self.slope_recovery >= 0:
            raise SettingsError(f"compare.slope_recovery must be from 0 on, not {self.slope_recovery}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise SettingsError(f"compare.gradient_clip must be above 0, not {self.gradient_clip}")
        if self.submit and self.launcher == "local":
            raise SettingsError("compare.submit has options of submitit: set compare.launcher to submitit")
        if self.parameters == "channel" and self.channel_axis is None:
            raise SettingsError("compare.parameters=channel needs compare.channel_axis: 1 for images, -1 for tokens")


@dataclass
class CompareConfig(RetrainConfig):
    """Retraining from scratch with what was found and with standard activations, on the test set, after the search.

    What is not set of epochs, accumulate, gradient_clip and epoch_batches is as in the search.

    Args:
        enabled: off leaves the comparison to a later `actsearch transfer RUN`.
    """

    enabled: bool = True


@dataclass
class RunConfig:
    """Where the results go: root/name/DATE.

    Args:
        root: folder of all runs.
        name: of this one; default: that of the search space.
    """

    root: str = "runs"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name.strip(". ") or any(c in self.name for c in "/\\\0")):
            raise SettingsError(f"run.name must be the name of one folder, not {self.name!r}")


@dataclass
class SearchConfig:
    """Everything that a search by the command line depends on.

    Args:
        space: search space: the name of a shipped one (see `actsearch spaces`), or a YAML file.
        strategy: gradient, or for as many training steps random, tpe or genetic, which train one function a trial.
    """

    folder: ClassVar[str] = "configs/search"

    space: str = "grafs"
    strategy: Strategy = "gradient"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    search: SearchSettings = field(default_factory=SearchSettings)
    trials: TrialSettings = field(default_factory=TrialSettings)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a YAML file; read again, it gives the same configuration."""
        return {**plain(self), "search": self.search.to_dict()}

    @property
    def retraining(self) -> RetrainConfig:
        """Of the comparison, with what it leaves open as in the search."""
        values: dict[str, Any] = {f.name: getattr(self.compare, f.name) for f in dataclasses.fields(RetrainConfig)}
        as_searched: dict[str, Any] = {
            "epochs": self.search.epochs,
            "accumulate": self.search.accumulate,
            "gradient_clip": self.search.weight_clip,
            "epoch_batches": self.search.epoch_batches,
            "random_seed": self.search.seed,
            "channel_axis": self.search.channel_axis,
            "slope_recovery": self.search.slope_recovery,
        }
        values |= {key: value for key, value in as_searched.items() if values[key] is None}
        return RetrainConfig(**values)

    def transferred(self) -> TransferConfig:
        """The same data, model and training, to be compared again with other seeds."""
        retraining = self.retraining
        if self.compare.enabled:
            retraining.first_seed += retraining.seeds
        return TransferConfig(self.space, self.data, self.model, self.training, self.trainer, retraining)


@dataclass
class TransferConfig:
    """Everything that a transfer by the command line depends on, beside the functions.

    Args:
        space: where random functions are drawn from; default: the space of the first function.
    """

    folder: ClassVar[str] = "configs/transfer"

    space: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compare: RetrainConfig = field(default_factory=RetrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a YAML file; read again, it gives the same configuration."""
        return plain(self)


Config = TypeVar("Config", bound=SearchConfig | TransferConfig)


def plain(config: Any) -> dict[str, Any]:
    """A configuration, or a section of one, as YAML can hold it."""
    data = dataclasses.asdict(config)
    for section in (data, *(value for value in data.values() if isinstance(value, dict))):
        section.update({key: list(value) for key, value in section.items() if isinstance(value, tuple)})
    return data


def sections(cls: type) -> dict[str, type]:
    """The sections of a configuration by name."""
    return {
        f.name: f.default_factory  # type: ignore[misc]
        for f in dataclasses.fields(cls)
        if isinstance(f.default_factory, type)
    }


def singles(cls: type) -> dict[str, Any]:
    """The settings of a configuration that are in no section, with their types."""
    kinds = get_type_hints(cls)
    return {f.name: kinds[f.name] for f in dataclasses.fields(cls) if f.name not in sections(cls)}
