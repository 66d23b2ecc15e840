"""Pictures of a comparison: learning curves, and the test metric of every seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from actsearch.compare import ADAPTED, DISCOVERED, REFERENCES, Comparison, Row
from actsearch.report.plots import BLUE, DARK, GREEN, GREY, ORANGE, _figure

Array = np.ndarray

# Okabe and Ito's colours but yellow, which is too light on white; those of the discovered ones first.
FOUND = (ORANGE, "#CC79A7", "#E69F00")
OTHERS = (BLUE, GREEN, "#56B4E9", "#000000", "#CC79A7", "#E69F00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
LONGEST_NAME = 28
OUTLYING = 10  # times the median: then the axis is logarithmic
_WORDS = {
    "acc": "accuracy (%)",
    "loss": "loss",
    "l2": "relative L2 error",
    "energy_rmse": "energy RMSE (meV/atom)",
    "energy_mae": "energy MAE (meV/atom)",
    "force_rmse": "force RMSE (meV/Å)",
    "force_mae": "force MAE (meV/Å)",
    "stress_rmse": "stress RMSE (meV/Å³)",
}


def metric_label(comparison: Comparison) -> str:
    """The metric as a table calls it, with unit and direction: `test accuracy (%)`, `test loss, lower is better`."""
    return label_of(comparison.metric) + ("" if comparison.higher_is_better else ", lower is better")


def label_of(name: str) -> str:
    """A metric with its unit."""
    part, _, rest = name.partition("_")
    if rest in _WORDS:
        return f"{'training' if part == 'train' else part} {_WORDS[rest]}"
    return f"{name} (%)" if name.endswith("acc") else name


def draw_box_plots(comparison: Comparison) -> Figure:
    """The test metric: a box (quartiles, median, extremes), the mean, and a point for every seed; failures in words."""
    rows = comparison.rows
    figure = _figure(7.2, 1.1 + 0.42 * len(rows))
    axes = figure.add_subplot()
    _plain_style(axes, "x")
    styles = _styles(rows)
    for place, row in enumerate(rows):
        values = comparison.scale * np.array(row.values)
        good = values[~np.isnan(values)]
        colour = styles[row.name][0]
        if len(good):
            ink = {"color": colour, "linewidth": 1.3}
            axes.boxplot(
                good,
                positions=[place],
                orientation="horizontal",
                widths=0.55,
                whis=(0, 100),
                showfliers=False,
                manage_ticks=False,
                boxprops=ink,
                whiskerprops=ink,
                capprops=ink,
                medianprops={"color": colour, "linewidth": 2.2},
            )
            # Beside one another by seed, in the same order everywhere, so that equal values do not hide one another.
            beside = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
            axes.scatter(values, place + beside, s=22, color=colour, edgecolor="white", linewidth=0.6, zorder=3)
            axes.scatter([good.mean()], [place], s=48, marker="D", facecolor="white", edgecolor=colour, zorder=4)
        else:
            axes.text(0.5, place, "every seed failed", transform=axes.get_yaxis_transform(), va="center", ha="center")
    labels = [_short(row.name) + (f"\n({len(row.failures)} failed)" if row.failures else "") for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.kind in REFERENCES else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    # One that did not learn would press all others into a line.
    every = np.concatenate([comparison.scale * np.array(row.values) for row in rows])
    every = every[~np.isnan(every)]
    if len(every) and every.min() > 0 and every.max() > OUTLYING * np.median(every):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"{metric_label(comparison)}\na point is a seed, the diamond their mean")
    return figure


def draw_learning_curves(comparison: Comparison) -> Figure:
    """What was recorded of every epoch, a panel each: the mean over seeds, and thin lines for the seeds."""
    names = curves_in_order(comparison)
    if not names:
        figure = _figure(5, 1.5)
        figure.text(0.5, 0.5, "no learning curve was recorded", ha="center", va="center", color=DARK)
        return figure
    n_columns = min(len(names), 2)
    n_rows = -(-len(names) // n_columns)
    legend = 0.25 * -(-len(comparison.rows) // 4) + 0.2
    figure = _figure(4.6 * n_columns, 3.1 * n_rows + legend)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    styles = _styles(comparison.rows)
    for axes, name in zip(panels, names, strict=False):
        _draw_curves(axes, comparison, name, styles)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure


def _draw_curves(axes: Axes, comparison: Comparison, name: str, styles: dict[str, tuple[str, Any, float]]) -> None:
    _plain_style(axes, "both")
    scale = 100 if name.endswith("acc") else 1
    finite: list[float] = []
    for row in comparison.rows:
        colour, dashes, width = styles[row.name]
        curves = curve_table(comparison, row.name, name) * scale
        finite += curves[np.isfinite(curves)].tolist()
        epochs = np.arange(1, curves.shape[1] + 1)
        marker = "o" if curves.shape[1] == 1 else ""
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 5}
        for curve in curves:
            axes.plot(epochs, curve, alpha=0.25, linewidth=0.7, **style)
        known = np.isfinite(curves).sum(axis=0)
        # Only of epochs that every seed reached: a mean of survivors would jump where one fails.
        whole = np.where(known == len(curves), np.nansum(curves, axis=0) / np.maximum(known, 1), np.nan)
        axes.plot(epochs, whole, linewidth=width, label=_short(row.name), zorder=3, **style)
    if finite and min(finite) > 0 and max(finite) > 30 * min(finite) and scale == 1:
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label_of(name))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def curves_in_order(comparison: Comparison) -> list[str]:
    """Names of what was recorded of every epoch, of training first."""
    return sorted({name for r in comparison.retrainings for name in r.curve}, key=_order)


def curve_table(comparison: Comparison, activation: str, name: str) -> Array:
    """A learning curve of every retraining of an activation: (retrainings, epochs), NaN where nothing is known."""
    curves = [r.curve.get(name, []) for r in comparison.retrainings if r.activation == activation]
    filled = np.full((len(curves), comparison.epochs), np.nan)
    for k, curve in enumerate(curves):
        filled[k, : len(curve)] = [np.nan if value is None else value for value in curve[: comparison.epochs]]
    return filled


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, Any, float]]:
    """Colour, dashes and width of the line of every row: discovered bold, random functions grey."""
    styles: dict[str, tuple[str, Any, float]] = {}
    count = {"found": 0, "random": 0, "other": 0}
    for row in rows:
        group = {DISCOVERED: "found", ADAPTED: "found", "random": "random"}.get(row.kind, "other")
        k = count[group]
        count[group] += 1
        if group == "random":
            styles[row.name] = (GREY, DASHES[(k + 1) % len(DASHES)], 1.5)
        else:
            colours = FOUND if group == "found" else OTHERS
            dashes = DASHES[k // len(colours) % len(DASHES)]
            styles[row.name] = (colours[k % len(colours)], dashes, 2.8 if group == "found" else 1.6)
    return styles


def _order(name: str) -> tuple[bool, bool, str]:
    return not name.startswith("train"), "loss" not in name, name


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _plain_style(axes: Axes, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
