"""A comparison for people: in a terminal, as Markdown, and as one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html as htmllib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from actsearch.compare import REFERENCES, Comparison, Retraining, Row, Test
from actsearch.files import write_text
from actsearch.report.comparison_plots import draw_box_plots, draw_learning_curves, metric_label
from actsearch.report.plots import save
from actsearch.report.terminal import ComparisonRow, comparison_table, plain

NOTHING = "–"
MIB = 2**20

_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 96rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: middle; }
td { white-space: nowrap; }
th:first-child, td:first-child, td.formula { text-align: left; }
td.formula { font: .85em ui-monospace, monospace; white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
tr.discovered { background: #fdf1ea; font-weight: 600; }
.scroll { overflow-x: auto; }
img { max-width: 100%; height: auto; }
"""


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


def html(comparison: Comparison, title: str = "", figures: Mapping[str, bytes] | None = None) -> str:
    """One HTML file that needs no other: tables with their intervals drawn, the verdict, notes, and PNGs by caption."""
    heading = _escape(title or _title(comparison))
    parts = [f"<h1>{heading}</h1>", f"<p><strong>{_escape(comparison.summary())}</strong></p>"]
    parts += [_html_table(comparison, block) for block in blocks(comparison)]
    parts += ["<ul>", *(f"<li>{_escape(line)}</li>" for line in comparison.verdict().splitlines()[:-1]), "</ul>"]
    parts += [f"<p>{_escape(line)}</p>" for line in comparison.notes()]
    for caption, png in (figures or {}).items():
        data = base64.b64encode(png).decode()
        parts.append(f'<h2>{_escape(caption)}</h2>\n<img alt="{_escape(caption)}" src="data:image/png;base64,{data}">')
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{heading}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html_table(comparison: Comparison, block: Block) -> str:
    tests = [test for _, test, _ in block.rows if test and math.isfinite(test.paired.interval[0])]
    reach = max((abs(end) for test in tests for end in test.paired.interval), default=0.0) or 1.0
    names = [*block.columns[:5], "", *block.columns[5:]]
    lines = ["<div class=scroll><table>", "<tr>" + "".join(f"<th>{_escape(name)}</th>" for name in names) + "</tr>"]
    for row, test, cells in block.rows:
        drawn = _interval(test, reach) if test in tests and test else ""
        values = [f"<td>{_escape(cell)}</td>" for cell in cells]
        values[1] = f'<td class="formula">{_escape(row.formula)}</td>'
        values.insert(5, f"<td>{drawn}</td>")
        kind = ' class="discovered"' if row.kind in REFERENCES else ""
        lines.append(f"<tr{kind}>{''.join(values)}</tr>")
    return "\n".join([*lines, "</table></div>"])


def _interval(test: Test, reach: float) -> str:
    """The difference and its interval, drawn from -reach to reach."""
    at = [f"{80 - 76 * value / reach:.1f}" for value in (*reversed(test.paired.interval), test.paired.mean)]
    return (
        '<svg width="160" height="16" role="img" aria-label="interval">'
        '<line x1="80" x2="80" y1="0" y2="16" stroke="#999" stroke-dasharray="2 2"/>'
        f'<line x1="{at[0]}" x2="{at[1]}" y1="8" y2="8" stroke="#0072B2" stroke-width="2"/>'
        f'<circle cx="{at[2]}" cy="8" r="3.5" fill="#0072B2"/></svg>'
    )


def _escape(text: str) -> str:
    return htmllib.escape(text, quote=True)


def write(comparison: Comparison, directory: Path | str, title: str = "") -> list[Path]:
    """Write comparison.md, comparison.html and the pictures in figures/; their paths. Raises RunError."""
    directory = Path(directory)
    drawn = {"box_plots": draw_box_plots(comparison), "learning_curves": draw_learning_curves(comparison)}
    pictures = {name: save(figure, directory / "figures" / f"{name}.png") for name, figure in drawn.items()}
    captions = {"box_plots": "Every seed", "learning_curves": "Learning curves"}
    figures = {captions[name]: path.read_bytes() for name, path in pictures.items()}
    text = markdown(comparison, title)
    text += "".join(f"\n![{captions[name]}](figures/{path.name})\n" for name, path in pictures.items())
    return [
        write_text(directory / "comparison.md", text),
        write_text(directory / "comparison.html", html(comparison, title, figures)),
        *pictures.values(),
    ]
