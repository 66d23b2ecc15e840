"""The results as tables: on a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actsearch.bench.measure import COPY
from actsearch.bench.results import Group, Results, Row
from actsearch.bench.targets import findings
from actsearch.bench.timing import Ratio
from actsearch.report.terminal import plain

NONE = "–"
# Least traffic of forward and backward of a float32 element: x in, y out; g and x in, dx out. A copy: in and out.
BYTES_OF_STEP, BYTES_OF_COPY = 20, 8


@dataclass(frozen=True)
class Sheet:
    """A table of text; the first column is what a row is about. `notes` are sentences below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sheets(results: Results) -> list[Sheet]:
    """All that there is to show so far."""
    found = [_growth(g) if g.kind == "growth" else _workload(g) for g in results.groups if g.rows]
    if (bare := results.group("elementwise")) is not None and (traffic := _bandwidth(bare)).rows:
        found.append(traffic)
    if results.whole:
        found.append(_whole(results))
    if not results.settings.get("quick") and (reached := findings(results)):
        found.append(
            Sheet(
                "Targets",
                ("target", "at most", "measured", "met"),
                [
                    (
                        f.what,
                        NONE if f.most is None else f"{f.most:g}",
                        f"{f.measured:.2f}" + (f" ({f.detail})" if f.detail else ""),
                        {True: "yes", False: "no", None: NONE}[f.met],
                    )
                    for f in reached
                ],
            )
        )
    return found


def _workload(group: Group) -> Sheet:
    baseline = group.rows[0]
    title = f"{group.label}: {group.detail}. {baseline.label} step: {_seconds(baseline.times.median)}"
    title += f", {_size(baseline.memory)}" if baseline.memory is not None else ""
    columns = ("", "weight step", "α step", "memory: weight", "α")
    sheet = Sheet(title, columns)
    for name, label in {row.contestant: row.label for row in group.rows if row.contestant != COPY}.items():
        rows = [group.row(name, step) for step in ("weight", "alpha")]
        times = [_ratio(None if row is None else group.to_baseline(row)) for row in rows]
        memory = [_times(group.memory_to_baseline(row)) for row in rows]
        sheet.rows.append((label, *times, *memory))
    sheet.notes.append(
        "Multiples of ReLU's training step: median [quartiles] of ratios within a round. "
        "Memory: peak of tensors in a step."
    )
    sheet.notes.extend(_notes(group.rows))
    return sheet


def _growth(group: Group) -> Sheet:
    title = f"Growth, α step of {group.label}: {group.detail}"
    sheet = Sheet(title, ("", "candidates", "slots", "α step", "memory"))
    for row in group.rows:
        if row.candidates is not None:
            size = (str(row.candidates), str(row.slots))
            sheet.rows.append((row.label, *size, _ratio(group.to_baseline(row)), _times(group.memory_to_baseline(row))))
    sheet.notes.append(
        "Multiples of ReLU's training step. A slot holds an operation once, so that 300 candidates need 15 slots."
    )
    sheet.notes.extend(_notes(group.rows, sized=True))
    return sheet


def _bandwidth(group: Group) -> Sheet:
    sheet = Sheet(
        "Memory bandwidth, element-wise: least traffic over time, as a fraction of a device copy's",
        ("", "weight step", "α step"),
    )
    copy = group.row(COPY)
    if copy is None or not math.isfinite(copy.times.median):
        return sheet
    for name, label in {row.contestant: row.label for row in group.rows if row.contestant != COPY}.items():
        cells = []
        for step in ("weight", "alpha"):
            row = group.row(name, step)
            found = group.ratio(copy, row)
            cells.append(NONE if found is None else f"{found.median * BYTES_OF_STEP / BYTES_OF_COPY:.1%}")
        sheet.rows.append((label, *cells))
    sheet.notes.append(
        f"{BYTES_OF_STEP} bytes an element for forward and backward, {BYTES_OF_COPY} for the copy, which took "
        f"{_seconds(copy.times.median)}."
    )
    return sheet


def _whole(results: Results) -> Sheet:
    names = list(dict.fromkeys(name for whole in results.whole for name in whole.ratios))
    sheet = Sheet(
        "A whole search over one retraining, extrapolated",
        ("", "search", *(f"/ retraining: {name}" for name in names), "epochs a minute"),
    )
    for whole in results.whole:
        speeds = "; ".join(
            [f"search {_speed(whole.search_epochs)}"]
            + [f"{name} {_speed(speed)}" for name, speed in whole.retraining_epochs.items()]
        )
        ratios = (_ratio(whole.ratios.get(name)) for name in names)
        sheet.rows.append(
            (whole.label, _seconds(whole.search), *ratios, speeds if math.isfinite(whole.search) else NONE)
        )
        sheet.notes.extend([f"{whole.label}: {whole.note}"] if whole.note else [])
    sheet.notes.extend(results.whole[0].assumptions)
    return sheet


def _notes(rows: Sequence[Row], sized: bool = False) -> list[str]:
    """What the rows have to say, each sentence once; with the size of the cell if that tells rows apart."""
    found = []
    for row in rows:
        size = f", {row.candidates} candidates in {row.slots} slots" if sized and row.candidates else ""
        if row.note:
            found.append(f"{row.label}{size}: {row.note}")
    return list(dict.fromkeys(found))


# -- figures -------------------------------------------------------------------------------------------------------


def _ratio(found: Ratio | None) -> str:
    if found is None:
        return NONE
    median, low, high = (_times(v) for v in (found.median, found.low, found.high))
    return median if found.n == 1 else f"{median} [{low}, {high}]"


def _times(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return NONE
    for unit, size, digits in (("h", 3600.0, 1), ("min", 60.0, 1), ("s", 1.0, 2), ("ms", 1e-3, 1)):
        if value >= size:
            return f"{value / size:.{digits}f} {unit}"
    return f"{value * 1e6:.0f} µs"


def _size(value: int) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.0f} KiB"


def _speed(value: float) -> str:
    return NONE if not math.isfinite(value) else f"{value:.3g}"


# -- forms ---------------------------------------------------------------------------------------------------------


def show(results: Results, console: Console) -> None:
    """Print every sheet, then the warnings."""
    for sheet in sheets(results):
        # Not as the table's title, which would be broken to the table's width.
        console.print(plain(sheet.title, console), style="bold", markup=False, highlight=False)
        console.print(_table(sheet, console))
        for note in sheet.notes:
            console.print(plain(note, console), style="dim", markup=False, highlight=False)
        console.print()
    for warning in results.warnings:
        console.print(plain(f"warning: {warning}", console), style="yellow", markup=False, highlight=False)


def _table(sheet: Sheet, console: Console) -> Table:
    table = Table(
        box=box.ROUNDED if console.is_terminal else None,
        pad_edge=console.is_terminal,
    )
    for place, column in enumerate(sheet.columns):
        table.add_column(plain(escape(column), console), justify="right" if place else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*(plain(escape(cell), console) for cell in row))
    return table


def markdown(results: Results, level: int = 1) -> str:
    """The whole report; headings start at `level`."""
    machine = results.machine
    where = machine["gpu"] or machine["processor"]
    lines = [
        f"{'#' * level} {machine['date'][:10]}: {where}",
        "",
        f"{machine['date']}; {machine['cores']} cores, {machine['threads']} threads, {machine['dtype']}; actsearch "
        f"{machine['actsearch']}, torch {machine['torch']}, Python {machine['python']}, {machine['platform']}; "
        f"space {results.settings['space']}, {results.settings['rounds']} rounds, interleaved; winner "
        f"f(x) = `{results.settings['winner']}`.",
        "",
    ]
    if not results.finished:
        lines += ["Interrupted: some figures are missing.", ""]
    lines += [f"Warning: {warning}." for warning in results.warnings] + ([""] if results.warnings else [])
    for sheet in sheets(results):
        lines += [f"{'#' * (level + 1)} {sheet.title}", ""]
        for cells in (sheet.columns, tuple("---" for _ in sheet.columns), *sheet.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += ["", *(f"{note}  " for note in sheet.notes[:-1]), *sheet.notes[-1:], ""]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(results: Results) -> str:
    """One line for each row of every group: seconds, ratios and bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("group", "contestant", "step", "candidates", "slots", "seconds", "ratio", "ratio_low", "ratio_high")
    writer.writerow([*names, "rounds", "peak_bytes", "memory_ratio", "resident_bytes", "note"])
    for group in results.groups:
        for row in group.rows:
            found = group.to_baseline(row)
            median = row.times.median
            writer.writerow(
                [
                    *(group.name, row.contestant, row.step, row.candidates, row.slots),
                    median if math.isfinite(median) else None,
                    *((found.median, found.low, found.high, found.n) if found else (None, None, None, 0)),
                    *(row.memory, group.memory_to_baseline(row), row.resident, row.note),
                ]
            )
    return out.getvalue()
