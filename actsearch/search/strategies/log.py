"""The trials of a search on disk: one line of JSON each, written when it ends.

They are all that a search needs to go on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actsearch.errors import RunError
from actsearch.files import append_line, read_json_lines, write_text

FILE = "trials.jsonl"


@dataclass(frozen=True)
class TrialRecord:
    """A trial that has ended.

    Attributes:
        number: from 0.
        params: as the sampler chose them.
        formula: of the function, for people.
        losses: on α's part, by the training steps done; infinite where it was not finite.
        steps: training steps that it took.
        pruned: stopped because others were better at the same number of steps.
        seconds: that it took.
        attrs: what sampler and pruner noted of it.
    """

    number: int
    params: Mapping[str, Any]
    formula: str
    losses: Mapping[int, float]
    steps: int
    pruned: bool
    seconds: float
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The last."""
        return self.losses[self.steps]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not finite becomes null."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialRecord:
        """From `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        losses = {int(step): math.inf if loss is None else float(loss) for step, loss in data["losses"].items()}
        attrs = {str(k): math.inf if v is None else v for k, v in data["attrs"].items()}
        record = cls(**{**data, "losses": losses, "attrs": attrs, "params": dict(data["params"])})
        if record.steps not in losses or type(record.number) is not int or type(record.pruned) is not bool:
            raise ValueError("it has no loss after its last step")
        return record


class TrialLog:
    """The file trials.jsonl of a run directory; its first line holds what decides which trials there are.

    Args:
        directory: of the run.
        conditions: plain data. None of it may differ from that of the trials that are there.

    A line that a kill cut off is removed. Raises RunError for what cannot be read or written, or does not fit.
    """

    def __init__(self, directory: Path | str, conditions: Mapping[str, Any]) -> None:
        self.path = Path(directory) / FILE
        self.records: list[TrialRecord] = []
        conditions = json.loads(json.dumps(conditions))
        lines = read_json_lines(self.path, "start a new search")
        if not lines:
            write_text(self.path, json.dumps(conditions) + "\n")
            return
        if different := [key for key in {**lines[0], **conditions} if lines[0].get(key) != conditions.get(key)]:
            raise RunError(f"{self.path} holds trials of another search ({', '.join(different)} differ); start anew")
        for place, line in enumerate(lines[1:]):
            try:
                record = TrialRecord.from_dict(line)
                if record.number != place:
                    raise ValueError("a trial is missing")
            except (KeyError, TypeError, ValueError, AttributeError):
                raise RunError(f"{self.path}, line {place + 2} is not trial {place}; start a new search") from None
            self.records.append(record)

    @property
    def steps(self) -> int:
        """Training steps of all trials."""
        return sum(record.steps for record in self.records)

    @property
    def seconds(self) -> float:
        """Of all trials."""
        return sum(record.seconds for record in self.records)

    def add(self, record: TrialRecord) -> None:
        """Append a trial."""
        append_line(self.path, json.dumps(record.to_dict(), ensure_ascii=False, allow_nan=False))
        self.records.append(record)

    def best(self) -> TrialRecord:
        """Of least loss among those that took the most steps: losses after fewer are not comparable.

        Raises RunError if there is no trial.
        """
        if not self.records:
            raise RunError(f"{self.path} holds no trial")
        most = max(record.steps for record in self.records)
        return min((r for r in self.records if r.steps == most), key=lambda r: (r.loss, r.number))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
