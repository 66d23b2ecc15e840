"""The range of one hyper-parameter, as a configuration writes it and as Optuna samples it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        when: the range exists only where each of these other hyper-parameters has one of these values.
    """

    key: str
    kind: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    step: float | int | None = None
    choices: tuple[Value, ...] = ()
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    @classmethod
    def parse(cls, key: str, data: Any) -> Range:
        """From `{float: [LOW, HIGH], log: true}`, `{int: [LOW, HIGH], step: 2}` or `{choice: [A, B]}`.

        Each may also have `when: {OTHER: [VALUE, …]}`. Raises SettingsError, in one line, for anything else.
        """
        if isinstance(data, Mapping) and "when" in data:
            own = {part: value for part, value in data.items() if part != "when"}
            return replace(cls.parse(key, own), when=_conditions(key, data["when"]))
        if not isinstance(data, Mapping) or len(kinds := [k for k in data if k in KINDS]) != 1:
            raise SettingsError(
                f"{key}: a range is {{float: [LOW, HIGH]}}, {{int: [LOW, HIGH]}} or {{choice: [A, B, …]}}, not {data!r}"
            )
        kind = str(kinds[0])
        for other in data:
            if other not in (kind, "log", "step"):
                parts = (kind, "log", "step", "when")
                raise SettingsError(f"{key}: {unknown_name('part of a range', str(other), parts)}")
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
        when = {"when": {other: list(values) for other, values in self.when}} if self.when else {}
        if self.kind == "choice":
            return {"choice": list(self.choices), **when}
        data: dict[str, Any] = {self.kind: [self.low, self.high]}
        data |= ({"log": True} if self.log else {}) | ({"step": self.step} if self.step is not None else {})
        return data | when

    @property
    def ends(self) -> tuple[Value, ...]:
        """What is tried before a study begins: both ends, or every choice."""
        return self.choices if self.kind == "choice" else (self.low, self.high)

    def holds(self, value: Value) -> bool:
        """Whether it can take that value."""
        if self.kind == "choice":
            return any(_same(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.kind == "float" or (value == int(value) and (value - self.low) % (self.step or 1) == 0)

    def exists(self, values: Mapping[str, Value]) -> bool:
        """Whether the range exists where other hyper-parameters have these values."""
        return all(
            other in values and any(_same(values[other], value) for value in allowed) for other, allowed in self.when
        )

    def suggest(self, trial: Any) -> Value:
        """The value for an Optuna trial."""
        if self.kind == "choice":
            value: Value = trial.suggest_categorical(self.key, self.choices)
        elif self.kind == "int":
            value = trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return value


def is_finite(value: int | float) -> bool:
    """Whether it is a float, or can be one."""
    try:
        return math.isfinite(value)
    except OverflowError:  # of hundreds of digits
        return False


def _number(key: str, kind: str, value: Any) -> float | int:
    """YAML reads 1e-3, without a point, as a string."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise SettingsError(f"{key}: {value!r} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise SettingsError(f"{key}: {value!r} is not a finite number")
    if kind == "float":
        return float(value)
    if value != int(value):
        raise SettingsError(f"{key}: int takes whole numbers, not {value!r}")
    return int(value)


def _conditions(key: str, when: Any) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    if not isinstance(when, Mapping) or not when:
        raise SettingsError(
            f"{key}: when takes other hyper-parameters and their values, {{OTHER: [A, …]}}, not {when!r}"
        )
    found = []
    for other, values in when.items():
        values = values if isinstance(values, list | tuple) else [values]
        if not values or not all(isinstance(value, str | float | int | None) for value in values):
            raise SettingsError(f"{key}: when {other} takes names, numbers, true, false or null, not {values!r}")
        found.append((str(other), tuple(values)))
    return tuple(found)


def _same(a: Value, b: Value) -> bool:
    """1 is 1.0, and is not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
