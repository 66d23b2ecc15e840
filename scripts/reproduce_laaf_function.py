"""Do adaptive slopes fit a discontinuous function sooner? (Jagtap et al. 2020, arXiv 1909.12228)

    python scripts/reproduce_laaf_function.py --jobs 2     # six methods, 3 seeds: minutes on two cores

    u(x) = 0.2 sin 6x for x ≤ 0, 1 + 0.1 x cos 18x for x > 0, on [-3, 3]

The published settings: 300 points, here evenly spaced, 4 layers of 50 tanh, Adam at 2e-4, n = 10, snapshots after
2,000, 8,000 and 15,000 iterations of the whole set. All methods of a seed have the same initial weights. Every run is
added to OUT/runs.jsonl, and what is there is not run again; OUT/table.md and OUT/figure.png are made of them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import actsearch._torchvision  # noqa: F401

import numpy as np
import torch
from jsonargparse import auto_cli
from laaf import METHODS, Record, Run, SlopesBy, carry_out, make_adaptive, minimise, plan, scales
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from actsearch.errors import ActsearchError
from actsearch.files import write_text
from actsearch.models import pinn_mlp
from actsearch.seeds import seed_all

LR = 2e-4
EVERY = 50  # iterations between two points of a curve
GRID = torch.linspace(-3, 3, 1201)[:, None]  # on which the error is measured
COLOURS = dict(zip(METHODS, ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"), strict=True))


@dataclass(frozen=True)
class FunctionRun(Run):
    """On so many points, with inputs scaled to [-1, 1] or as they are."""

    points: int
    scaled: bool


def target(x: Tensor) -> Tensor:
    """u of the paper."""
    return torch.where(x <= 0, 0.2 * torch.sin(6 * x), 1 + 0.1 * x * torch.cos(18 * x))


def train(run: FunctionRun, snapshots: tuple[int, ...]) -> Record:
    """One network, trained; plain data."""
    torch.set_num_threads(1)
    seed_all(run.seed)
    side = 3.0 if run.scaled else 1.0
    model = make_adaptive(pinn_mlp(((-side, side),), layers=4, width=50), run, torch.zeros(1, 1))
    x = torch.linspace(-3, 3, run.points)[:, None]
    u = target(x)
    losses: list[float] = []
    found: dict[str, Record] = {}

    def loss() -> Tensor:
        return (model(x) - u).square().mean()

    def look(iteration: int, value: Tensor) -> None:
        if iteration % EVERY == 0:
            losses.append(float(f"{value.item():.4g}"))
        if iteration in snapshots:
            with torch.no_grad():
                fit = model(GRID)
            l2 = float((fit - target(GRID)).norm() / target(GRID).norm())
            shown = [round(v, 4) for v in fit[:, 0].tolist()] if run.seed == 0 else []
            found[str(iteration)] = {"mse": value.item(), "l2": l2, "scales": scales(model), "fit": shown}

    started = time.perf_counter()
    minimise(model, run, loss, look)
    return {"snapshots": found, "losses": losses, "seconds": time.perf_counter() - started}


def table(records: dict[FunctionRun, Record], snapshots: tuple[int, ...]) -> str:
    """Relative L2 error on a fine grid and mean square error on the training points; a row a method."""
    columns = " | ".join(f"rel. L2 at {k:,} | MSE at {k:,}" for k in snapshots)
    lines = [f"| method | {columns} | n·a of the layers at the end, first seed |"]
    lines.append("| --- |" + " ---: | ---: |" * len(snapshots) + " --- |")
    for name in dict.fromkeys(run.name for run in records):
        rows = [record for run, record in records.items() if run.name == name]
        cells = []
        for k in snapshots:
            l2, mse = (np.array([r["snapshots"][str(k)][what] for r in rows]) for what in ("l2", "mse"))
            spread = f" ± {l2.std(ddof=1):.3f}" if len(l2) > 1 else ""
            cells.append(f"{l2.mean():.3f}{spread} | {mse.mean():.2g}")
        slopes = " ".join(f"{scale:.2f}" for scale in rows[0]["snapshots"][str(snapshots[-1])]["scales"]) or "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {slopes} |")
    return "\n".join(lines)


def draw(records: dict[FunctionRun, Record], snapshots: tuple[int, ...], path: Path) -> None:
    """The training loss over iterations, the geometric mean over seeds, and the first seed's fits at each snapshot."""
    figure = Figure(figsize=(5.2 * (1 + len(snapshots)), 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = figure.subplots(1, 1 + len(snapshots))
    names = dict.fromkeys(run.name for run in records)
    for name in names:
        rows = {run: record for run, record in records.items() if run.name == name}
        one = next(iter(rows))
        ink = {"color": COLOURS[one.method], "linestyle": "-" if one.limit is None else "--"}
        losses = np.exp(np.log([record["losses"] for record in rows.values()]).mean(0))
        first.plot(EVERY * np.arange(len(losses)), losses, linewidth=1.3, label=name, **ink)
        record = next(record for run, record in rows.items() if run.seed == 0)
        for axes, k in zip(others, snapshots, strict=True):
            axes.plot(GRID, record["snapshots"][str(k)]["fit"], linewidth=1.1, **ink)
    first.set_yscale("log")
    _style(first, "training loss", "iteration", "mean square error, geometric mean of the seeds")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    for axes, k in zip(others, snapshots, strict=True):
        axes.plot(GRID, target(GRID), color="#999999", linewidth=3, alpha=0.5, zorder=0)
        axes.set_ylim(-0.6, 1.6)
        _style(axes, f"fits after {k:,} iterations, first seed", "x", "u (grey: exact)")
    figure.savefig(path)


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.8)


def reproduce(
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: int = 3,
    weights: tuple[float, ...] = (1.0,),
    slopes_by: tuple[SlopesBy, ...] = ("adam",),
    slope_lrs: tuple[float, ...] = (LR,),
    limits: tuple[float | None, ...] = (None,),
    snapshots: tuple[int, ...] = (2000, 8000, 15_000),
    points: int = 300,
    scaled: bool = False,
    n: float = 10.0,
    jobs: int = 1,
    out: str = "runs/laaf_function",
) -> None:
    """Fit with fixed and with adaptive slopes; print the table and draw the figure.

    Args:
        methods: standard, GAAF, L-LAAF, N-LAAF, L-LAAF + S, N-LAAF + S.
        seeds: number of seeds.
        weights: of slope recovery in the loss; each is a row of the methods with S.
        slopes_by: the optimiser of the slopes of the methods with S; each is a row.
        slope_lrs: its learning rate; each is a row.
        limits: at or below which n·a is kept; each is a row.
        snapshots: iterations after which the fit is measured; the last ends the run.
        points: of the training set.
        scaled: whether inputs are scaled to [-1, 1] before the first layer.
        n: the fixed scale of the slopes.
        jobs: runs at the same time, each a process with one thread.
        out: folder of runs.jsonl, table.md and figure.png.
    """
    snapshots = tuple(sorted(snapshots))
    first = FunctionRun("standard", 0, n, LR, snapshots[-1], 0.0, "adam", LR, None, points, scaled)
    wanted = plan(first, methods, seeds, list(product(weights, slopes_by, slope_lrs, limits)))
    records = carry_out(partial(train, snapshots=snapshots), wanted, jobs, Path(out) / "runs.jsonl", _tell)
    text = table(records, snapshots)
    write_text(Path(out) / "table.md", text + "\n")
    draw(records, snapshots, Path(out) / "figure.png")
    print(f"\n{text}\n\n{sum(record['seconds'] for record in records.values()):.0f} s of training, one thread each")


def _tell(run: FunctionRun, record: Record) -> None:
    errors = " ".join(f"{snapshot['l2']:.4f}" for snapshot in record["snapshots"].values())
    print(f"{run.name}, seed {run.seed}: relative L2 {errors}, {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        auto_cli(reproduce, as_positional=False)
    except ActsearchError as error:
        print(f"reproduce_laaf_function.py: {error}", file=sys.stderr)
        sys.exit(2)
