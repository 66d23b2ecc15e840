"""What the two scripts on adaptive slopes (Jagtap et al. 2020, arXiv 1909.12228) have in common: methods, and runs."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import actsearch._torchvision  # noqa: F401

import torch
from torch import Tensor, nn

from actsearch.errors import UnknownNameError
from actsearch.files import append_line
from actsearch.ops.slopes import AdaptiveSlope, adapt, slope_recovery
from actsearch.tasks import parameter_groups

SlopesBy = Literal["adam", "sgd"]

# Name -> scope of the slopes, and whether slope recovery is in the loss.
METHODS: dict[str, tuple[Any, bool]] = {
    "standard": (None, False),
    "GAAF": ("network", False),
    "L-LAAF": ("site", False),
    "N-LAAF": ("channel", False),
    "L-LAAF + S": ("site", True),
    "N-LAAF + S": ("channel", True),
}


@dataclass(frozen=True)
class Run:
    """What decides the result of a run.

    n: the fixed scale of the slopes. lr: Adam's learning rate of the weights, and of slopes without recovery.
    weight: of slope recovery in the loss. slopes_by, slope_lr: optimiser of the slopes, and its learning rate.
    limit: n·a is kept at or below it, if it is given.
    """

    method: str
    seed: int
    n: float
    lr: float
    iterations: int
    weight: float
    slopes_by: str
    slope_lr: float
    limit: float | None

    @property
    def name(self) -> str:
        """In a table."""
        if not METHODS[self.method][1]:
            return self.method
        limit = "" if self.limit is None else f", n·a ≤ {self.limit:g}"
        return f"{self.method}: weight {self.weight:g}, a by {self.slopes_by} at {self.slope_lr:g}{limit}"


AnyRun = TypeVar("AnyRun", bound=Run)
Record = dict[str, Any]
Recipe = tuple[float, str, float, float | None]  # weight, slopes_by, slope_lr, limit


def make_adaptive(model: nn.Module, run: Run, example: Tensor) -> nn.Module:
    """`model` with the slopes of the method; it computes what it did."""
    scope, _ = METHODS[run.method]
    if scope is not None:
        axis = -1 if scope == "channel" else None
        adapt(model, scope, run.n, channel_axis=axis, lr_factor=run.slope_lr / run.lr, example=example)
    return model


def minimise(model: nn.Module, run: Run, loss: Callable[[], Tensor], look: Callable[[int, Tensor], None]) -> None:
    """Train `model` by full batches; `look` is told the iteration and the loss on data before each step and at last."""
    optimizers = _optimizers(model, run)
    slopes = [m.a.detach() for m in model.modules() if isinstance(m, AdaptiveSlope)]  # the same memory
    for iteration in range(run.iterations + 1):
        value = loss()
        look(iteration, value)
        if iteration == run.iterations:
            return
        if run.weight:
            value = value + run.weight * slope_recovery(model)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        if run.limit is not None:
            for a in slopes:
                a.clamp_(max=run.limit / run.n)


def _optimizers(model: nn.Module, run: Run) -> list[torch.optim.Optimizer]:
    if run.slopes_by == "adam":
        return [torch.optim.Adam(parameter_groups(model, 0.0, lr=run.lr), lr=run.lr)]
    slopes = {id(m.a): m.a for m in model.modules() if isinstance(m, AdaptiveSlope)}
    others = [p for p in model.parameters() if id(p) not in slopes]
    return [torch.optim.Adam(others, lr=run.lr), torch.optim.SGD(slopes.values(), lr=run.slope_lr)]


def scales(model: nn.Module) -> list[float]:
    """n·a of each layer, the mean over its neurons."""
    return [round(m.n * m.a.mean().item(), 4) for m in model.modules() if isinstance(m, AdaptiveSlope)]


def plan(
    first: AnyRun, methods: Sequence[str], seeds: int, recipes: Sequence[tuple[float, str, float]]
) -> list[AnyRun]:
    """Runs like `first` of all methods; those with recovery by each recipe.

    Seeds are outermost, so that a study that is cut short still compares like with like.
    Raises UnknownNameError for a method that there is not.
    """
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
    return [
        replace(first, method=method, seed=seed, weight=weight, slopes_by=by, slope_lr=lr, limit=limit)
        for seed in range(seeds)
        for method in methods
        for weight, by, lr, limit in (recipes if METHODS[method][1] else [(0.0, "adam", first.lr, None)])
    ]


def carry_out(
    train: Callable[[AnyRun], Record],
    wanted: Sequence[AnyRun],
    jobs: int,
    path: Path,
    tell: Callable[[AnyRun, Record], None],
) -> dict[AnyRun, Record]:
    """What `train` gives for each run, from the lines of `path` if it is there, else by `jobs` processes at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = {run: line for run in wanted for line in lines if asdict(run).items() <= line.items()}
    for run, record in found.items():
        tell(run, record)
    for run, record in _coming(train, [run for run in wanted if run not in found], jobs):
        found[run] = {**asdict(run), **record}
        append_line(path, json.dumps(found[run]))
        tell(run, record)
    return {run: found[run] for run in wanted}


def _coming(train: Callable[[AnyRun], Record], runs: Sequence[AnyRun], jobs: int) -> Iterator[tuple[AnyRun, Record]]:
    if jobs == 1:
        yield from ((run, train(run)) for run in runs)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        coming = {pool.submit(train, run): run for run in runs}
        for future in as_completed(coming):
            yield coming[future], future.result()
