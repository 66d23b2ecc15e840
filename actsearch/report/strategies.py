"""A comparison of strategies for people: the table of the searches, in a terminal and as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actsearch.compare.strategies import GRADIENT, StrategyComparison, mean_and_sd, row_name
from actsearch.errors import RunError
from actsearch.files import write_text
from actsearch.report import comparison as one
from actsearch.report.comparison_plots import metric_label
from actsearch.report.terminal import plain

SEARCHED = ("strategy", "seed", "search's loss", "training steps", "seconds", "function")
_MEASURED = {
    "shared weights": "the discrete function's loss under the weights of the gradient search",
    "trials": "the loss at the end of a trial",
}


def columns(found: StrategyComparison) -> list[str]:
    """Of the table."""
    reference = found.comparison.references[0]
    return [
        "strategy",
        "n",
        f"{metric_label(found.comparison)}, mean ± sd",
        f"difference to {reference} [95 % CI]",
        "p (t, Holm)",
        "search's loss, mean ± sd",
        "training steps",
        "seconds",
        "functions found",
    ]


def rows(found: StrategyComparison) -> list[list[str]]:
    """One for each strategy: the cells of `columns`."""
    comparison = found.comparison
    block = one.blocks(comparison)[0]
    cells = {row.name: shown for row, _, shown in block.rows}
    table = []
    for strategy in found.strategies:
        name, searches = row_name(strategy), found.of_strategy(strategy)
        _, _, n, mean, difference, p, *_ = cells[name]
        loss = _mean([s.loss for s in searches], 4)
        steps = _mean([float(s.steps) for s in searches], 0)
        seconds = _mean([s.seconds for s in searches], 1)
        of = f"{steps} of {searches[0].budget}"
        times = Counter(s.formula for s in searches)
        functions = "; ".join(f"{f} ({k}×)" if k > 1 else f for f, k in times.most_common())
        table.append([name, n, mean, difference, p, loss, of, seconds, functions])
    return table


def _mean(values: list[float], digits: int) -> str:
    mean, sd = mean_and_sd(values)
    if math.isnan(mean):
        return one.NOTHING
    spread = "" if math.isnan(sd) or (sd == 0 and digits == 0) else f" ± {sd:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def notes(found: StrategyComparison) -> list[str]:
    """What the reader of the table must know, one sentence each."""
    seeds = len(found.comparison.seeds)
    lines = [
        "Budget: the most training steps that the gradient search with the same settings may take, of the weights and "
        "of α. It takes fewer where what is left after the last drop has no parameters that α's steps train. The "
        "others train one function a trial, spend no more, and leave less of it than the shortest trial. What computes "
        "no gradient does not count: validation, and the local search that ends a gradient search.",
        f"Each of {seeds} seed(s) is of the split, the search, and one retraining of what it found, paired over the "
        "strategies.",
    ]
    if GRADIENT in found.strategies and len(found.strategies) > 1:
        lines.append(
            "The losses of gradient search, under its own weights, are not comparable with those of trials, which are "
            "shorter trainings from scratch."
        )
    for kind, correlation in found.correlations.items():
        told = str(correlation) if correlation else "too few functions, or all alike"
        lines.append(f"Rank correlation with the retrained metric, of {_MEASURED[kind]}, over all seeds: {told}.")
    return lines


def markdown(found: StrategyComparison, title: str) -> str:
    """The table in GitHub's Markdown, what the tests say, and the notes."""
    head, body = columns(found), rows(found)
    lines = ["| " + " | ".join(map(one.escaped, head)) + " |", "| --- |" + " ---: |" * (len(head) - 2) + " --- |"]
    for *cells, functions in body:
        lines.append("| " + " | ".join([*map(one.escaped, cells), one.code(functions)]) + " |")
    said = found.comparison.verdict().splitlines()
    parts = [
        f"# {one.escaped(title)}",
        one.escaped(said[-1]),
        "\n".join(lines),
        "\n".join(f"- {one.escaped(line)}" for line in said[:-1]),
        "\n".join(one.escaped(line) for line in notes(found)),
        "With controls, learning curves and costs: [comparison.md](comparison.md).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def show(found: StrategyComparison, console: Console) -> None:
    """Print the table, without the functions, and what it says."""
    table = Table(title=f"{len(found.comparison.seeds)} seed(s); equal budgets of training steps", title_justify="left")
    for place, name in enumerate(columns(found)[:-1]):
        table.add_column(plain(name, console), justify="right" if place else "left")
    for *cells, _ in rows(found):
        table.add_row(*(plain(cell, console) for cell in cells))
    console.print(table)
    for line in [found.comparison.summary(), *notes(found)[-len(found.correlations) :]]:
        console.print(plain(line, console), markup=False, highlight=False, soft_wrap=True)


def searches_of(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of what strategies.json holds, a row of cells for each search: `SEARCHED`. Raises RunError."""
    try:
        return [
            (
                str(s["strategy"]),
                str(s["seed"]),
                "not finite" if s["loss"] is None else f"{s['loss']:.4g}",
                f"{s['steps']} of {s['budget']}",
                one.NOTHING if s["seconds"] is None else f"{s['seconds']:.0f}",
                str(s["formula"]),
            )
            for s in data["searches"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"strategies.json does not tell what was searched ({type(error).__name__}: {error})") from None


def write(found: StrategyComparison, directory: Path | str, title: str) -> Path:
    """Write strategies.md, .csv and .json, and the comparison's files; the first. Raises RunError."""
    found.save(directory)
    one.write(found.comparison, directory, f"{title}: what was found, and controls")
    return write_text(Path(directory) / "strategies.md", markdown(found, title))
