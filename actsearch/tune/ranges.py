"""The range of one hyper-parameter, as a configuration writes it and as Optuna samples it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actsearch.errors import SettingsError, unknown_name

KINDS = ("float", "int", "choice")
Value = str | float | int | bool | None


@dataclass(frozen=True)
class Range:
    """What values a hyper-parameter may take.

    Attributes:
        key: dotted name of a setting.
        kind: float or int, from `low` to `high`, both included, or choice, of `choices`.
        log: whether the logarithm is sampled uniformly.
        step: distance of neighbours; of float and int without `log`.
    """

    key: str
    kind: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    step: float | int | None = None
    choices: tuple[Value, ...] = ()

    @classmethod
    def parse(cls, key: str, data: Any) -> Range:
        """From `{float: [LOW, HIGH], log: true}`, `{int: [LOW, HIGH], step: 2}` or `{choice: [A, B]}`.

        Raises SettingsError, in one line, for anything else.
        """
        if not isinstance(data, Mapping) or len(kinds := [k for k in data if k in KINDS]) != 1:
            raise SettingsError(
                f"{key}: a range is {{float: [LOW, HIGH]}}, {{int: [LOW, HIGH]}} or {{choice: [A, B, …]}}, not {data!r}"
            )
        kind = str(kinds[0])
        for other in data:
            if other not in (kind, "log", "step"):
                raise SettingsError(f"{key}: {unknown_name('part of a range', str(other), (kind, 'log', 'step'))}")
        if not isinstance(data[kind], list | tuple):
            raise SettingsError(f"{key}: {kind} takes a list, not {data[kind]!r}")
        if kind == "choice":
            return cls._of_choices(key, data)
        if len(data[kind]) != 2:
            raise SettingsError(f"{key}: {kind} takes [LOW, HIGH], not {data[kind]!r}")
        low, high = (_number(key, kind, value) for value in data[kind])
        log = data.get("log", False)
        step = data.get("step")
        if not isinstance(log, bool):
            raise SettingsError(f"{key}: log must be true or false, not {log!r}")
        if low >= high:
            raise SettingsError(f"{key}: the low end {low!r} must be below the high end {high!r}")
        if log and low <= 0:
            raise SettingsError(f"{key}: a logarithmic range must start above 0, not at {low!r}")
        if step is not None:
            step = _number(key, kind, step)
            if log or step <= 0:
                raise SettingsError(f"{key}: step must be above 0, and is for ranges without log")
        return cls(key, kind, low, high, log, step)

    @classmethod
    def _of_choices(cls, key: str, data: Mapping[str, Any]) -> Range:
        choices = data["choice"]
        if len(data) > 1:
            raise SettingsError(f"{key}: a choice takes neither log nor step")
        if len(choices) < 2 or not all(isinstance(value, str | float | int | None) for value in choices):
            raise SettingsError(f"{key}: choice takes two or more names, numbers, true, false or null, not {choices!r}")
        if len({(type(value), value) for value in choices}) < len(choices):
            raise SettingsError(f"{key}: a choice is there twice in {choices!r}")
        return cls(key, "choice", choices=tuple(choices))

    def to_dict(self) -> dict[str, Any]:
        """As it is written; `parse` reads it back."""
        if self.kind == "choice":
            return {"choice": list(self.choices)}
        data: dict[str, Any] = {self.kind: [self.low, self.high]}
        return data | ({"log": True} if self.log else {}) | ({"step": self.step} if self.step is not None else {})

    @property
    def ends(self) -> tuple[Value, ...]:
        """What is tried before a study begins: both ends, or every choice."""
        return self.choices if self.kind == "choice" else (self.low, self.high)

    def suggest(self, trial: Any) -> Value:
        """The value for an Optuna trial."""
        if self.kind == "choice":
            value: Value = trial.suggest_categorical(self.key, self.choices)
        elif self.kind == "int":
            value = trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return value


def _number(key: str, kind: str, value: Any) -> float | int:
    """YAML reads 1e-3, without a point, as a string."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise SettingsError(f"{key}: {value!r} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SettingsError(f"{key}: {value!r} is not a finite number")
    if kind == "float":
        return float(value)
    if value != int(value):
        raise SettingsError(f"{key}: int takes whole numbers, not {value!r}")
    return int(value)
