"""Studies whose trials train nothing, for the tests of faults: what a trial computes has no part in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest

from actsearch import tuning
from actsearch.errors import ActsearchError
from actsearch.tune import Plan, Results
from actsearch.tune import storage as storage_module
from actsearch.tune.queue import Claim
from actsearch.tuning import Work, tune

TRIALS = 4
PLAN: dict[str, Any] = {
    "verb": "search",
    "config": "default",
    "fixed": {"space": "tiny", "search.epochs": 4},
    "parameters": {
        "search.alpha_lr": {"float": [1e-3, 0.1], "log": True},
        "search.warm_epochs": {"int": [0, 3]},
    },
    "objective": {"metric": "loss/val"},
    "sampler": "random",
    "pruner": "none",
    "trials": TRIALS,
    "heartbeat": 0.5,
}
Objective = Callable[[Work, Claim], tuple[float, dict[str, Any]]]
KNOWN: dict[str, Any] = {}  # configurations
STORAGES = ["study.db", "study.log"]


def loss(values: dict[str, Any]) -> float:
    return abs(float(values["search.alpha_lr"]) - 0.01) + 0.1 * int(values["search.warm_epochs"])


def quick(work: Work, claim: Claim, between: Callable[[], object] = bool) -> tuple[float, dict[str, Any]]:
    """Stands for a search: what a trial computes has no part in these faults."""
    claim.report(loss(claim.values) + 1, 1)
    between()
    claim.report(loss(claim.values), 2)
    return loss(claim.values), {"formula": "x*tanh(x)"}


def at(number: int, action: Callable[[], object]) -> Objective:
    """The same, but the first time something happens in the middle of that trial."""
    done: list[int] = []

    def objective(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
        first = claim.number == number and not done
        done.extend([number] * first)
        return quick(work, claim, action if first else bool)

    return objective


def remembered(self: Work, values: Mapping[str, Any], read: Any = Work.config) -> Any:
    key = repr((self.plan.config, self.plan.fixed, self.overrides, values))
    if key not in KNOWN:
        KNOWN[key] = read(self, values)
    return copy.deepcopy(KNOWN[key])


@contextmanager
def no_training(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """In `folder` trials take milliseconds, pictures are not drawn, and there is no patience with a storage.

    What was read of a configuration is remembered.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(storage_module, "OUTAGE", 1)
        patch.setattr(tuning, "_objective", quick)
        patch.setattr(tuning, "save", lambda figure, path: path)
        patch.setattr(tuning, "draw_history", lambda results: None)
        patch.setattr(tuning, "draw_importance", lambda results: None)
        patch.setattr(Work, "config", remembered)
        yield patch


def work(storage: str | None = None, **changes: Any) -> Work:
    return Work(Plan.from_dict({**PLAN, **changes}), "study", storage=storage)


def run(storage: str | None = None, **changes: Any) -> Results:
    return tune(work(storage, **changes), 1)


def outcome(results: Results) -> dict[int, tuple[Any, float]]:
    """What filled each slot."""
    assert len(results.finished) == len({row.slot for row in results.finished})
    return {row.slot: (row.values, row.value) for row in results.finished}


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert isinstance(caught.value, ActsearchError)
    assert "\n" not in text
    assert len(text) < 900
    return text
