"""The page: a run or a comparison as one HTML file that needs no other, and may load none."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from actsearch import __version__
from actsearch.compare import Comparison
from actsearch.record import RunRecord
from actsearch.report.page import cautions, commands, settings, versus, way
from actsearch.report.page.chart import number, signed
from actsearch.report.page.function import MOST_CELLS, function_view, stages
from actsearch.report.progress import duration
from actsearch.report.strategies import SEARCHED

ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<path d='M1 11c5 1 6-1 8-4s4-5 6-6' fill='none' stroke='%23c2410c' stroke-width='2'/></svg>"
)


def run_page(record: RunRecord) -> str:
    """The report of a run, finished or not."""
    inputs = None if record.inputs is None else torch.from_numpy(record.inputs)
    genotypes = record.found or {name: c.genotype for name, c in record.cells.items() if c.genotype is not None}
    functions = [
        function_view(name, genotype, inputs, drawn=k < MOST_CELLS)
        for k, (name, genotype) in enumerate(genotypes.items())
    ]
    cells = list(record.cells.values())
    drawn = cells[:MOST_CELLS] if len(record.epochs) else []
    staged = stages(record, inputs)
    figures = (
        [way.losses(record), way.survivors(record), way.trials(record)] if record.epochs.size or record.trials else []
    )
    if drawn:
        figures += [*way.certainty(record, drawn[0]), way.clipped(record, drawn[0])]
    return _render(
        title=_title(record.config) or record.path.name,
        kind="Search",
        subtitle=_subtitle(record),
        cautions=cautions.of_run(record, inputs),
        finished=record.finished,
        searched=record.searched,
        functions=functions,
        stages=staged,
        refinements=[line for cell in drawn[:1] if (line := way.refined(cell))],
        probabilities=[(cell.name, way.slots(record, cell)) for cell in drawn],
        n_cells=len(cells),
        figures=[figure for figure in figures if figure is not None],
        trials=_trials(record),
        effort=_effort(record),
        commands=commands.of_run(record),
        configuration=settings.sections(record.config),
        space=settings.of_space(record.space) if record.space is not None else (),
        environment=settings.of_environment(record.environment),
        searches=None,
        **_comparison(record.comparison),
    )


def comparison_page(
    comparison: Comparison,
    path: Path,
    environment: Mapping[str, Any],
    searches: Sequence[tuple[str, ...]] | None = None,
) -> str:
    """The report of a comparison that lies in the folder `path`; `searches` is what strategies found, if they did."""
    context = {key: value for key, value in comparison.context.items() if isinstance(value, dict)}
    n = len(comparison.seeds)
    epochs = f"{comparison.epochs} epoch{'s' * (comparison.epochs != 1)} each from scratch"
    of = f"{len(comparison.entries)} activations, {n} seed{'s' * (n != 1)}, {epochs}"
    return _render(
        title=_title(comparison.context) or path.name,
        kind="Strategies" if searches else "Comparison",
        subtitle=of,
        cautions=cautions.of_comparison(comparison),
        finished=True,
        searched=True,
        functions=[],
        stages=None,
        refinements=[],
        probabilities=[],
        n_cells=0,
        figures=[],
        trials=None,
        effort=(),
        commands=commands.of_comparison(path, dict(environment)),
        configuration=settings.sections({**context, "budget": vars(comparison.budget)}),
        space=(),
        environment=settings.of_environment(environment),
        searches=versus.TableView("The searches", SEARCHED, tuple(("", row) for row in searches)) if searches else None,
        **_comparison(comparison),
    )


def _comparison(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {"compared": False, "headlines": [], "summary": "", "forests": []}
    return {
        "compared": True,
        "headlines": versus.headlines(comparison),
        "summary": comparison.summary(),
        "forests": [f for r in comparison.references if (f := versus.forest(comparison, r)) is not None],
        "tables": versus.tables(comparison),
        "boxes": versus.box_plots(comparison),
        "curves": versus.learning_curves(comparison),
        "ranks": versus.ranks(comparison),
        "costs": versus.costs(comparison),
        "verdict": [signed(line) for line in comparison.verdict().splitlines()[:-1]],
        "notes": comparison.notes(),
    }


def _trials(record: RunRecord) -> versus.TableView | None:
    rows = tuple(("", cells) for cells in way.best_trials(record))
    columns = ("trial", "function", "loss on α's part", "steps", "seconds")
    return versus.TableView("The best trials", columns, rows) if rows else None


def _title(config: Mapping[str, Any]) -> str:
    """`resnet8 on digits`, from the names of model and data."""
    names = [part.get("name") if isinstance(part := config.get(key), dict) else None for key in ("model", "data")]
    return " on ".join(str(name) for name in names) if all(names) else ""


def _subtitle(record: RunRecord) -> str:
    parts = [f"{record.strategy} search"]
    if record.space is not None:
        parts.append(f"space {record.space.name}, {record.space.size:,} functions")
    parts.append(f"run {record.path.name}")
    return " · ".join(parts)


def _effort(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Steps and seconds of the search."""
    found = []
    summary = record.summary
    steps, budget = summary.get("steps"), summary.get("budget")
    if isinstance(steps, int):
        found.append(
            ("training steps of the search", f"{steps:,}" + (f" of {budget:,}" if isinstance(budget, int) else ""))
        )
    if isinstance(seconds := summary.get("seconds"), int | float):
        found.append(("the search, all in all", duration(seconds)))
    clock = record.metrics.get("seconds")
    if clock is not None and len(clock) and math.isfinite(clock[-1]):
        found.append((f"its {len(clock)} epochs", duration(float(clock[-1]))))
    if record.trials:
        found.append((f"its {len(record.trials)} trials", duration(sum(t.seconds for t in record.trials))))
    trained = [r.seconds for r in record.retrainings if math.isfinite(r.seconds)]
    if trained:
        found.append((f"{len(trained)} retrainings", duration(sum(trained))))
    losses = summary.get("losses")
    for name, loss in losses.items() if isinstance(losses, dict) else ():
        told = number(float(loss)) if isinstance(loss, int | float) else "not finite"
        found.append((f"search's loss of {name}", told))
    return tuple(found)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("actsearch.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data"] = _as_data
    return environment


def _as_data(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _render(**values: Any) -> str:
    environment = _environment()
    loader = environment.loader
    assert loader is not None
    style, script = (loader.get_source(environment, name)[0] for name in ("style.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html").render(
        **values,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        icon=ICON,
        version=__version__,
        most_cells=MOST_CELLS,
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


__all__ = ["comparison_page", "run_page"]
