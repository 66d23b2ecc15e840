"""A picture of molecular dynamics: conservation of energy, its drift against the time step, temperature and g(r)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from actsearch.forcefield.dynamics import Drift, RadialDistribution, Trajectory
from actsearch.report.comparison_plots import DASHES, OTHERS, _plain_style, _short
from actsearch.report.plots import DARK, GREY, _figure

POINTS = 1_000
BONDS = 1.6  # Å


@dataclass(frozen=True, eq=False)
class Simulated:
    """Of one force field: its trajectories, one a time step, the drift of each, and g(r) if it is periodic."""

    trajectories: Sequence[Trajectory]
    drifts: Sequence[Drift]
    radial: RadialDistribution | None = None


def draw_dynamics(simulated: Mapping[str, Simulated]) -> Figure:
    """Four panels, or three without g(r); a colour for each force field, dashes for each time step or pair."""
    has_radial = any(one.radial is not None for one in simulated.values())
    figure = _figure(10.0 if has_radial else 13.0, 7.4 if has_radial else 3.8)
    panels = figure.subplots(2, 2).flatten() if has_radial else figure.subplots(1, 3)
    for axes in panels:
        _plain_style(axes, "both")
    _draw_series(panels[0], simulated, "total")
    _draw_drifts(panels[1], simulated)
    _draw_series(panels[2], simulated, "temperature")
    if has_radial:
        _draw_radial(panels[3], simulated)
    return figure


def _draw_series(axes: Axes, simulated: Mapping[str, Simulated], what: str) -> None:
    styles = _Styles(len(simulated))
    for which, one in enumerate(simulated.values()):
        for k, trajectory in enumerate(one.trajectories):
            every = max(1, len(trajectory.times) // POINTS)
            values = getattr(trajectory, what)
            values = 1000 * (values - values[0]) if what == "total" else values
            axes.plot(trajectory.times[::every], values[::every], linewidth=1.0, **styles(which, k))
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("total energy - start (meV/atom)" if what == "total" else "temperature (K)")
    if what == "total":
        steps = max((one.trajectories for one in simulated.values()), key=len)
        styles.legend(axes, [f"{trajectory.time_step:g} fs" for trajectory in steps])


def _draw_drifts(axes: Axes, simulated: Mapping[str, Simulated]) -> None:
    """Sizes on logarithmic axes; a filled mark is a rising energy, an open one a falling energy."""
    for colour, (name, one) in zip(_colours(len(simulated)), simulated.items(), strict=True):
        steps = np.array([t.time_step for t in one.trajectories])
        slopes = np.array([d.slope for d in one.drifts])
        errors = np.array([d.error for d in one.drifts])
        order = np.argsort(steps)
        label = _short(name) if len(simulated) > 1 else None
        axes.plot(steps[order], np.abs(slopes[order]), color=colour, linewidth=1.0, label=label)
        for step, slope, error in zip(steps, slopes, errors, strict=True):
            size = abs(slope)
            # An error as large as the drift would reach below 0.
            low = min(error, 0.9 * size)
            axes.errorbar(
                [step], [size], yerr=[[low], [error]], fmt="o", color=colour, capsize=3,
                markerfacecolor=colour if slope > 0 else "white",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({t.time_step for one in simulated.values() for t in one.trajectories})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time step (fs)")
    axes.set_ylabel("|drift| (meV/atom/ps)")
    axes.set_title("filled: energy rises; open: it falls", fontsize=9, color=DARK)
    if len(simulated) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_radial(axes: Axes, simulated: Mapping[str, Simulated]) -> None:
    styles = _Styles(len(simulated))
    radial = [(which, one.radial) for which, one in enumerate(simulated.values()) if one.radial is not None]
    pairs = list(dict.fromkeys(pair for _, one in radial for pair in one.pairs))
    for which, one in radial:
        for pair, g in one.pairs.items():
            axes.plot(one.r, g, linewidth=1.4, **styles(which, pairs.index(pair)))
    axes.axhline(1.0, color=GREY, linewidth=0.8, zorder=1)
    # The peak of a bond would hide the rest.
    beyond = [float(g[one.r > BONDS].max(initial=0.0)) for _, one in radial for g in one.pairs.values()]
    axes.set_ylim(0, 1.1 * max(2.0, *beyond))
    axes.set_xlabel("r (Å)")
    axes.set_ylabel("g(r)")
    styles.legend(axes, pairs)


class _Styles:
    """Of curves that have a force field and one thing more, a time step or a pair of elements.

    The second has colours where there is one force field; colours are for force fields and dashes for the second where
    there are several, and then the legend names the second only.
    """

    def __init__(self, n: int) -> None:
        self.alone = n == 1
        self.colours = _colours(n)

    def __call__(self, which: int, k: int) -> dict[str, Any]:
        if self.alone:
            return {"color": OTHERS[k % len(OTHERS)], "linestyle": "-"}
        return {"color": self.colours[which], "linestyle": DASHES[k % len(DASHES)]}

    def legend(self, axes: Axes, labels: Sequence[str]) -> None:
        handles = []
        for k, label in enumerate(labels):
            style = self(0, k) if self.alone else {**self(0, k), "color": DARK}
            handles.append(Line2D([], [], linewidth=1.4, label=label, **style))
        axes.legend(handles=handles, frameon=False, fontsize=8)


def _colours(n: int) -> list[str]:
    return [OTHERS[k % len(OTHERS)] for k in range(n)]
