"""Do adaptive slopes make a network solve the Burgers equation sooner? (Jagtap et al. 2020, arXiv 1909.12228)

    python scripts/reproduce_laaf_burgers.py --jobs 2     # six methods, 3 seeds: half an hour on two cores
    python scripts/reproduce_laaf_burgers.py --jobs 2 --methods '[L-LAAF + S]' --weights '[1, 0.1]' --slopes_by '[sgd]'

The published settings: 6 layers of 20 tanh, inputs scaled to [-1, 1], Adam at 8e-4, 400 initial and boundary points and
10,000 more for the residual, all in one batch, n = 10, 2,000 iterations. All methods of a seed have the same points and
the same initial weights. Every run is added to OUT/runs.jsonl, and what is there is not run again; OUT/table.md is made
of them.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import actsearch._torchvision  # noqa: F401

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from actsearch.data.pde.module import PointData
from actsearch.errors import ActsearchError, UnknownNameError
from actsearch.files import append_line, write_text
from actsearch.models import pinn_mlp
from actsearch.ops.slopes import AdaptiveSlope, adapt, slope_recovery
from actsearch.seeds import seed_all
from actsearch.tasks import PINN, parameter_groups

# Name -> (scope of the slopes, whether slope recovery is in the loss, published relative L2 error).
METHODS: dict[str, tuple[Any, bool, float]] = {
    "standard": (None, False, 1.9139e-1),
    "GAAF": ("network", False, 9.5171e-2),
    "L-LAAF": ("site", False, 8.8663e-2),
    "N-LAAF": ("channel", False, 9.1294e-2),
    "L-LAAF + S": ("site", True, 7.6934e-2),
    "N-LAAF + S": ("channel", True, 8.3784e-2),
}
EVERY = 100  # iterations between two measurements


@dataclass(frozen=True)
class Run:
    """What decides the result of a run. `weight` is that of slope recovery; 0 for methods without it."""

    method: str
    seed: int
    weight: float = 0.0
    slopes_by: str = "adam"
    slope_lr: float = 8e-4
    n: float = 10.0
    iterations: int = 2000
    n_residual: int = 10_000
    n_data: int = 400
    lr: float = 8e-4

    @property
    def name(self) -> str:
        """In the table."""
        if not METHODS[self.method][1]:
            return self.method
        return f"{self.method}, weight {self.weight:g}, a by {self.slopes_by} at {self.slope_lr:g}"


def train(run: Run) -> dict[str, Any]:
    """One network, trained; plain data."""
    torch.set_num_threads(1)
    data = PointData("burgers", n_residual=run.n_residual, n_data=run.n_data, seed=run.seed)
    data.setup()
    seed_all(run.seed)
    model = pinn_mlp(data.problem.domain)
    scope, _, _ = METHODS[run.method]
    if scope is not None:
        axis = -1 if scope == "channel" else None
        adapt(model, scope, run.n, channel_axis=axis, lr_factor=run.slope_lr / run.lr, example=torch.zeros(1, 2))
    task = PINN(model, data.problem)
    batch = data.train_set.__getitems__(range(len(data.train_set))).stacked()
    optimizers = _optimizers(model, run)
    curve: list[dict[str, Any]] = []
    started = time.perf_counter()
    for iteration in range(run.iterations + 1):
        _, residual, error = task.terms(batch)
        loss = task.weighted(residual, error)
        if iteration % EVERY == 0 or iteration == run.iterations:
            curve.append(
                {"iteration": iteration, "l2": _l2(model, data), "loss": loss.item(), "scales": _scales(model)}
            )
        if iteration == run.iterations:
            break
        if run.weight:
            loss = loss + run.weight * slope_recovery(model)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    last = curve[-1]
    return {
        **{name: last[name] for name in ("l2", "loss", "scales")},
        "residual": residual.item(),
        "data": error.item(),
        "seconds": time.perf_counter() - started,
        "curve": curve,
    }


def _optimizers(model: nn.Module, run: Run) -> list[torch.optim.Optimizer]:
    if run.slopes_by == "adam":
        return [torch.optim.Adam(parameter_groups(model, 0.0, lr=run.lr), lr=run.lr)]
    slopes = list(dict.fromkeys(m.a for m in model.modules() if isinstance(m, AdaptiveSlope)))
    others = [p for p in model.parameters() if not any(p is a for a in slopes)]
    return [torch.optim.Adam(others, lr=run.lr), torch.optim.SGD(slopes, lr=run.slope_lr)]


@torch.no_grad()
def _l2(model: nn.Module, data: PointData) -> float:
    """Relative L2 error on the grid of the reference."""
    points = data.test_set
    u: Tensor = model(points.coordinates)
    return float((u - points.solution).norm() / points.solution.norm())


def _scales(model: nn.Module) -> list[float]:
    """n·a of each layer, the mean over its neurons."""
    return [round(m.n * m.a.mean().item(), 4) for m in model.modules() if isinstance(m, AdaptiveSlope)]


def table(records: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    """The relative L2 error of each method beside the published one."""
    lines = [
        "| method | relative L2 error, mean ± sd | each seed | published | n·a of the layers at the end, first seed |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for name in dict.fromkeys(run.name for run, _ in records):
        rows = [(run, record) for run, record in records if run.name == name]
        errors = np.array([record["l2"] for _, record in rows])
        spread = f" ± {errors.std(ddof=1):.3f}" if len(errors) > 1 else ""
        each = " ".join(f"{error:.3f}" for error in errors)
        scales = rows[0][1]["scales"]
        lines.append(
            f"| {name} | {errors.mean():.3f}{spread} | {each} | {METHODS[rows[0][0].method][2]:.4f} "
            f"| {' '.join(f'{scale:.2f}' for scale in scales) or '–'} |"
        )
    return "\n".join(lines)


def _runs(
    methods: Sequence[str], seeds: int, study: Sequence[tuple[float, str, float]], common: dict[str, Any]
) -> list[Run]:
    """Seeds outermost: a table that is cut short still compares like with like."""
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
    return [
        Run(method, seed, weight, by, lr, **common)
        for seed in range(seeds)
        for method in methods
        for weight, by, lr in (study if METHODS[method][1] else [(0.0, "adam", common["lr"])])
    ]


def _results(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if jobs == 1:
        yield from ((run, train(run)) for run in runs)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        coming = {pool.submit(train, run): run for run in runs}
        for future in as_completed(coming):
            yield coming[future], future.result()


def reproduce(
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: int = 3,
    weights: tuple[float, ...] = (1.0,),
    slopes_by: tuple[Literal["adam", "sgd"], ...] = ("adam",),
    slope_lrs: tuple[float, ...] = (8e-4,),
    iterations: int = 2000,
    n_residual: int = 10_000,
    n_data: int = 400,
    n: float = 10.0,
    jobs: int = 1,
    out: str = "runs/laaf_burgers",
) -> None:
    """Train with fixed and with adaptive slopes, and print the table.

    Args:
        methods: standard, GAAF, L-LAAF, N-LAAF, L-LAAF + S, N-LAAF + S.
        seeds: number of seeds.
        weights: of slope recovery in the loss; each is a row of the methods with S.
        slopes_by: the optimiser of the slopes of the methods with S; each is a row.
        slope_lrs: its learning rate; each is a row.
        iterations: of the optimiser.
        n_residual: points within the domain.
        n_data: initial and boundary points.
        n: the fixed scale of the slopes.
        jobs: runs at the same time, each a process with one thread.
        out: folder of runs.jsonl and table.md.
    """
    path = Path(out) / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    common = {"n": n, "iterations": iterations, "n_residual": n_residual, "n_data": n_data, "lr": Run.lr}
    wanted = _runs(methods, seeds, list(product(weights, slopes_by, slope_lrs)), common)
    found = {run: line for run in wanted for line in lines if asdict(run).items() <= line.items()}
    for run, record in found.items():
        _tell(run, record)
    for run, record in _results([run for run in wanted if run not in found], jobs):
        found[run] = {**asdict(run), **record}
        append_line(path, json.dumps(found[run]))
        _tell(run, record)
    text = table([(run, found[run]) for run in wanted])
    write_text(path.with_name("table.md"), text + "\n")
    print(f"\n{text}\n\n{sum(record['seconds'] for record in found.values()):.0f} s of training, one thread each")


def _tell(run: Run, record: dict[str, Any]) -> None:
    print(f"{run.name}, seed {run.seed}: relative L2 {record['l2']:.4f}, {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        auto_cli(reproduce, as_positional=False)
    except ActsearchError as error:
        print(f"reproduce_laaf_burgers.py: {error}", file=sys.stderr)
        sys.exit(2)
