"""Comparison: all retrainings of a study with their statistics, and what they say in words."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from actsearch.compare.adapted import OWN, OWN_FORMULA
from actsearch.compare.contestants import ADAPTED, DISCOVERED, Contestant
from actsearch.compare.ranks import LEAST, RankCorrelation, rank_correlation
from actsearch.compare.records import plain, retraining
from actsearch.compare.retrain import Budget, Retraining
from actsearch.compare.statistics import LEVEL, Paired, holm, paired
from actsearch.errors import RunError, UnknownNameError
from actsearch.files import write_text

# Of metrics that were computed in single precision: equal accuracies differ by that much.
RESOLUTION = 2e-6
STANDARD_SET = ("relu", "gelu", "silu")
FILE = "comparison.json"


@dataclass(frozen=True)
class Entry:
    """What is known of a contestant without training it; `saved_bytes` for backward are those of an input element."""

    name: str
    formula: str
    kind: str
    saved_bytes: float = math.nan

    @classmethod
    def of(cls, contestant: Contestant, saved: float = math.nan) -> Entry:
        return cls(contestant.name, contestant.formula, contestant.kind, saved)


@dataclass(frozen=True)
class Row:
    """One activation over all seeds.

    Attributes:
        name, formula, kind, saved_bytes: of the activation.
        values: the metric of the seeds in order; NaN where the retraining failed.
        failures: (seed, reason) of those.
        mean, sd: of the other values; sd is that of the sample (n - 1). NaN where there are too few.
        seconds: median training of a seed.
        step_seconds: median over the seeds of the median step.
        peak_memory: greatest of the seeds, bytes; NaN on CPU.
        added_parameters: to the task.
        parameters: of the task without it; 0 where that was not counted.
    """

    name: str
    formula: str
    kind: str
    saved_bytes: float
    values: tuple[float, ...]
    failures: tuple[tuple[int, str], ...]
    mean: float
    sd: float
    seconds: float
    step_seconds: float
    peak_memory: float
    added_parameters: int
    parameters: int = 0

    @property
    def n(self) -> int:
        """Number of retrainings that did not fail."""
        return len(self.values) - len(self.failures)


@dataclass(frozen=True)
class Test:
    """Differences `reference` - `other` of the metric, over the seeds in which neither failed.

    p_holm: p_t after Holm's correction over all tests of the comparison.
    failures: retrainings of the two that failed, which no statistic holds.
    """

    reference: str
    other: str
    paired: Paired
    p_holm: float
    failures: int

    __test__ = False  # not a test of pytest

    @property
    def significant(self) -> bool:
        """At 5 %, corrected; not if it cannot be computed."""
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class Comparison:
    """All retrainings of a comparison; rows and tests follow from them.

    Attributes:
        metric, higher_is_better: what was measured on the test set.
        seeds, budget: of the retrainings.
        entries: the contestants in order.
        retrainings: one for each seed and contestant.
        references: names of those that every other one is compared with.
        context: what the caller says of data, model and training.
        losses: what the search measured of contestants, by name, all in the same way; may be empty.
    """

    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    budget: Budget
    entries: tuple[Entry, ...]
    retrainings: tuple[Retraining, ...]
    references: tuple[str, ...]
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def epochs(self) -> int:
        return self.budget.epochs

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One for each contestant."""
        return tuple(self._row(entry) for entry in self.entries)

    @cached_property
    def tests(self) -> tuple[Test, ...]:
        """Every reference against every other contestant; two references against each other once.

        Two adapted ones are not compared: every further test makes Holm's correction of the others stricter.
        """
        adapted = {entry.name for entry in self.entries if entry.kind == ADAPTED}
        pairs = [
            (reference, row.name)
            for k, reference in enumerate(self.references)
            for row in self.rows
            if row.name not in self.references[: k + 1] and not {reference, row.name} <= adapted
        ]
        found = []
        for reference, other in pairs:
            values = np.array([self.row(reference).values, self.row(other).values])
            values = values[:, ~np.isnan(values).any(axis=0)]
            found.append(paired(values[0] - values[1], RESOLUTION * np.abs(values).max(initial=0.0)))
        corrected = holm([one.p_t for one in found])
        return tuple(
            Test(*pair, one, p, len(self.row(pair[0]).failures) + len(self.row(pair[1]).failures))
            for pair, one, p in zip(pairs, found, corrected, strict=True)
        )

    def row(self, name: str) -> Row:
        """The row of that name. Raises UnknownNameError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UnknownNameError("contestant", name, [row.name for row in self.rows])

    def test(self, other: str, reference: str | None = None) -> Test:
        """The test of `other`; `reference` tells which if there are several. Raises UnknownNameError."""
        for test in self.tests:
            if test.other == other and reference in (None, test.reference):
                return test
        raise UnknownNameError("compared activation", other, [test.other for test in self.tests])

    @property
    def scale(self) -> float:
        """Accuracies are shown in percent: 100, else 1."""
        return 100.0 if self.metric.endswith("acc") else 1.0

    @cached_property
    def rank_correlation(self) -> RankCorrelation | None:
        """Between the search's losses and the retrained means, over the contestants that have both."""
        both = [row for row in self.rows if row.name in self.losses]
        losses = [self.losses[row.name] for row in both]
        return rank_correlation(losses, [row.mean for row in both], self.higher_is_better)

    def says(self, test: Test) -> str:
        """`better`, `worse`, `no significant difference` or `no test is possible`, of the reference."""
        if not test.significant:
            return "no test is possible" if math.isnan(test.p_holm) else "no significant difference"
        return "better" if (test.paired.mean > 0) == self.higher_is_better else "worse"

    @property
    def is_of_adapted(self) -> bool:
        """Whether nothing but the model's own activations, adapted, is compared with the others."""
        kinds = {entry.kind for entry in self.entries if entry.name in self.references}
        return kinds == {ADAPTED}

    def missing_controls(self) -> list[str]:
        """The standard activations, and the random function, that are not there; of adapted ones, where they start."""
        if self.is_of_adapted:
            return [] if self._has_own else [f"{OWN} ({OWN_FORMULA} activations)"]
        standard = [entry for entry in self.entries if entry.kind == "standard"]
        there = {name for e in standard for name in (e.name.lower(), e.formula.lower().partition("(")[0])}
        missing = [name for name in STANDARD_SET if name not in there]
        return missing + ["a random function of the same space"] * all(e.kind != "random" for e in self.entries)

    @property
    def _has_own(self) -> bool:
        return any(entry.formula == OWN_FORMULA for entry in self.entries)

    def may_win(self, reference: str | None = None) -> bool:
        """Whether there are enough controls to call `reference` (default: the first) a winner.

        At least one standard and one random one; of an adapted one, what it starts at.
        """
        reference = reference or next(iter(self.references), "")
        if any(entry.name == reference and entry.kind == ADAPTED for entry in self.entries):
            return self._has_own
        kinds = {entry.kind for entry in self.entries if entry.name not in self.references}
        return {"standard", "random"} <= kinds

    def verdict(self) -> str:
        """In words: one line for each test, one for each failed retraining, and `summary`."""
        unit = " points" if self.scale == 100 else ""
        lines = []
        for test in self.tests:
            said = self.says(test)
            if said == "better" and not self.may_win(test.reference):
                said = "significant, but no win without its controls"
            elif said in ("better", "worse"):
                said = f"significantly {said}"
            note = f" ({test.failures} failed retraining(s) left out)" if test.failures else ""
            lines.append(
                f"{test.reference} - {test.other}: {self.scale * test.paired.mean:+.3g}{unit} "
                f"({self._evidence(test.paired)}, Holm p = {test.p_holm:.2g}, n = {test.paired.n}): {said}{note}"
            )
        lines += [f"{row.name}, seed {seed}: failed: {why}" for row in self.rows for seed, why in row.failures]
        return "\n".join([*lines, self.summary()])

    def _evidence(self, one: Paired) -> str:
        if one.n < 2:
            return "no interval from fewer than two seeds"
        if math.isnan(one.interval[0]):
            return "the same in every seed, so no interval"
        low, high = (self.scale * end for end in one.interval)
        return f"95 % CI {low:+.3g} to {high:+.3g}"

    def summary(self) -> str:
        """Which differences are significant, and which controls are missing, one sentence a reference."""
        sentences = [self._sentence(reference) for reference in self.references]
        if missing := self.missing_controls():
            needed = OWN if self.is_of_adapted else "a standard and a random control"
            end = "" if self.may_win() else f"; no winner is named without {needed}"
            sentences.append(f"Not compared with: {', '.join(missing)}{end}.")
        return " ".join(sentences)

    def _sentence(self, reference: str) -> str:
        tests = [test for test in self.tests if test.reference == reference]
        subject = "The discovered function" if reference == DISCOVERED else reference
        if not tests:
            return f"{subject} is compared with nothing else."
        if len(self.seeds) < 2:
            return f"{subject}: one seed shows no difference, whatever the numbers are."
        sides = {side: [t.other for t in tests if self.says(t) == side] for side in ("better", "worse")}
        # A function that sometimes fails is not better than one that trains, whatever the mean of the rest.
        failed = len(self.row(reference).failures)
        if not self.may_win(reference) or failed:
            sides["better"] = []
        found = [f"significantly {how} than {', '.join(names)}" for how, names in sides.items() if names]
        rest = [t.other for t in tests if self.says(t) == "no significant difference"]
        if found:
            said = f"{subject} is {' and '.join(found)}"
            said += f", and not significantly different from {', '.join(rest)}." if rest else "."
        elif any(self.says(t) == "better" for t in tests):
            said = f"{subject} is not called better."
        else:
            said = f"{subject} is not significantly different from any of them."
        return said + (f" It failed in {failed} of {len(self.seeds)} seeds." if failed else "")

    def notes(self) -> list[str]:
        """What the reader of the table must know, one sentence each."""
        n = len(self.seeds)
        lines = [
            "Differences are paired over seeds: equal initial weights, batches and augmentation. "
            f"p: paired t test, Holm's correction over all {len(self.tests)} tests, and sign-flip permutation test."
        ]
        if 1 < n <= 16 and self.tests:
            lines.append(f"With {n} seeds the permutation test cannot give less than {2 / 2**n:.2g}.")
        found = [t.paired.detectable for t in self.tests if t.paired.sd > 0]
        if found:
            unit = " points" if self.scale == 100 else ""
            least, most = self.scale * min(found), self.scale * max(found)
            span = f"{least:.2g}{unit}" if least == most else f"{least:.2g} to {most:.2g}{unit}"
            lines.append(
                f"At the spread seen, {n} seeds show a true difference of {span} with 80 % power (t test at 5 %, "
                "before the correction); smaller ones may have been missed."
            )
        if any(row.failures for row in self.rows):
            lines.append(
                "Failed retrainings (loss not finite) are left out of means and of paired differences, which flatters "
                "what failed."
            )
        if self.retrainings:
            most_jobs = max(r.jobs for r in self.retrainings)
            beside = f", with up to {most_jobs} retrainings at once" if most_jobs > 1 else ""
            devices = " and ".join(sorted({r.device for r in self.retrainings}))
            lines.append(f"Time: median training step without its data, on {devices}{beside}.")
        if self.is_of_adapted and not any(entry.kind == "random" for entry in self.entries):
            lines.append(
                "No random functions are among the controls: what is adapted belongs to no search space; with --space "
                "NAME some are drawn."
            )
        if self.rank_correlation is not None:
            lines.append(f"Rank correlation of the search's loss with the retrained metric: {self.rank_correlation}.")
        elif self.losses:
            lines.append(
                "No rank correlation of the search's loss with the retrained metric is told: it takes at least "
                f"{LEAST} functions of the space, not all alike (compare.random {LEAST - 1})."
            )
        if self.context.get("compile"):
            lines.append("Functions with a genotype ran as fused kernels; classes of torch.nn are torch's own.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number becomes null."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        tests = [
            {"reference": t.reference, "other": t.other, "p_holm": t.p_holm, "failures": t.failures}
            | {"difference" if k == "mean" else k: v for k, v in dataclasses.asdict(t.paired).items()}
            for t in self.tests
        ]
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "seeds": list(self.seeds),
            "budget": plain(dataclasses.asdict(self.budget)),
            "references": list(self.references),
            "verdict": self.verdict().splitlines(),
            "notes": self.notes(),
            "rows": plain(rows),
            "tests": plain(tests),
            "context": plain(self.context),
            "losses": plain(self.losses),
            "rank_correlation": plain(dataclasses.asdict(self.rank_correlation)) if self.rank_correlation else None,
            "retrainings": [plain(dataclasses.asdict(r)) for r in self.retrainings],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """From `to_dict`; statistics are computed anew. Raises KeyError or TypeError."""
        entries = (
            Entry(r["name"], r["formula"], r["kind"], math.nan if r["saved_bytes"] is None else r["saved_bytes"])
            for r in data["rows"]
        )
        return cls(
            metric=data["metric"],
            higher_is_better=data["higher_is_better"],
            seeds=tuple(data["seeds"]),
            budget=Budget(**data["budget"]),
            entries=tuple(entries),
            retrainings=tuple(retraining(r) for r in data["retrainings"]),
            references=tuple(data["references"]),
            context=data["context"],
            losses={k: math.inf if v is None else v for k, v in data.get("losses", {}).items()},
        )

    @classmethod
    def load(cls, directory: Path | str) -> Comparison:
        """From the comparison.json of a directory. Raises RunError."""
        path = Path(directory) / FILE
        try:
            found = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
            found.tests  # noqa: B018  of what lacks a retraining they cannot be computed
            return found
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} is not a comparison ({type(error).__name__}: {error})") from None

    def save(self, directory: Path | str) -> None:
        """Write comparison.json, and comparison.csv with one line for each retraining. Raises RunError."""
        write_text(Path(directory) / FILE, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        write_text(Path(directory) / "comparison.csv", self._csv())

    def _csv(self) -> str:
        logged = sorted({name for r in self.retrainings for name in r.metrics})
        costs = ("seconds", "step_seconds", "peak_memory", "added_parameters", "parameters", "device", "jobs")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["activation", "kind", "seed", "value", "failure", *logged, *costs, "formula"])
        known = {entry.name: entry for entry in self.entries}
        for r in self.retrainings:
            entry = known[r.activation]
            values = [r.metrics.get(name, "") for name in logged]
            cost = [getattr(r, name) for name in costs]
            row = [r.activation, entry.kind, r.seed, r.value(self.metric), r.failure, *values, *cost, entry.formula]
            writer.writerow(["" if value is None or value != value else value for value in row])
        return text.getvalue()

    def _row(self, entry: Entry) -> Row:
        by_seed = {r.seed: r for r in self.retrainings if r.activation == entry.name}
        results = [by_seed[seed] for seed in self.seeds]
        values = np.array([r.value(self.metric) for r in results])
        good = values[~np.isnan(values)]
        memory = [r.peak_memory for r in results if r.peak_memory is not None]
        return Row(
            **vars(entry),
            values=tuple(values.tolist()),
            failures=tuple((r.seed, r.failure) for r in results if r.failure),
            mean=float(good.mean()) if len(good) else math.nan,
            sd=float(good.std(ddof=1)) if len(good) > 1 else math.nan,
            seconds=_median([r.seconds for r in results]),
            step_seconds=_median([r.step_seconds for r in results]),
            peak_memory=float(max(memory)) if memory else math.nan,
            added_parameters=results[0].added_parameters,
            parameters=results[0].parameters,
        )


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan
