"""Figures: an activation with its derivatives, probabilities over time, and the graph of a cell.

Every function returns a matplotlib Figure that belongs to the caller alone; pyplot and its global state are not used.
Colours are of the Okabe-Ito set and viridis, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as MplPath
from matplotlib.ticker import MaxNLocator
from rich.markup import escape
from rich.tree import Tree
from torch import Tensor

from actsearch.activation import Activation
from actsearch.errors import GenotypeError, SettingsError, unknown_name
from actsearch.files import write_atomically
from actsearch.ops.graph import INPUT
from actsearch.report.curve import (
    Array,
    Function,
    central_range,
    derivatives,
    finite_values,
    on_cpu,
    shown_range,
    with_jumps_broken,
)
from actsearch.space import SearchSpace

Probabilities = Mapping[str, Mapping[str, float]]
Edge = tuple[str, str, int]

BLUE, ORANGE, GREEN, GREY, DARK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#333333"
FORMATS = ("png", "svg", "pdf")
POINTS = 2_001
OUTPUT = ""  # the box behind the last slot; no slot can have this name
HALF_WIDTH = 0.36  # of a box
REFERENCES: Mapping[str, tuple[Function, Any]] = {
    "ReLU": (F.relu, (0, (6, 2))),
    "GELU": (F.gelu, (0, (3, 2))),
    "SiLU": (F.silu, (0, (1, 1.5))),
}


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure as PNG, SVG or PDF, by the ending of `path`, whole or not at all.

    Raises SettingsError for another ending and RunError if it cannot be written.
    """
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise SettingsError(f"{unknown_name('figure format', ending, FORMATS)} (in {str(path)!r})")
    # The same figure gives the same bytes: no date, no random ids.
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[ending]

    def write(temporary: Path) -> None:
        with matplotlib.rc_context({"svg.hashsalt": "actsearch", "svg.fonttype": "path"}):
            figure.savefig(temporary, format=ending, metadata=metadata)

    return write_atomically(path, write)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image, uint8 of shape (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


# -- an activation -------------------------------------------------------------------------------------------------


def draw_activation(activation: Activation | Function, inputs: Tensor | None = None, title: str = "") -> Figure:
    """f, f' and f'' in three panels with a common axis, the histogram of the inputs behind them.

    Where sites have values of their own, the function at each is a thin line; the thick one is that of their means.

    Args:
        activation: an Activation, whose formula is put on top, or any element-wise function.
        inputs: recorded pre-activations of any shape; the axis shows their central 99.8 %, or [-5, 5] without them.
        title: on top of the formula.
    """
    function = on_cpu(activation)
    low, high = central_range(inputs)
    recorded = finite_values(inputs)
    x = np.linspace(low, high, POINTS)
    curves = derivatives(function, x, 3)
    at_sites = [derivatives(on_cpu(site), x, 2) for site in functions_at_sites(activation)]
    heading = _heading(activation, title)
    # Small, so that the letters stay legible in TensorBoard's thumbnails.
    width, height = 6.4, 6.6
    figure = _figure(width, height, layout="none")
    top = height - 0.25 - 0.21 * (1 + heading.count("\n") if heading else 0)
    figure.subplots_adjust(left=0.8 / width, right=0.98, bottom=0.5 / height, top=top / height, hspace=0.16)
    panels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2, 2)})
    names, colours = ("f(x)", "f′(x)", "f″(x)"), (BLUE, ORANGE, GREEN)
    for k, (axes, name, colour) in enumerate(zip(panels, names, colours, strict=True)):
        _style(axes)
        axes.set_ylabel(name, fontsize=12)
        line = with_jumps_broken(function, k, x, curves[k], curves[k + 1])
        axes.plot(*line, color=colour, linewidth=2.4, zorder=3, solid_capstyle="butt")
        for site in at_sites:
            axes.plot(x, site[k], color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        _draw_histogram(axes, recorded, low, high)
        _limit_height(axes, line[1], least=1.0 if k == 0 else 0.2, share=1.0 if k == 0 else 0.99)
    _draw_references(panels[0], x)
    panels[-1].set_xlabel("x" if recorded.size == 0 else "x (shaded: the recorded inputs)")
    panels[-1].set_xlim(low, high)
    figure.suptitle(heading, fontsize=12, y=0.985, va="top")
    return figure


def functions_at_sites(activation: Activation | Function) -> list[Activation]:
    """Those of the sites whose parameters are their own; none if there are no such, or of a function without sites."""
    if not isinstance(activation, Activation):
        return []
    try:
        genotype = activation.genotype
    except GenotypeError:  # it differs from channel to channel
        return []
    # By channel a site has no single function.
    own = [s for s in genotype.sites if genotype.at_site(s) != genotype]
    return [Activation(genotype.at_site(site)) for site in own]


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.axhline(0, color="#BBBBBB", linewidth=1)
    axes.axvline(0, color="#BBBBBB", linewidth=1)
    axes.set_axisbelow(True)


def _draw_references(axes: Axes, x: Array) -> None:
    for name, (reference, dashes) in REFERENCES.items():
        axes.plot(x, reference(torch.from_numpy(x)).numpy(), color=GREY, linewidth=1, linestyle=dashes, label=name)
    axes.legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)


def _draw_histogram(axes: Axes, values: Array, low: float, high: float) -> None:
    if values.size == 0:
        return
    counts, edges = np.histogram(values, bins=60, range=(low, high))
    # In the height of the panel, whatever its values; a second pair of axes would double the drawing time.
    heights = 0.95 * counts / max(int(counts.max()), 1)
    upright = axes.get_xaxis_transform()
    axes.stairs(heights, edges, fill=True, color="#56B4E9", alpha=0.22, transform=upright, zorder=0)


def _limit_height(axes: Axes, y: Array, least: float, share: float) -> None:
    """Fit the panel to the central `share` of the values, at least `least` high, and say what it leaves out."""
    finite = y[np.isfinite(y)]
    if finite.size == 0:
        return
    low, high, below, above = shown_range(y, least, share)
    axes.set_ylim(low, high)
    outside = [f"down to {finite.min():.3g}"] * below + [f"up to {finite.max():.3g}"] * above
    if outside:
        # Above the panel, where it hides nothing.
        axes.set_title(f"{axes.get_ylabel()} goes {' and '.join(outside)}", loc="right", fontsize=9, color=DARK, pad=2)


def _heading(activation: Activation | Function, title: str) -> str:
    if not isinstance(activation, Activation):
        return title
    clip = activation.genotype.clip
    suffix = "" if clip.kind == "none" else f"  ({clip.kind}\u00a0clip\u00a0at\u00a0{clip.limit:g})"
    lines = textwrap.wrap("f(x) = " + activation.formula + suffix, width=66)
    if len(lines) > 4:
        lines = [*lines[:3], textwrap.shorten(" ".join(lines[3:]), 66, placeholder=" …")]
    return "\n".join([title] * bool(title) + lines)


# -- probabilities over time ---------------------------------------------------------------------------------------


def draw_probabilities(history: Sequence[Probabilities]) -> Figure:
    """Mean weights of all candidates over the epochs: one panel a slot, one row a candidate, one column an epoch.

    A dropped candidate (probability 0) is blank. The best candidate of the last epoch is marked.

    Args:
        history: probabilities by slot and candidate of every epoch, from the first on.
    """
    slots = list(history[-1]) if history else []
    if not slots:
        return _empty("no epoch is recorded yet")
    n_columns = min(len(slots), 3)
    rows = [slots[k : k + n_columns] for k in range(0, len(slots), n_columns)]
    heights = [max(0.19 * max(len(history[-1][slot]) for slot in row), 0.9) for row in rows]
    # Placed by hand, in inches: an automatic layout would measure every label and take most of the drawing time.
    label, panel, gap, bar = 1.05, 2.1, 0.75, 1.0
    width, height = n_columns * (label + panel) + 0.35 + bar, sum(heights) + gap * len(rows) + 0.1
    figure = _figure(width, height, layout="none")
    top = height
    for row, tall in zip(rows, heights, strict=True):
        top -= tall + gap
        for column, slot in enumerate(row):
            left = label + column * (label + panel)
            axes = figure.add_axes((left / width, (top + 0.45) / height, panel / width, tall / height))
            image = _draw_slot(axes, slot, history)
    bar_axes = figure.add_axes(((width - bar) / width, 0.45 / height, 0.18 / width, (height - gap - 0.1) / height))
    colours = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], format="%g")
    # Of a single small slot, the bar has no room for more.
    colours.set_label("probability (blank: dropped, framed: chosen)" if height > 4 else "probability")
    return figure


def _draw_slot(axes: Axes, slot: str, history: Sequence[Probabilities]) -> Any:
    candidates = list(history[-1][slot])
    values = np.array([[epoch[slot].get(op, 0.0) for epoch in history] for op in candidates], dtype=float)
    # The square root keeps apart what is near 1/n, where most candidates are most of the time.
    image = axes.imshow(
        np.ma.masked_where(values <= 0, values),
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=PowerNorm(0.5, 0, 1),
        extent=(0.5, len(history) + 0.5, len(candidates) - 0.5, -0.5),
    )
    best = int(values[:, -1].argmax())
    axes.set_title(slot, fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_yticks([])
    # Texts are drawn several times faster than the same number of ticks.
    beside = axes.get_yaxis_transform()
    for row, op in enumerate(candidates):
        axes.text(-0.02, row, op, transform=beside, ha="right", va="center", fontsize=8.5, **_emphasis(row == best))
    axes.text(1.01, best, "◀", transform=beside, color=ORANGE, fontsize=10, va="center")
    axes.tick_params(axis="x", labelsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    frame = Rectangle((0.5, best - 0.5), len(history), 1, fill=False, edgecolor=ORANGE, linewidth=1.4, clip_on=False)
    axes.add_patch(frame)
    axes.spines[:].set_color("#BBBBBB")
    return image


def _emphasis(is_chosen: bool) -> dict[str, Any]:
    return {"fontweight": "bold", "color": ORANGE} if is_chosen else {"color": DARK}


def _empty(message: str) -> Figure:
    figure = _figure(5, 1.5)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=DARK)
    return figure


# -- the cell ------------------------------------------------------------------------------------------------------


def draw_cell(space: SearchSpace) -> Figure:
    """The graph of a cell: a box for every slot with the number of its candidates, arrows from x to the output.

    Arrows into a slot with two inputs are numbered, since the order matters.
    """
    routes = _routes(space)
    places = _places(space, routes)
    width = 1 + max(x for x, _ in places.values())
    low, high = min(y for _, y in places.values()) - 0.45, max(y for _, y in places.values()) + 0.45
    figure = _figure(max(1.75 * width, 5), max(1.25 * (high - low) + 0.5, 2))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(low, high)
    n_inputs = {slot.name: slot.arity for slot in space.slots} | {OUTPUT: 1}
    for (_, target, port), route in routes.items():
        _draw_arrow(axes, [places[step] for step in route], port if n_inputs[target] > 1 else None)
    for slot in space.slots:
        n = len(slot.candidates)
        detail = f"{n} candidate{'s' * (n != 1)}"
        _draw_box(axes, places[slot.name], slot.name, detail, BLUE if slot.arity == 1 else ORANGE)
    _draw_box(axes, places[INPUT], INPUT, "input", GREY)
    _draw_box(axes, places[OUTPUT], "y", "output", GREY)
    clip = "no clip" if space.clip.kind == "none" else f"{space.clip.kind} clip at {space.clip.limit:g}"
    figure.suptitle(f"{space.name}: {_count(space.size)} functions, {clip}", fontsize=12)
    return figure


def _count(n: int) -> str:
    """A number that fits: 1,234 or 1.8·10⁹."""
    if n < 1_000_000:
        return f"{n:,}"
    exponent = math.floor(math.log10(n))
    return f"{n / 10**exponent:.1f}·10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _routes(space: SearchSpace) -> dict[Edge, list[str]]:
    """For every edge (source, target, position among the target's inputs) the boxes and waypoints that it visits.

    An edge that skips columns gets a waypoint in each, so that it runs between the boxes and not behind them.
    """
    column = _columns(space)
    edges: list[Edge] = [(source, slot.name, k) for slot in space.slots for k, source in enumerate(slot.inputs)]
    return {
        (source, target, k): [
            source,
            *(f"{source}>{target}>{k}@{c}" for c in range(column[source] + 1, column[target])),
            target,
        ]
        for source, target, k in [*edges, (space.output, OUTPUT, 0)]
    }


def _columns(space: SearchSpace) -> dict[str, int]:
    """The column of every box: the length of the longest path from the input."""
    column = {INPUT: 0}
    for slot in space.slots:
        column[slot.name] = 1 + max(column[i] for i in slot.inputs)
    return column | {OUTPUT: 1 + max(column.values())}


def _places(space: SearchSpace, routes: Mapping[Edge, Sequence[str]]) -> dict[str, tuple[float, float]]:
    """Centres of boxes and waypoints. Within a column they stand in the order of what leads to them and reads them."""
    column = _columns(space)
    before: dict[str, list[str]] = {}
    rank: dict[str, int] = {}
    for k, route in enumerate(routes.values()):
        for n, (first, second) in enumerate(itertools.pairwise(route)):
            before.setdefault(second, []).append(first)
            column.setdefault(second, column[route[0]] + n + 1)
            rank.setdefault(first, k)
    places = {INPUT: (0.0, 0.0)}
    for c in range(1, 1 + max(column.values())):
        names = [name for name in column if column[name] == c]
        names.sort(key=lambda name: (-sum(places[b][1] for b in before[name]) / len(before[name]), rank.get(name, 0)))
        heights = [0.5 if ">" in name else 1.0 for name in names]
        top = sum(heights) / 2
        for name, height in zip(names, heights, strict=True):
            places[name] = (float(c), top - height / 2)
            top -= height
    return places


def _draw_box(axes: Axes, place: tuple[float, float], name: str, detail: str, colour: str) -> None:
    x, y = place
    corner = (x - HALF_WIDTH, y - 0.28)
    box = FancyBboxPatch(corner, 2 * HALF_WIDTH, 0.56, boxstyle="round,pad=0,rounding_size=0.06")
    box.set(facecolor="white", edgecolor=colour, linewidth=2, zorder=2)
    axes.add_patch(box)
    axes.text(x, y + 0.09, name, ha="center", va="center", fontsize=12, fontweight="bold", color=DARK)
    axes.text(x, y - 0.12, detail, ha="center", va="center", fontsize=9, color=DARK)


def _draw_arrow(axes: Axes, stops: Sequence[tuple[float, float]], port: int | None) -> None:
    """A smooth line through the waypoints; it enters the target above or below its middle if it has two inputs."""
    (x0, y0), (x1, y1) = stops[0], stops[-1]
    y_end = y1 if port is None else y1 + (0.17 - 0.34 * port)
    points = [(x0 + HALF_WIDTH, y0)]
    for x, y in stops[1:-1]:
        points += [(x - HALF_WIDTH, y), (x + HALF_WIDTH, y)]
    points.append((x1 - HALF_WIDTH, y_end))
    vertices, codes = [points[0]], [MplPath.MOVETO]
    for (xa, ya), (xb, yb) in itertools.pairwise(points):
        bend = 0.5 * (xb - xa)
        vertices += [(xa + bend, ya), (xb - bend, yb), (xb, yb)]
        codes += [MplPath.CURVE4] * 3
    arrow = FancyArrowPatch(path=MplPath(vertices, codes), arrowstyle="-|>", mutation_scale=12)
    arrow.set(color=DARK, linewidth=1.2, zorder=1)
    axes.add_patch(arrow)
    if port is not None:
        axes.text(x1 - HALF_WIDTH + 0.05, y_end, str(port + 1), fontsize=8, va="center", ha="center", color=ORANGE)


def cell_text(space: SearchSpace) -> Tree:
    """The cell for a terminal, from the output back to x: every slot with its candidates."""
    tree = Tree(f"[bold]{escape(space.name)}[/]: y = {space.output}, {_count(space.size)} functions")
    slots = {slot.name: slot for slot in space.slots}
    seen: set[str] = set()

    def grow(branch: Tree, name: str) -> None:
        if name == INPUT:
            branch.add(INPUT)
            return
        slot = slots[name]
        head = f"[bold]{name}[/]({', '.join(slot.inputs)})"
        if name in seen:
            branch.add(f"{head}  [dim]as above[/]")
            return
        seen.add(name)
        child = branch.add(f"{head}  [dim]one of {len(slot.candidates)}:[/] {', '.join(slot.candidates)}")
        for source in slot.inputs:
            if source != INPUT:
                grow(child, source)

    grow(tree, space.output)
    return tree
