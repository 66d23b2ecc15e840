"""Results: what a study came to, as rows and as files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from actsearch.files import write_text
from actsearch.tune.plan import Plan
from actsearch.tune.queue import BROKEN, REASON, SURPLUS, TrialQueue, is_failure
from actsearch.tune.storage import patiently

State = Literal["complete", "pruned", "failed", "lost", "running", "waiting"]
FEWEST = 4  # complete trials, below which importance means nothing


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number, slot: of the trial; a lost one and what replaces it have the same slot.
        state: lost, if its worker died or was stopped; it was then run again.
        value: the metric, of a pruned trial the last that it reported; NaN where there is none.
        values: of the hyper-parameters.
        epochs: that were reported.
        seconds: from start to end.
        note: why it failed, or what it found.
    """

    number: int
    slot: int
    state: State
    value: float
    values: Mapping[str, Any]
    epochs: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Results:
    """All trials of a study.

    Attributes:
        name, plan: of the study.
        size: trials that it is to have.
        rows: by number; those that were never run since their slot was filled are left out.
        importance: shares of the hyper-parameters in the differences among good trials, by PED-ANOVA (arXiv
            2304.10255); empty where too few are complete.
    """

    name: str
    plan: Plan
    size: int
    rows: tuple[TrialRow, ...]
    importance: Mapping[str, float]

    @classmethod
    def of(cls, queue: TrialQueue) -> Results:
        """Of the study as it is now. Raises RunError if its storage cannot be read."""
        return patiently(lambda: cls._of(queue))

    @classmethod
    def _of(cls, queue: TrialQueue) -> Results:
        rows = []
        for slot in queue.slots().values():
            finished = slot.finished
            rows += [_row(t, slot.number, t is finished) for t in slot.attempts if SURPLUS not in t.user_attrs]
        rows.sort(key=lambda row: row.number)
        return cls(queue.name, queue.plan, queue.size, tuple(rows), _importance(queue.study))

    @property
    def finished(self) -> list[TrialRow]:
        """Complete, pruned and failed ones, one a slot."""
        return [row for row in self.rows if row.state in ("complete", "pruned", "failed")]

    @property
    def best(self) -> TrialRow | None:
        """The best complete trial; of equal ones the first."""
        complete = [row for row in self.rows if row.state == "complete"]
        return min(complete, key=lambda row: (self.plan.sign * row.value, row.number), default=None)

    def best_so_far(self) -> list[tuple[int, float]]:
        """(number, best value until then) after each complete trial."""
        found: list[tuple[int, float]] = []
        for row in self.rows:
            if row.state == "complete":
                known = found[-1][1] if found else self.plan.sign * math.inf
                found.append((row.number, min(known, row.value, key=lambda value: self.plan.sign * value)))
        return found

    def summary(self) -> str:
        """How many trials came to what, in a line."""
        counts = {s: sum(row.state == s for row in self.rows) for s in ("complete", "pruned", "failed", "lost")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "complete")
        return f"{len(self.finished)} of {self.size} trials: {said}" + (" and run again" if counts["lost"] else "")

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, directory: Path, best: Mapping[str, Any] | None) -> None:
        """Write trials.csv, study.json, study.md and, from the settings `best` of the best trial, best.yaml."""
        write_text(directory / "trials.csv", self._csv())
        write_text(directory / "study.json", json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        write_text(directory / "study.md", self.markdown())
        if best is not None and self.best is not None:
            head = (
                f"# Best of study {self.name}: trial {self.best.number}, {self.plan.metric} = {self.best.value:.6g}.\n"
                f"# actsearch {self.plan.verb} --config takes it.\n"
            )
            write_text(directory / "best.yaml", head + yaml.safe_dump(dict(best), sort_keys=False, allow_unicode=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number becomes null."""
        rows = [{k: _finite(v) for k, v in asdict(row).items()} for row in self.rows]
        best = next((row for row in rows if self.best is not None and row["number"] == self.best.number), None)
        return {
            "study": self.name,
            **self.plan.identity(),
            "trials": self.size,
            "best": best,
            "importance": dict(self.importance),
            "rows": rows,
        }

    def _csv(self) -> str:
        text = io.StringIO()
        keys = list(self.plan.parameters)  # blank where the range does not exist
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["number", "slot", "state", self.plan.metric, *keys, "epochs", "seconds", "note"])
        for row in self.rows:
            value = "" if math.isnan(row.value) else row.value
            seconds = "" if math.isnan(row.seconds) else round(row.seconds, 2)
            own = ["null" if row.values.get(key, "") is None else row.values.get(key, "") for key in keys]
            writer.writerow([row.number, row.slot, row.state, value, *own, row.epochs, seconds, row.note])
        return text.getvalue()

    def markdown(self) -> str:
        """The table of trials, the best first, with what is to be known of it."""
        keys = list(self.plan.parameters)
        lines = [f"# Study {self.name}", "", f"{self.plan.direction} {self.plan.metric}; {self.summary()}.", ""]
        if self.best is not None:
            lines += ["Best: " + ", ".join(f"`{k}` = {shown(v)}" for k, v in self.best.values.items()) + ".", ""]
        head = ["trial", "state", self.plan.metric, *keys, "epochs", "seconds", "note"]
        lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for row in sorted(self.rows, key=self._place):
            own = [shown(row.values[key]) if key in row.values else "–" for key in keys]
            cells = [str(row.number), row.state, shown(row.value), *own, str(row.epochs), shown(row.seconds), row.note]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        for key, one in self.plan.parameters.items():
            said = " and ".join(f"{o} is {' or '.join(shown(v) for v in values)}" for o, values in one.when)
            lines += (
                ["", f"`{key}` is tuned only where {said}; elsewhere it is as in the configuration."] if said else []
            )
        if self.importance:
            lines += ["", "| hyper-parameter | importance |", "| --- | --- |"]
            lines += [f"| {key} | {share:.2f} |" for key, share in self.importance.items()]
            complete = sum(row.state == "complete" for row in self.rows)
            lines += ["", f"Importance: PED-ANOVA over {complete} complete trials; of a few dozen it is a hint."]
        part = "a held-out part of the training data" if self.plan.verb == "transfer" else "the part that trains α"
        lines += ["", f"Measured on {part}. The best of many is optimistic: test data were not seen, and tell."]
        return "\n".join(lines) + "\n"

    def _place(self, row: TrialRow) -> tuple[Any, ...]:
        order = ("complete", "pruned", "failed", "running", "waiting", "lost").index(row.state)
        return (order, self.plan.sign * row.value if row.state == "complete" else 0.0, row.number)


def shown(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(trial: FrozenTrial, slot: int, fills: bool) -> TrialRow:
    states: Mapping[TrialState, State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
    state: State = states.get(trial.state, "failed" if is_failure(trial) or fills else "lost")
    reported = trial.intermediate_values
    value = trial.value if trial.value is not None else reported[max(reported)] if reported else math.nan
    # By the clock of the worker, which may have been set back meanwhile.
    seconds = trial.duration.total_seconds() if trial.duration is not None else math.nan
    note = trial.user_attrs.get(REASON) or trial.user_attrs.get("formula") or ""
    if state == "failed" and not is_failure(trial):
        note = trial.user_attrs.get(BROKEN) or "its worker died each time that it was tried"
    return TrialRow(
        trial.number,
        slot,
        state,
        float(value),
        dict(trial.params),
        len(reported),
        seconds if seconds >= 0 else math.nan,
        str(note),
    )


def _importance(study: optuna.Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.value for trial in complete}
    if len(complete) < FEWEST or len(values) < 2:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {key: float(share) for key, share in found.items() if math.isfinite(share)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
