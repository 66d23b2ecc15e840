"""Strategies compared: what each search of each seed found, and the retrainings of that."""

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
from typing import Any

import numpy as np

from actsearch.compare.comparison import Comparison, Entry
from actsearch.compare.contestants import DISCOVERED
from actsearch.compare.ranks import RankCorrelation, rank_correlation
from actsearch.compare.records import plain
from actsearch.files import write_text

GRADIENT = "gradient"
FILE = "strategies.json"


@dataclass(frozen=True)
class Searched:
    """One search.

    Attributes:
        strategy, seed: which.
        formula: found.
        loss: on α's part, by which it was chosen; infinite if it was not finite.
        losses: on α's part, all measured in one way, by contestant; of the found function as `discovered`.
        steps, budget: training steps taken, and the most that the gradient search may take.
        seconds: NaN of a search that was interrupted, whose first part nobody timed.
    """

    strategy: str
    seed: int
    formula: str
    loss: float
    losses: Mapping[str, float]
    steps: int
    budget: int
    seconds: float


@dataclass(frozen=True)
class StrategyComparison:
    """Strategies over seeds.

    Attributes:
        searches: one for each strategy and seed.
        comparison: of the retrainings of what they found, under `row_name(strategy)`, and of the controls. The first
            strategy is the one that all others are compared with.
    """

    searches: tuple[Searched, ...]
    comparison: Comparison

    @classmethod
    def of(cls, searches: Sequence[Searched], by_seed: Sequence[Comparison]) -> StrategyComparison:
        """From the searches and, for each seed, the comparison of what they found with controls.

        The function behind a name differs from seed to seed; what is compared is the way to get it.
        """
        first = by_seed[0]
        names = {row_name(search.strategy) for search in searches}
        again = {"random": "drawn anew for each seed", DISCOVERED: "found anew for each seed"}
        entries = []
        for entry in first.entries:
            kind = DISCOVERED if entry.name in names else entry.kind
            known = [one.formula for c in by_seed for one in c.entries if one.name == entry.name]
            formula = entry.formula if len(set(known)) == 1 else again.get(kind, entry.formula)
            entries.append(Entry(entry.name, formula, kind, entry.saved_bytes))
        comparison = dataclasses.replace(
            first,
            seeds=tuple(seed for c in by_seed for seed in c.seeds),
            entries=tuple(entries),
            retrainings=tuple(r for c in by_seed for r in c.retrainings),
            references=(row_name(searches[0].strategy),),
        )
        return cls(tuple(searches), comparison)

    @property
    def strategies(self) -> tuple[str, ...]:
        """In order."""
        return tuple(dict.fromkeys(search.strategy for search in self.searches))

    def of_strategy(self, strategy: str) -> list[Searched]:
        """Its searches."""
        return [search for search in self.searches if search.strategy == strategy]

    @cached_property
    def correlations(self) -> dict[str, RankCorrelation | None]:
        """Between the search's loss and the retrained metric, over all functions of all seeds that have both.

        By the way in which the loss was measured: `shared weights` of gradient searches, and `trials`.
        """
        values = {(r.activation, r.seed): r.value(self.comparison.metric) for r in self.comparison.retrainings}
        pooled: dict[str, dict[tuple[int, str], tuple[float, float]]] = {"shared weights": {}, "trials": {}}
        for search in self.searches:
            kind = "shared weights" if search.strategy == GRADIENT else "trials"
            for name, loss in search.losses.items():
                found = name == DISCOVERED
                value = values.get((row_name(search.strategy) if found else name, search.seed), math.nan)
                # What several searches of a seed found is one function, trained once in effect.
                pooled[kind][search.seed, search.formula if found else name] = loss, value
        return {
            kind: rank_correlation(
                [loss for loss, _ in both.values()],
                [value for _, value in both.values()],
                self.comparison.higher_is_better,
            )
            for kind, both in pooled.items()
            if both
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number becomes null."""
        return {
            "strategies": list(self.strategies),
            "seeds": list(self.comparison.seeds),
            "metric": self.comparison.metric,
            "rank_correlations": {k: plain(dataclasses.asdict(c)) if c else None for k, c in self.correlations.items()},
            "searches": [plain(dataclasses.asdict(search)) for search in self.searches],
            "rows": plain([dataclasses.asdict(self.comparison.row(row_name(s))) for s in self.strategies]),
            "tests": plain([dataclasses.asdict(test) for test in self.comparison.tests]),
            "verdict": self.comparison.verdict().splitlines(),
        }

    def save(self, directory: Path | str) -> None:
        """Write strategies.json, strategies.csv with a line for each search, and the comparison's. Raises RunError."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["strategy", "seed", self.comparison.metric, "loss", "steps", "budget", "seconds", "formula"])
        values = {(r.activation, r.seed): r.value(self.comparison.metric) for r in self.comparison.retrainings}
        for s in self.searches:
            numbers = [values[row_name(s.strategy), s.seed], s.loss, s.steps, s.budget, s.seconds]
            shown = ["" if isinstance(n, float) and not math.isfinite(n) else n for n in numbers]
            writer.writerow([s.strategy, s.seed, *shown, s.formula])
        write_text(Path(directory) / "strategies.csv", text.getvalue())
        write_text(Path(directory) / FILE, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        self.comparison.save(directory)


def row_name(strategy: str) -> str:
    """Of what a strategy found, among contestants; `random 1` is a function drawn at random."""
    return f"{strategy} search"


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Of the finite ones, sd that of the sample; NaN where there are too few."""
    finite = np.array([v for v in values if math.isfinite(v)])
    mean = float(finite.mean()) if len(finite) else math.nan
    return mean, float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
