"""Plan: what a study tunes, and how; the content of a file of configs/tune."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from actsearch.errors import SettingsError, unknown_name
from actsearch.files import find_named, read_yaml
from actsearch.tune.ranges import Range, Value, is_finite

FOLDER = "configs/tune"
VERBS = ("search", "transfer")
SAMPLERS = ("tpe", "random")
PRUNERS = ("hyperband", "median", "none")
DIRECTIONS = ("minimize", "maximize")
CLIP = "space.clip.limit"  # ℓ, which is of the space, and can be tuned as if it were a setting
# Heartbeats that may be missed before a trial is taken for lost.
PATIENCE = 4


@dataclass(frozen=True)
class Plan:
    """A study over hyper-parameters of a search or of a retraining.

    Attributes:
        verb: search, or transfer for one retraining.
        config: of that verb, by name or path; what is not tuned is as in it.
        parameters: the ranges by dotted key; of a search also `space.clip.limit`, the ℓ of its space. A range with
            `when` is left out of trials in which another parameter has other values; its setting is then as in
            `config`.
        metric: what is optimised, as the verb calls it: `loss/val`, of the discrete cell, or another column of a
            search's metrics.csv; in a retraining what its validation logs, such as val_loss or val_acc.
        direction: minimize or maximize.
        fixed: settings that differ from `config`, by dotted key.
        activation: whose retraining; see `actsearch.compare.contestant`. Of transfer only.
        validation: share of the training set that is held out and measures a retraining. Of transfer only.
        trials: of the whole study, however many workers.
        sampler: tpe or random.
        pruner: hyperband, median or none.
        seed: of the sampler.
        heartbeat: seconds between signs of life of a worker; after four without one its trial is taken over.

    Raises SettingsError for what is out of range.
    """

    verb: str
    config: str
    parameters: Mapping[str, Range]
    metric: str
    direction: Literal["minimize", "maximize"] = "minimize"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "own"
    validation: float = 0.2
    trials: int = 20
    sampler: str = "tpe"
    pruner: str = "hyperband"
    seed: int = 0
    heartbeat: float = 15.0

    def __post_init__(self) -> None:
        for name, known in (
            ("verb", VERBS),
            ("direction", DIRECTIONS),
            ("sampler", SAMPLERS),
            ("pruner", PRUNERS),
        ):
            if getattr(self, name) not in known:
                raise SettingsError(unknown_name(name, str(getattr(self, name)), known))
        for name in ("config", "metric", "activation"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise SettingsError(f"{name} must be a name, not {getattr(self, name)!r}")
        if not self.parameters:
            raise SettingsError("nothing is tuned: parameters must hold keys and their ranges")
        self._check_conditions()
        if not isinstance(self.fixed, Mapping):
            raise SettingsError(f"fixed must hold keys and values, not {self.fixed!r}")
        if both := sorted(set(self.fixed) & set(self.parameters)):
            raise SettingsError(f"{both[0]} is both fixed and tuned; leave one out")
        for name, least in (("trials", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SettingsError(f"{name} must be a whole number from {least} on, not {value!r}")
        if not _is_number(self.heartbeat) or not 0.1 <= self.heartbeat <= 3600:
            raise SettingsError(f"heartbeat must be from 0.1 to 3600 seconds, not {self.heartbeat!r}")
        if not _is_number(self.validation) or not 0 < self.validation < 1:
            raise SettingsError(f"validation must lie between 0 and 1, not {self.validation!r}")

    @classmethod
    def load(cls, name: str | Path) -> Plan:
        """The shipped plan of that name, or a YAML file. Raises UnknownNameError, and SettingsError with the file."""
        file = find_named("tuning configuration", FOLDER, name)
        content = read_yaml(file, SettingsError)
        try:
            return cls.from_dict(content)
        except SettingsError as error:
            raise SettingsError(f"{file}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """From the content of a file. Raises SettingsError, with near matches for a key that is not known."""
        known = ("objective", *(name for name in cls.__dataclass_fields__ if name not in ("metric", "direction")))
        values = dict(data)
        for key in values:
            if key not in known:
                raise SettingsError(unknown_name("key", str(key), known))
        for key in ("verb", "config", "parameters", "objective"):
            if key not in values:
                raise SettingsError(f"{key} is missing")
        parameters, objective = values.pop("parameters"), values.pop("objective")
        if not isinstance(parameters, Mapping):
            raise SettingsError(f"parameters must hold keys and their ranges, not {parameters!r}")
        if not isinstance(objective, Mapping) or not {"metric"} <= set(objective) <= {"metric", "direction"}:
            raise SettingsError(f"objective must hold metric and direction, not {objective!r}")
        if values["verb"] == "search" and (own := sorted({"activation", "validation"} & set(values))):
            raise SettingsError(f"{own[0]} is for verb transfer; a search finds its own")
        if values["verb"] == "transfer" and CLIP in parameters:
            raise SettingsError(f"{CLIP} is for verb search; a retraining has no space")
        if isinstance(values.get("fixed"), Mapping):
            values["fixed"] = {str(key): value for key, value in values["fixed"].items()}
        ranges = {str(key): Range.parse(str(key), value) for key, value in parameters.items()}
        return cls(**values, **objective, parameters=ranges)

    def _check_conditions(self) -> None:
        for key, one in self.parameters.items():
            for other, values in one.when:
                if other not in self.parameters:
                    raise SettingsError(f"{key}: when: {unknown_name('tuned parameter', other, self.parameters)}")
                known = self.parameters[other]
                if known.kind == "float":
                    raise SettingsError(f"{key}: when takes parameters of a choice or an int, and {other} is a float")
                for value in values:
                    if not known.holds(value):
                        raise SettingsError(f"{key}: when: {other} never is {value!r}; it is {known.to_dict()}")
        if len(ordered := self.ordered) < len(self.parameters):
            left = sorted(set(self.parameters) - {one.key for one in ordered})
            raise SettingsError(f"{left[0]}: when depends on itself, by way of {', '.join(left)}")

    @property
    def ordered(self) -> tuple[Range, ...]:
        """The ranges, each after those that its `when` names; else as they are written."""
        found: dict[str, Range] = {}
        while len(found) < len(self.parameters):
            ready = (
                one
                for key, one in self.parameters.items()
                if key not in found and all(other in found for other, _ in one.when)
            )
            if (one := next(ready, None)) is None:
                break
            found[one.key] = one
        return tuple(found.values())

    def suggest(self, trial: Any) -> dict[str, Value]:
        """The values of an Optuna trial, of the ranges that exist in it."""
        values: dict[str, Value] = {}
        for one in self.ordered:
            if one.exists(values):
                values[one.key] = one.suggest(trial)
        return {key: values[key] for key in self.parameters if key in values}

    def needed(self, key: str) -> Iterator[dict[str, Value]]:
        """The values of other parameters with which the range of `key` exists, for each that its `when` names."""
        for chosen in itertools.product(
            *([(other, value) for value in values] for other, values in self.parameters[key].when)
        ):
            found = dict(chosen)
            for other, _ in chosen:
                found = {**next(self.needed(other)), **found}
            yield found

    @property
    def grace(self) -> float:
        """Seconds without a sign of life after which a trial is lost."""
        return PATIENCE * self.heartbeat

    @property
    def sign(self) -> float:
        """1 where less is better, else -1."""
        return 1.0 if self.direction == "minimize" else -1.0

    def identity(self) -> dict[str, Any]:
        """What all workers of a study must agree on, beside the settings that are not tuned: plain data."""
        of_transfer = {"activation": self.activation, "validation": self.validation} if self.verb == "transfer" else {}
        return {
            "verb": self.verb,
            "objective": f"{self.direction} {self.metric}",
            "parameters": {key: one.to_dict() for key, one in self.parameters.items()},
            **of_transfer,
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
