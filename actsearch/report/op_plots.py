"""Small pictures of operations and functions for reference pages: grey on nothing, for light and dark pages alike."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from actsearch.ops.bases import BASES, basis
from actsearch.ops.spec import OpSpec
from actsearch.report.curve import DEFAULT_RANGE, Function, derivatives, on_cpu, with_jumps_broken
from actsearch.report.plots import BLUE, GREEN, GREY, ORANGE

SIZE = (3.6, 2.5)  # inches
POINTS = 401
HEIGHT = 4.0  # what goes beyond is cut off: cubes and exponentials would flatten everything else
PLANE = 3.0  # half the side of the square over which a binary operation is drawn


def draw_op(spec: OpSpec) -> Figure:
    """An operation, its parameters at their means.

    A unary one with its first and second derivative; one of a basis as the functions that its coefficients weigh; a
    binary one as contours over the plane.
    """
    figure, axes = _panel()
    if spec.arity == 2:
        _draw_plane(axes, spec)
    elif spec.id in BASES:
        _draw_functions(axes, spec)
    else:
        _draw_curves(axes, of_means(spec), legend=True)
    return figure


def draw_function(function: Function) -> Figure:
    """A function with its first derivative."""
    figure, axes = _panel()
    _draw_curves(axes, function, order=1)
    return figure


def of_means(spec: OpSpec) -> Function:
    """A unary operation as a function of its input alone, its parameters at their means."""
    means = _means(spec)

    def function(x: Tensor) -> Tensor:
        return spec.function(x, **means)

    return function


def _means(spec: OpSpec) -> dict[str, Tensor]:
    return {p.name: torch.tensor(p.mean, dtype=torch.float64) for p in spec.parameters}


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=100, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=8)
    return figure, axes


def _draw_curves(axes: Axes, function: Function, order: int = 2, legend: bool = False) -> None:
    x = np.linspace(*DEFAULT_RANGE, POINTS)
    function = on_cpu(function)
    curves = derivatives(function, x, order + 1)
    for k, (name, colour) in enumerate(zip(("f", "f′", "f″"), (BLUE, ORANGE, GREEN), strict=True)):
        if k > order:
            break
        line = with_jumps_broken(function, k, x, curves[k], curves[k + 1])
        axes.plot(*line, color=colour, linewidth=2 if k == 0 else 1.2, zorder=3 - k, label=name)
    axes.axhline(0, color=GREY, linewidth=0.6, alpha=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6, alpha=0.6)
    low, high = (float(end) for end in (np.nanmin(curves[0]), np.nanmax(curves[0])))
    low, high = max(min(low, -0.5), -HEIGHT), min(max(high, 1.0), HEIGHT)
    axes.set_xlim(*DEFAULT_RANGE)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    if legend:
        axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=GREY, handlelength=1.2)


def _draw_functions(axes: Axes, spec: OpSpec) -> None:
    x = np.linspace(*DEFAULT_RANGE, POINTS)
    (coefficients,) = spec.parameters
    functions = basis(spec.id, *coefficients.shape)
    y = functions(torch.from_numpy(x).tanh()).numpy()
    axes.plot(x, y[:, :4], linewidth=1.4)
    axes.plot(x, y[:, 4:], linewidth=0.7, color=GREY, alpha=0.5, zorder=0)
    axes.set_xlim(*DEFAULT_RANGE)


def _draw_plane(axes: Axes, spec: OpSpec) -> None:
    side = np.linspace(-PLANE, PLANE, 121)
    x2, x1 = torch.meshgrid(torch.from_numpy(side), torch.from_numpy(side), indexing="ij")
    z = spec.function(x1, x2, **_means(spec)).numpy()
    reach = min(float(np.abs(z).max()), HEIGHT)
    levels = np.linspace(0 if z.min() >= 0 else -reach, reach, 15)
    filled = axes.contourf(side, side, np.clip(z, -reach, reach), levels=levels, cmap="viridis")
    axes.set_xlabel("x₁", fontsize=8, color=GREY)
    axes.set_ylabel("x₂", fontsize=8, color=GREY)
    axes.set_aspect("equal")
    bar = axes.figure.colorbar(filled, ax=axes, ticks=levels[::7])
    bar.ax.tick_params(colors=GREY, labelsize=8)
    bar.outline.set_edgecolor(GREY)
