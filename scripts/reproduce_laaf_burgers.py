"""Do adaptive slopes make a network solve the Burgers equation sooner? (Jagtap et al. 2020, arXiv 1909.12228)

    python scripts/reproduce_laaf_burgers.py --jobs 2     # six methods, 3 seeds: under an hour on two cores
    python scripts/reproduce_laaf_burgers.py --jobs 2 --methods '[L-LAAF + S]' --weights '[1, 0.1]' --slopes_by '[sgd]'

The published settings: 6 layers of 20 tanh, inputs scaled to [-1, 1], Adam at 8e-4, 400 initial and boundary points and
10,000 more for the residual, all in one batch, n = 10, 2,000 iterations. All methods of a seed have the same points and
the same initial weights. Every run is added to OUT/runs.jsonl, and what is there is not run again; OUT/table.md is made
of them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import actsearch._torchvision  # noqa: F401

import numpy as np
import torch
from jsonargparse import auto_cli
from laaf import METHODS, Record, Run, SlopesBy, carry_out, make_adaptive, minimise, plan, scales
from torch import Tensor

from actsearch.data.pde.module import PointData
from actsearch.errors import ActsearchError
from actsearch.files import write_text
from actsearch.models import pinn_mlp
from actsearch.seeds import seed_all
from actsearch.tasks import PINN

PUBLISHED = dict(zip(METHODS, (1.9139e-1, 9.5171e-2, 8.8663e-2, 9.1294e-2, 7.6934e-2, 8.3784e-2), strict=True))
LR = 8e-4
EVERY = 100  # iterations between two measurements


@dataclass(frozen=True)
class BurgersRun(Run):
    """On so many points."""

    n_residual: int
    n_data: int


def train(run: BurgersRun) -> Record:
    """One network, trained; plain data."""
    torch.set_num_threads(1)
    data = PointData("burgers", n_residual=run.n_residual, n_data=run.n_data, seed=run.seed)
    seed_all(run.seed)
    model = make_adaptive(pinn_mlp(data.problem.domain), run, torch.zeros(1, 2))
    task = PINN(model, data.problem)
    batch = data.train_set.__getitems__(range(len(data.train_set))).stacked()
    curve: list[Record] = []

    def loss() -> Tensor:
        return task.weighted(*task.terms(batch)[1:])

    def look(iteration: int, value: Tensor) -> None:
        if iteration % EVERY == 0 or iteration == run.iterations:
            curve.append({"iteration": iteration, "l2": l2(), "loss": value.item(), "scales": scales(model)})

    @torch.no_grad()
    def l2() -> float:
        u: Tensor = model(data.test_set.coordinates)
        return float((u - data.test_set.solution).norm() / data.test_set.solution.norm())

    started = time.perf_counter()
    minimise(model, run, loss, look)
    return {**curve[-1], "seconds": time.perf_counter() - started, "curve": curve}


def table(records: dict[BurgersRun, Record]) -> str:
    """The relative L2 error of each method beside the published one."""
    lines = [
        "| method | relative L2 error, mean ± sd | each seed | published | n·a of the layers at the end, first seed |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for name in dict.fromkeys(run.name for run in records):
        rows = {run: record for run, record in records.items() if run.name == name}
        errors = np.array([record["l2"] for record in rows.values()])
        spread = f" ± {errors.std(ddof=1):.3f}" if len(errors) > 1 else ""
        each = " ".join(f"{error:.3f}" for error in errors)
        run, record = next(iter(rows.items()))
        slopes = " ".join(f"{scale:.2f}" for scale in record["scales"]) or "–"
        lines.append(f"| {name} | {errors.mean():.3f}{spread} | {each} | {PUBLISHED[run.method]:.4f} | {slopes} |")
    return "\n".join(lines)


def reproduce(
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: int = 3,
    weights: tuple[float, ...] = (1.0,),
    slopes_by: tuple[SlopesBy, ...] = ("adam",),
    slope_lrs: tuple[float, ...] = (LR,),
    limits: tuple[float | None, ...] = (None,),
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
        limits: at or below which n·a is kept; each is a row.
        iterations: of the optimiser.
        n_residual: points within the domain.
        n_data: initial and boundary points.
        n: the fixed scale of the slopes.
        jobs: runs at the same time, each a process with one thread.
        out: folder of runs.jsonl and table.md.
    """
    first = BurgersRun("standard", 0, n, LR, iterations, 0.0, "adam", LR, None, n_residual, n_data)
    wanted = plan(first, methods, seeds, list(product(weights, slopes_by, slope_lrs, limits)))
    records = carry_out(train, wanted, jobs, Path(out) / "runs.jsonl", _tell)
    text = table(records)
    write_text(Path(out) / "table.md", text + "\n")
    print(f"\n{text}\n\n{sum(record['seconds'] for record in records.values()):.0f} s of training, one thread each")


def _tell(run: BurgersRun, record: Record) -> None:
    print(f"{run.name}, seed {run.seed}: relative L2 {record['l2']:.4f}, {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        auto_cli(reproduce, as_positional=False)
    except ActsearchError as error:
        print(f"reproduce_laaf_burgers.py: {error}", file=sys.stderr)
        sys.exit(2)
