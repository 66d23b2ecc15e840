"""Function: f, f' and f'' over the inputs that the network gave, and f at every stage of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from actsearch.activation import Activation
from actsearch.genotype import Genotype
from actsearch.record import CellRecord, RunRecord
from actsearch.report.curve import (
    Array,
    Function,
    central_range,
    derivatives,
    finite_values,
    on_cpu,
    shown_range,
    values,
    with_jumps_broken,
)
from actsearch.report.facts import facts
from actsearch.report.page.chart import Chart, number, path, signed
from actsearch.report.page.formula import mathml
from actsearch.report.page.way import LOSSES
from actsearch.report.plots import REFERENCES, functions_at_sites
from actsearch.report.terminal import derivative_text, families

POINTS = 401  # of a curve
STAGE_POINTS = 181  # of one among many
MOST_STAGES = 60
MOST_CELLS = 6  # that are drawn; of more, the formulas are told
STILLS = 12


@dataclass(frozen=True)
class FunctionView:
    """A function as the page shows it.

    Attributes:
        cell: whose it is.
        formula, derivative, mathml, clip, slots: in words.
        charts: f, f' and f''; empty if it is not drawn.
        facts: names and values.
    """

    cell: str
    formula: str
    derivative: str
    mathml: Markup
    clip: str
    slots: str
    charts: tuple[Markup, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Stages:
    """The function at every stage.

    Attributes:
        charts: by cell, the drawing that the slider changes.
        stills: small drawings of some stages with their names, for paper, and where no script runs.
        data: plain data for the script.
        thinned: stages are left out, as there are many.
    """

    charts: tuple[tuple[str, Markup], ...]
    stills: tuple[tuple[str, Markup], ...]
    data: Mapping[str, Any]
    thinned: bool


def function_view(name: str, genotype: Genotype, inputs: torch.Tensor | None, drawn: bool = True) -> FunctionView:
    """A function with its curves over the central 99.8 % of `inputs`, or [-5, 5] without them."""
    activation = Activation(genotype)
    clip = genotype.clip
    return FunctionView(
        name,
        genotype.formula,
        derivative_text(genotype),
        mathml(genotype),
        "" if clip.kind == "none" else f"{clip.kind} clip at ±{number(clip.limit)}",
        families(genotype),
        tuple(_charts(activation, inputs)) if drawn else (),
        tuple((signed(name), signed(value)) for name, value in facts(activation, inputs).rows()) if drawn else (),
    )


def _grid(low: float, high: float, n: int) -> Array:
    """Even points, and 0, where kinks sit."""
    points = np.linspace(low, high, n)
    return np.unique(np.append(points, 0.0)) if low < 0 < high else points


def _charts(activation: Activation, inputs: torch.Tensor | None) -> list[Markup]:
    function = on_cpu(activation)
    low, high = central_range(inputs)
    recorded = finite_values(inputs)
    x = _grid(low, high, POINTS)
    with np.errstate(all="ignore"):
        curves = derivatives(function, x, 3)
        at_sites = [derivatives(on_cpu(site), x, 2) for site in functions_at_sites(activation)]
    charts = []
    for k, name in enumerate(("f(x)", "f′(x)", "f″(x)")):
        line = with_jumps_broken(function, k, x, curves[k], curves[k + 1])
        least, share = (1.0, 1.0) if k == 0 else (0.2, 0.99)
        bottom, top, below, above = shown_range(line[1], least, share)
        finite = line[1][np.isfinite(line[1])]
        beyond = [f"down to {number(float(finite.min()))}"] * below + [f"up to {number(float(finite.max()))}"] * above
        title = f"{name}, goes {' and '.join(beyond)}" if beyond else name
        over = f" over the histogram of {len(recorded):,} recorded inputs" if recorded.size else ""
        chart = Chart(
            (low, high),
            (bottom, top),
            f"{name} from {number(low)} to {number(high)}{over}: {_in_words(*line)}",
            height=400 if k == 0 else 190,
            x_title="x" if not recorded.size else "x (shaded: what the network gave it)",
            y_title=title,
            classes=f"order{k}",
            right=44 if k == 0 else 12,
        )
        chart.histogram(recorded)
        if k == 0:
            _references(chart, x)
        for site in at_sites:
            chart.line(x, site[k], "faint")
        chart.line(*line, f"strong f{k}")
        charts.append(chart.svg())
    return charts


def _references(chart: Chart, x: Array) -> None:
    names = []
    for k, (name, (reference, _)) in enumerate(REFERENCES.items()):
        y = reference(torch.from_numpy(x)).numpy()
        chart.line(x, y, f"reference dash{k}")
        if chart.y[0] <= y[-1] <= chart.y[1]:
            names.append((name, float(y[-1]), "quiet"))
    chart.ends(names)


def _in_words(x: Array, y: Array) -> str:
    """A curve for those who cannot see it: some values."""
    at = [k for k in np.linspace(0, len(x) - 1, 5).astype(int) if np.isfinite(y[k])]
    return ", ".join(f"{number(float(y[k]))} at {number(float(x[k]))}" for k in at)


# -- at every stage ------------------------------------------------------------------------------------------------


def stages(record: RunRecord, inputs: torch.Tensor | None) -> Stages | None:
    """The function of each cell after every epoch, and at the end; None if there is no epoch on record."""
    cells = [cell for cell in record.cells.values() if any(cell.genotypes)][:MOST_CELLS]
    places = [k for k in range(len(record.epochs)) if all(cell.genotypes[k] is not None for cell in cells)]
    if not cells or not places:
        return None
    most = max(MOST_STAGES // len(cells), STILLS)
    kept = _evenly(places, most)
    described = [_stage(record, k) for k in kept]
    ended = all(cell.final is not None for cell in cells)
    if ended:
        described.append(_last_stage(described[-1], cells))
    low, high = central_range(inputs)
    x = _grid(low, high, STAGE_POINTS)
    charts, data, curves = [], [], {}
    for cell in cells:
        genotypes = [cell.genotypes[k] for k in kept] + [cell.final] * ended
        curves[cell.name] = [_curve(genotype, x) for genotype in genotypes if genotype is not None]
        charts.append((cell.name, _stage_chart(cell.name, x, curves[cell.name], inputs, (low, high))))
        data.append(
            {
                "formulas": [genotype.formula for genotype in genotypes if genotype is not None],
                "y": [[_short(v) for v in curve] for curve in curves[cell.name]],
            }
        )
    first = curves[cells[0].name]
    stills = [(str(described[k]["label"]), _still(x, first[k], first)) for k in _evenly(range(len(first)), STILLS)]
    content = {"x": [_short(v) for v in x], "stages": described, "cells": data}
    return Stages(tuple(charts), tuple(stills), content, len(kept) < len(places))


def _evenly(places: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the first and the last among them."""
    return sorted({places[round(k)] for k in np.linspace(0, len(places) - 1, min(most, len(places)))})


def _short(value: float) -> float | None:
    """For the script: five significant digits, None where there is no value."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _last_stage(stage: Mapping[str, Any], cells: Sequence[CellRecord]) -> dict[str, Any]:
    """The end of a search, after the `stage` of its last epoch."""
    final = cells[0].final
    slots = final.slots.items() if final is not None else ()
    choices = [{"slot": slot, "best": [[choice.op, None]]} for slot, choice in slots]
    phase = "after the local search" if _refined(cells) else "result"
    return {**stage, "label": "at the end", "phase": phase, "choices": choices}


def _refined(cells: Sequence[CellRecord]) -> bool:
    return any(cell.final is not None and "refined" in cell.final.provenance for cell in cells)


def _stage(record: RunRecord, k: int) -> dict[str, Any]:
    """What is told of an epoch beside its function."""
    known = [(short, float(record.losses[name][k])) for name, short, _ in LOSSES if name in record.losses]
    losses = [f"{short} {number(loss)}" for short, loss in known if np.isfinite(loss)]
    cells = list(record.cells.values())
    choices = []
    for slot, ops in cells[0].candidates.items():
        p = cells[0].probabilities[slot][k]
        best = [int(i) for i in np.argsort(-p)[:2] if p[i] > 0]
        choices.append({"slot": slot, "best": [[ops[i], round(float(p[i]), 4)] for i in best]})
    return {
        "label": f"epoch {record.epochs[k]} of {record.length or record.epochs[-1]}",
        "at": int(record.epochs[k]),
        "phase": record.phases[k],
        "survivors": int(sum(n[k] for cell in cells for n in cell.survivors.values())),
        "losses": "loss: " + (", ".join(losses) or "not finite"),
        "choices": choices,
    }


def _curve(genotype: Genotype, x: Array) -> Array:
    function: Function = on_cpu(Activation(genotype))
    with np.errstate(all="ignore"):
        return values(function, x)


def _stage_chart(
    name: str, x: Array, curves: Sequence[Array], inputs: torch.Tensor | None, limits: tuple[float, float]
) -> Markup:
    """The last stage; the script puts others in its place, on the same axes."""
    bottom, top, _, _ = shown_range(np.concatenate(curves), 1.0, 0.97)
    chart = Chart(
        limits,
        (bottom, top),
        f"f(x) of {name} at a stage of the search",
        height=270,
        x_title="x",
        y_title="f(x)",
        classes="stage",
    )
    chart.histogram(finite_values(inputs))
    for curve in curves[:-1]:
        chart.line(x, curve, "ghost")
    chart.add(
        '<g class="moving" data-ax="{ax:.3f}" data-bx="{bx:.5f}" data-ay="{ay:.3f}" data-by="{by:.5f}">',
        ax=chart.sx(0.0),
        bx=chart.sx.step,
        ay=chart.sy(0.0),
        by=chart.sy.step,
    )
    chart.line(x, curves[-1], "strong f0")
    chart.add("</g>")
    return chart.svg()


def _still(x: Array, curve: Array, curves: Sequence[Array]) -> Markup:
    width, height = 150.0, 92.0
    bottom, top, _, _ = shown_range(np.concatenate(curves), 1.0, 0.97)

    def at(v: float) -> float:
        return 4 + (width - 8) * (v - x[0]) / (x[-1] - x[0])

    def up(v: float) -> float:
        return min(max(height - 4 - (height - 8) * (v - bottom) / (top - bottom), -height), 2 * height)

    d = path([at(float(v)) for v in x], [up(float(v)) for v in curve])
    zero = Markup("")
    if bottom < 0 < top:
        zero = Markup('<path class="zero" d="M0 {y:.1f}H{w:g}"/>').format(y=up(0.0), w=width)
    return Markup(
        '<svg class="still" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{l}">{z}'
        '<path class="line strong f0" d="{d}"/></svg>'
    ).format(w=width, h=height, l=_in_words(x, curve), z=zero, d=d)


__all__ = ["FunctionView", "Stages", "function_view", "stages"]
