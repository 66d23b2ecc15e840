"""What a bench found, as plain data that is on disk as soon as it is measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actsearch.bench.contestants import BASELINE
from actsearch.bench.timing import Ratio, Times, ratio

StepName = Literal["weight", "alpha"]


@dataclass
class Row:
    """One step of one contestant in a group.

    Attributes:
        contestant, label: by name, and for people.
        step: `weight` (a standard activation's training step), or `alpha`.
        times: of the rounds.
        memory: peak bytes of tensors beyond those at the step's start; None if it was not measured.
        resident: growth of the peak resident size, in bytes; None where it cannot be had.
        note: why there are no figures, or what to know about them.
        candidates, slots: of the cell; None without one.
    """

    contestant: str
    label: str
    step: StepName
    times: Times = field(default_factory=Times)
    memory: int | None = None
    resident: int | None = None
    note: str = ""
    candidates: int | None = None
    slots: int | None = None


@dataclass
class Group:
    """Rows that were measured in turn, and so can be compared. `kind` is `workload` or `growth`."""

    name: str
    label: str
    detail: str
    kind: Literal["workload", "growth"] = "workload"
    rows: list[Row] = field(default_factory=list)

    def row(self, contestant: str, step: StepName = "weight", candidates: int | None = None) -> Row | None:
        """The first such row; any number of candidates if None is given."""
        for row in self.rows:
            if (row.contestant, row.step) == (contestant, step) and candidates in (None, row.candidates):
                return row
        return None

    def ratio(self, row: Row | None, to: Row | None) -> Ratio | None:
        """Paired ratio of the times of two rows; None if one was not measured."""
        if row is None or to is None or len(row.times.seconds) != len(to.times.seconds):
            return None
        return ratio(row.times.seconds, to.times.seconds)

    def to_baseline(self, row: Row) -> Ratio | None:
        """Time as a multiple of the baseline's training step."""
        return self.ratio(row, self.row(BASELINE))

    def memory_to_baseline(self, row: Row | None) -> float | None:
        """Peak memory as a multiple of the baseline's."""
        baseline = self.row(BASELINE)
        if row is None or baseline is None or not row.memory or not baseline.memory:
            return None
        return row.memory / baseline.memory


@dataclass
class Whole:
    """A whole search of one contestant, extrapolated from measured steps.

    Attributes:
        search, retraining: seconds; the latter by name of the activation that is retrained with.
        ratios: paired, search over retraining, by the same names.
        search_epochs, retraining_epochs: a minute.
        assumptions: what the figures rest on, in sentences.
        note: why there are no figures.
    """

    contestant: str
    label: str
    search: float = math.nan
    retraining: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    search_epochs: float = math.nan
    retraining_epochs: dict[str, float] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    note: str = ""


@dataclass
class Results:
    """All of a bench; `machine` and `settings` are plain data, `warnings` sentences."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    groups: list[Group] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    finished: bool = False

    def group(self, name: str) -> Group | None:
        """The group of that name."""
        return next((g for g in self.groups if g.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the ratios; numbers that are not finite are null."""
        data: dict[str, Any] = dataclasses.asdict(self)
        for group, written in zip(self.groups, data["groups"], strict=True):
            for row, line in zip(group.rows, written["rows"], strict=True):
                found = group.to_baseline(row)
                line["ratio"] = None if found is None else dataclasses.asdict(found)
                line["memory_ratio"] = group.memory_to_baseline(row)
        plain: dict[str, Any] = _plain(data)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
