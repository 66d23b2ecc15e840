"""A comparison for people: in a terminal, and as Markdown with pictures beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from actsearch.compare import Comparison, Retraining, Row, Test
from actsearch.files import write_text
from actsearch.report.comparison_plots import draw_box_plots, draw_learning_curves, metric_label
from actsearch.report.plots import save
from actsearch.report.terminal import ComparisonRow, comparison_table, plain

NOTHING = "–"
MIB = 2**20


@dataclass(frozen=True)
class Block:
    """The table of one reference: its heading, the names of its columns, and a row of cells for each activation."""

    reference: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Row, Test | None, tuple[str, ...]], ...]


def blocks(comparison: Comparison) -> list[Block]:
    """One for each reference, with all that it is tested against; a single one without tests if there is none."""
    columns = [
        "activation",
        "formula",
        "n",
        f"{metric_label(comparison)}, mean ± sd",
        "",
        "p (t, Holm)",
        "p (permutation)",
        "added parameters",
        "time per step",
        "kept for backward (B/element)",
    ]
    has_memory = any(not math.isnan(row.peak_memory) for row in comparison.rows)
    columns += ["peak GPU memory (MiB)"] * has_memory
    found = []
    for reference in comparison.references or ("",):
        columns[4] = f"difference to {reference} [95 % CI]" if reference else "difference"
        tests = {test.other: test for test in comparison.tests if test.reference == reference}
        shown = [row for row in comparison.rows if not reference or row.name == reference or row.name in tests]
        rows = [
            (row, tests.get(row.name), tuple(_cells(comparison, row, tests.get(row.name), has_memory))) for row in shown
        ]
        found.append(Block(reference, tuple(columns), tuple(rows)))
    return found


def _cells(comparison: Comparison, row: Row, test: Test | None, has_memory: bool) -> Iterator[str]:
    scale, digits = comparison.scale, 2 if comparison.scale == 100 else 4
    yield row.name
    yield row.formula
    yield str(row.n) if not row.failures else f"{row.n} of {len(row.values)} ({len(row.failures)} failed)"
    mean = "failed" if math.isnan(row.mean) else f"{scale * row.mean:.{digits}f}"
    yield mean if math.isnan(row.sd) else f"{mean} ± {scale * row.sd:.{digits}f}"
    if test is None or test.paired.n == 0:
        yield from (NOTHING,) * 3
    else:
        # As a table is read: of this row to the reference.
        difference = f"{-scale * test.paired.mean:+.{digits}f}"
        low, high = (-scale * end for end in reversed(test.paired.interval))
        yield f"{difference} [{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) else difference
        yield _p(test.p_holm)
        yield _p(test.paired.p_permutation)
    yield _added(row)
    yield _time(comparison, row)
    yield NOTHING if math.isnan(row.saved_bytes) else f"{row.saved_bytes:.3g}"
    if has_memory:
        yield NOTHING if math.isnan(row.peak_memory) else f"{row.peak_memory / MIB:.0f}"


def _added(row: Row) -> str:
    """As a number, and relative to the model where its parameters were counted."""
    if not row.added_parameters:
        return "0"
    share = f" ({100 * row.added_parameters / row.parameters:+.2g} %)" if row.parameters else ""
    return f"{row.added_parameters:+d}{share}"


def _time(comparison: Comparison, row: Row) -> str:
    """Relative to the first standard activation, or to the first row without one."""
    base = next((r for r in comparison.rows if r.kind == "standard"), comparison.rows[0])
    if math.isnan(row.step_seconds):
        return NOTHING
    milliseconds = f"{1000 * row.step_seconds:.3g} ms"
    if not base.step_seconds > 0:
        return milliseconds
    return f"{row.step_seconds / base.step_seconds:.2f} × {base.name} ({milliseconds})"


def _p(p: float) -> str:
    if math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def describe(result: Retraining) -> str:
    """One line on a retraining."""
    if result.failure:
        return f"seed {result.seed}  {result.activation}: failed: {result.failure}"
    shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(result.metrics.items()))
    return f"seed {result.seed}  {result.activation}: {shown}"


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the tables, and what they say in words."""
    scale = comparison.scale
    title = f"after {comparison.epochs} epoch(s); p: paired t test over seeds, corrected for all tests (Holm)"
    for block in blocks(comparison):
        rows = [
            ComparisonRow(
                name=row.name,
                seeds=row.n,
                mean=scale * row.mean,
                sd=scale * row.sd if math.isfinite(row.sd) else None,
                difference=-scale * test.paired.mean if test and test.paired.n else None,
                interval=(-scale * test.paired.interval[1], -scale * test.paired.interval[0])
                if test and math.isfinite(test.paired.interval[0])
                else None,
                p=test.p_holm if test else None,
                kind=row.kind,
            )
            for row, test, _ in block.rows
        ]
        table = comparison_table(
            rows,
            metric=metric_label(comparison),
            reference=block.reference or NOTHING,
            digits=2 if scale == 100 else 4,
            title=title,
            console=console,
        )
        console.print(table)
    failed = [line for line in comparison.verdict().splitlines() if ": failed: " in line]
    for line in [*failed, comparison.summary()]:
        console.print(plain(line, console), markup=False, highlight=False, soft_wrap=True)


def markdown(comparison: Comparison, title: str = "") -> str:
    """Tables in GitHub's Markdown, the verdict, and the notes."""
    parts = [f"# {escaped(title or _title(comparison))}", escaped(comparison.summary())]
    for block in blocks(comparison):
        lines = ["| " + " | ".join(escaped(name) for name in block.columns) + " |"]
        lines.append("| --- | --- |" + " ---: |" * (len(block.columns) - 2))
        for _, _, (name, formula, *cells) in block.rows:
            lines.append("| " + " | ".join([escaped(name), code(formula), *map(escaped, cells)]) + " |")
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- {escaped(line)}" for line in comparison.verdict().splitlines()[:-1]))
    parts.append("\n".join(escaped(line) for line in comparison.notes()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(comparison: Comparison) -> str:
    return f"Comparison: {len(comparison.seeds)} seed(s), {comparison.epochs} epoch(s)"


def escaped(text: str) -> str:
    """`text` as Markdown shows it, in one line."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def code(text: str) -> str:
    """`text` as code in a cell of a Markdown table."""
    # In a table the bar ends a cell even within code.
    return "`" + " ".join(text.replace("`", "'").split()).replace("|", "\\|") + "`"


def write(comparison: Comparison, directory: Path | str, title: str = "") -> list[Path]:
    """Write comparison.md and the pictures in figures/; their paths. Raises RunError."""
    directory = Path(directory)
    drawn = {
        "box_plots.png": ("Every seed", draw_box_plots(comparison)),
        "learning_curves.png": ("Learning curves", draw_learning_curves(comparison)),
    }
    pictures = [save(figure, directory / "figures" / name) for name, (_, figure) in drawn.items()]
    text = markdown(comparison, title)
    text += "".join(f"\n![{caption}](figures/{name})\n" for name, (caption, _) in drawn.items())
    return [write_text(directory / "comparison.md", text), *pictures]
