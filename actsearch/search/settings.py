"""Settings of a search; plain data, so that reading them does not import torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from actsearch.errors import SettingsError, unknown_name

if TYPE_CHECKING:
    from actsearch.ops.spec import OpParameter


@dataclass
class RefineSettings:
    """Local search over the discrete cell after the bilevel search (ours, not published).

    Args:
        enabled: off reproduces the paper.
        evaluations: greatest number of functions whose validation loss is measured.
        batches: validation batches that make up one measurement, the same for all functions.
        restarts: starting points: the searched function, then random functions of the space; the best result is kept.
        width: how many of the best candidates of each slot are tried in pairs once no single change helps.
        tolerance: a change must lower the loss by more than this share of it.
    """

    enabled: bool = True
    evaluations: int = 300
    batches: int = 4
    restarts: int = 1
    width: int = 4
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        _at_least("refine.evaluations", self.evaluations, 1)
        _at_least("refine.batches", self.batches, 1)
        _at_least("refine.restarts", self.restarts, 1)
        _at_least("refine.width", self.width, 1)
        if not (_is_number(self.tolerance) and 0 <= self.tolerance < 1):
            raise SettingsError(f"refine.tolerance must be from 0 to below 1, not {self.tolerance!r}")


@dataclass
class SearchSettings:
    """Settings of a bilevel search; the defaults are those published for ResNet-20 (arXiv 2408.06820).

    Args:
        epochs: search length T.
        seed: of everything random in the search.
        relaxation: how α become weights of candidates.
        relaxation_options: options of the relaxation, such as concentration_floor (dirichlet) or temperature.
        evaluator: how the mixture is computed.
        order: 1, or 2 for the unrolled inner step with a finite-difference Hessian-vector product (experimental).
        inner_lr: learning rate of the unrolled step; default: the present one of the weights.
        arch_fraction: share of the training set that trains α.
        epoch_batches: an epoch ends after so many batches of the weights' part, if there are more; default: all.
        validation_batches: so many batches of α's part, the same each time, measure the discrete cell after an epoch;
            default: all.
        arch_every: do an α step at every k-th weight step.
        alpha_lr: Adam's learning rate of α.
        alpha_betas: Adam's β of α.
        alpha_weight_decay: L2 on α.
        alpha_clip: greatest norm of α's gradient.
        anchor: weight of the relaxation's anchor (KL to the uniform Dirichlet) in α's loss.
        op_parameters: whether parameters of operations are trained with α or with the weights; as published, β and γ
            are with α, slopes and coefficients with the weights.
        op_parameter_lr: Adam's learning rate of these; default: alpha_lr with α, and 1e-3 with the weights.
        slope_recovery: weight of the slope-recovery term in the weights' loss, for spaces with slopes; each slope
            candidate counts in proportion to its probability.
        channel_axis: axis of the channels, for spaces with parameters by channel; 1 for images, -1 for tokens.
        weight_clip: greatest norm of the weights' gradient.
        accumulate: batches whose gradients make one step of either level.
        warm: standard activation of the warm start.
        warm_epochs: weight steps of the first epochs run with it.
        warm_steps: the same in steps of the weights' optimiser; replaces warm_epochs.
        shrink: drop candidates by the published schedule.
        shrink_start: epoch s after which the first are dropped.
        shrink_unit: whether the schedule counts epochs or the weights' optimiser's steps; with steps, shrink_start is
            a step.
        max_skipped: stop after this many steps whose loss or gradient was not finite.
        check_ranks: where several processes share a search, it is asserted after so many batches, and after every
            epoch, that all hold the same α, parameters of operations, candidates and weights, bit for bit.
        refine: local search after discretisation.
        force: search a space, with a warm start, that is less smooth than the model needs.
    """

    epochs: int = 50
    seed: int = 0
    relaxation: Literal["dirichlet", "gumbel", "softmax"] = "dirichlet"
    relaxation_options: dict[str, float] = field(default_factory=dict)
    evaluator: Literal["auto", "table", "dense"] = "auto"
    order: Literal[1, 2] = 1
    inner_lr: float | None = None
    arch_fraction: float = 0.25
    epoch_batches: int | None = None
    validation_batches: int | None = None
    arch_every: int = 1
    alpha_lr: float = 6e-4
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = 1e-3
    alpha_clip: float | None = None
    anchor: float = 0.0
    op_parameters: Literal["published", "alpha", "weights"] = "published"
    op_parameter_lr: float | None = None
    slope_recovery: float = 0.01
    channel_axis: int | None = None
    weight_clip: float | None = None
    accumulate: int = 1
    warm: str = "relu"
    warm_epochs: int = 1
    warm_steps: int | None = None
    shrink: bool = True
    shrink_start: int = 2
    shrink_unit: Literal["epoch", "step"] = "epoch"
    max_skipped: int = 20
    check_ranks: int = 100
    refine: RefineSettings = field(default_factory=RefineSettings)
    force: bool = False

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("arch_every", self.arch_every, 1)
        _at_least("accumulate", self.accumulate, 1)
        _at_least("warm_epochs", self.warm_epochs, 0)
        _at_least("max_skipped", self.max_skipped, 0)
        _at_least("check_ranks", self.check_ranks, 1)
        _at_least("shrink_start", self.shrink_start, 1)
        for name, least in (("epoch_batches", 1), ("validation_batches", 1), ("warm_steps", 0)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), least)
        if not isinstance(self.shrink, bool):
            raise SettingsError(f"shrink must be true or false, not {self.shrink!r}")
        if not isinstance(self.force, bool):
            raise SettingsError(f"force must be true or false, not {self.force!r}")
        if not isinstance(self.refine, RefineSettings):
            raise SettingsError(f"refine must hold settings such as enabled or evaluations, not {self.refine!r}")
        options = self.relaxation_options
        if not isinstance(options, Mapping) or not all(_is_number(v) for v in options.values()):
            raise SettingsError(f"relaxation_options must hold names and numbers, not {options!r}")
        _choice("relaxation", self.relaxation, ("dirichlet", "gumbel", "softmax"))
        _choice("evaluator", self.evaluator, ("auto", "table", "dense"))
        _choice("order", self.order, (1, 2))
        _choice("op_parameters", self.op_parameters, ("published", "alpha", "weights"))
        _choice("shrink_unit", self.shrink_unit, ("epoch", "step"))
        _positive("alpha_lr", self.alpha_lr)
        for name in ("inner_lr", "alpha_clip", "op_parameter_lr", "weight_clip"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("alpha_weight_decay", "anchor", "slope_recovery"):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise SettingsError(f"{name} must be a finite number from 0 on, not {getattr(self, name)!r}")
        if not (_is_number(self.arch_fraction) and 0 < self.arch_fraction < 1):
            raise SettingsError(f"arch_fraction must lie between 0 and 1, not {self.arch_fraction!r}")
        if isinstance(self.channel_axis, bool) or not isinstance(self.channel_axis, int | None):
            raise SettingsError(f"channel_axis must be a whole number such as 1 or -1, not {self.channel_axis!r}")
        if len(self.alpha_betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in self.alpha_betas):
            raise SettingsError(f"alpha_betas must be two numbers from 0 to below 1, not {self.alpha_betas!r}")
        self.alpha_betas = (float(self.alpha_betas[0]), float(self.alpha_betas[1]))
        if self.shrink and self.shrink_unit == "epoch" and self.epochs <= self.shrink_start:
            raise SettingsError(
                f"epochs ({self.epochs}) must exceed shrink_start ({self.shrink_start}): search longer, "
                "start to shrink earlier, or set shrink to false"
            )
        if self.inner_lr is not None and self.order == 1:
            raise SettingsError("inner_lr is used by order 2 only; set order to 2 or leave inner_lr out")

    def level_of(self, parameter: OpParameter) -> str:
        """What trains a parameter of an operation: `alpha` or `weights`."""
        return parameter.trained_with if self.op_parameters == "published" else self.op_parameters

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSettings:
        """Settings from keys and values; `refine` may be a mapping. Raises SettingsError with near matches."""
        return _build(cls, data, "search setting", {"refine": RefineSettings})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        data = dataclasses.asdict(self)
        data["alpha_betas"] = list(self.alpha_betas)
        return data


@dataclass
class TrialSettings:
    """How the strategies random, tpe and genetic spend the training steps of the gradient search.

    Each trial trains one function from scratch on the weights' part, and is judged by its loss on α's part after each
    rung of steps; successive halving stops those that others beat.

    Args:
        length: steps of the longest trial, as a share of the weight steps of the gradient search.
        rungs: so often a trial is judged, the last time at its end; 1 trains all to the end.
        reduction: each rung has so many times the steps of the one before, and one in so many trials gets there.
        population: of the genetic sampler; as many trials of TPE are random before its model has enough to go by.
    """

    length: float = 1 / 3
    rungs: int = 3
    reduction: int = 3
    population: int = 8

    def __post_init__(self) -> None:
        if not (_is_number(self.length) and 0 < self.length <= 1):
            raise SettingsError(f"trials.length must be above 0 and at most 1, not {self.length!r}")
        _at_least("trials.rungs", self.rungs, 1)
        _at_least("trials.reduction", self.reduction, 2)
        _at_least("trials.population", self.population, 2)


def _build(cls: type, data: Mapping[str, Any], kind: str, nested: Mapping[str, type]) -> Any:
    known = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in data.items():
        if key not in known:
            raise SettingsError(unknown_name(kind, key, known))
        if key in nested and isinstance(value, Mapping):
            value = _build(nested[key], value, f"{key} setting", {})
        values[key] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise SettingsError(f"{kind} has a value of the wrong kind: {error}") from None


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _positive(name: str, value: Any) -> None:
    if not _is_number(value) or value <= 0:
        raise SettingsError(f"{name} must be a positive finite number, not {value!r}")


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name} must be a whole number from {least} on, not {value!r}")


def _choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or value not in allowed:
        raise SettingsError(unknown_name(f"value of {name}", str(value), map(str, allowed)))
