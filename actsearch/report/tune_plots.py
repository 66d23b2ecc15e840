"""Pictures of a study: its trials one after the other, and how much each hyper-parameter matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from actsearch.report.comparison_plots import _plain_style
from actsearch.report.plots import BLUE, DARK, GREY, ORANGE, _empty, _figure
from actsearch.tune.results import Results, TrialRow

COLUMNS = 3
FEW = 5  # trials, of which all are shown


def draw_history(results: Results) -> Figure:
    """The metric of every trial in order, pruned ones hollow, and the best until then as a line."""
    complete = [row for row in results.rows if row.state == "complete"]
    pruned = [row for row in results.rows if row.state == "pruned" and math.isfinite(row.value)]
    if not complete:
        return _empty("no trial is complete")
    figure = _figure(7.2, 4.0)
    axes = figure.add_subplot()
    _plain_style(axes, "both")
    numbers, best = zip(*results.best_so_far(), strict=True)
    last = max(row.number for row in results.rows)
    axes.step([*numbers, last], [*best, best[-1]], where="post", color=ORANGE, linewidth=1.8, label="best so far")
    _scatter(axes, complete, label="complete", color=BLUE)
    if pruned:
        _scatter(axes, pruned, label="pruned, at its last epoch", facecolor="white", edgecolor=GREY)
    _fit_height(axes, results, [row.value for row in complete], [row.value for row in pruned])
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{results.plan.metric}, {_better(results)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_importance(results: Results) -> Figure:
    """Above, the importance of each hyper-parameter; below, the metric against each of them."""
    keys = list(results.plan.parameters)
    complete = [row for row in results.rows if row.state == "complete"]
    if not complete:
        return _empty("no trial is complete")
    n_rows = -(-len(keys) // COLUMNS)
    bars = 0.6 + 0.3 * len(keys) if results.importance else 0.0
    figure = _figure(10.0, bars + 2.8 * n_rows)
    grid = figure.add_gridspec(n_rows + bool(bars), COLUMNS, height_ratios=[bars] * bool(bars) + [2.8] * n_rows)
    if bars:
        _draw_bars(figure.add_subplot(grid[0, :]), results)
    panels = [figure.add_subplot(grid[k // COLUMNS + bool(bars), k % COLUMNS]) for k in range(len(keys))]
    for axes, key in zip(panels, keys, strict=True):
        _draw_slice(axes, results, key, complete)
    return figure


def _draw_bars(axes: Axes, results: Results) -> None:
    _plain_style(axes, "x")
    keys = list(results.importance)
    axes.barh(range(len(keys)), [results.importance[key] for key in keys], color=BLUE, height=0.6)
    axes.set_yticks(range(len(keys)), keys)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance (PED-ANOVA)")


def _draw_slice(axes: Axes, results: Results, key: str, rows: list[TrialRow]) -> None:
    _plain_style(axes, "both")
    one = results.plan.parameters[key]
    rows = [row for row in rows if key in row.values]
    values = [row.value for row in rows]
    axes.set_xlabel(key, fontsize=9)
    axes.set_ylabel(results.plan.metric, fontsize=9, color=DARK)
    axes.tick_params(labelsize=8, which="both")
    if not rows:
        axes.set_title("of no complete trial", loc="right", fontsize=8, color=DARK, pad=2)
        return
    if one.kind == "choice":
        places = [one.choices.index(row.values[key]) for row in rows]
        # Beside one another in the order of the trials, so that equal values do not hide one another.
        beside = np.linspace(-0.15, 0.15, len(rows)) if len(rows) > 1 else np.zeros(1)
        axes.scatter(np.array(places) + beside, values, s=20, color=BLUE, edgecolor="white", linewidth=0.5, zorder=3)
        axes.set_xticks(range(len(one.choices)), [str(choice) for choice in one.choices])
        axes.set_xlim(-0.5, len(one.choices) - 0.5)
    else:
        axes.scatter(
            [row.values[key] for row in rows], values, s=20, color=BLUE, edgecolor="white", linewidth=0.5, zorder=3
        )
        if one.log:
            axes.set_xscale("log")
        elif one.kind == "int":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if results.best is not None:
        axes.axhline(results.best.value, color=ORANGE, linewidth=1)
    _fit_height(axes, results, values)


def _scatter(axes: Axes, rows: list[TrialRow], **style: object) -> None:
    own = {"edgecolor": "white", **style}
    axes.scatter([r.number for r in rows], [r.value for r in rows], s=26, linewidth=0.8, zorder=3, **own)  # type: ignore[arg-type]


def _fit_height(axes: Axes, results: Results, complete: list[float], others: Sequence[float] = ()) -> None:
    """Trials that diverged, or were ended early, must not press the good ones into a line; say how many are beyond."""
    sign = results.plan.sign
    ordered = np.sort(sign * np.array([*complete, *others]))
    best, middle = ordered[0], float(np.quantile(sign * np.array(complete), 0.75))
    limit = middle + 1.5 * max(middle - best, 0.02 * abs(middle), 1e-12)
    beyond = int((ordered > limit).sum())
    if len(ordered) < FEW or not beyond or ordered[-1] - best < 3 * (limit - best):
        return
    axes.set_ylim(*sorted((sign * (best - 0.08 * (limit - best)), sign * limit)))
    axes.set_title(f"{beyond} worse, not shown", loc="right", fontsize=8, color=DARK, pad=2)


def _better(results: Results) -> str:
    return "lower is better" if results.plan.direction == "minimize" else "higher is better"
