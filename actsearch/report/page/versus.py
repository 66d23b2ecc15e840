"""Versus: a comparison as tables and drawings, with its intervals, seeds, learning curves and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actsearch.compare import ADAPTED, DISCOVERED, REFERENCES, Comparison, Row, Test
from actsearch.report.comparison import blocks
from actsearch.report.comparison_plots import curve_table, curves_in_order, label_of, metric_label
from actsearch.report.page.chart import Chart, common_spans, number, short, spans
from actsearch.report.page.way import SERIES, Figure

NAMES = 128.0  # room for names of activations
STATISTICS = 7  # columns of `blocks` that tell of the metric; those after them tell of cost


@dataclass(frozen=True)
class TableView:
    """A table: its caption, columns, and rows of (classes, cells)."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Headline:
    """A number that stands in the summary, with what it is of, and its evidence."""

    name: str
    value: str
    evidence: str
    tone: str = ""


def tables(comparison: Comparison) -> list[TableView]:
    """One for each reference: metric, paired difference, p."""
    found = []
    for block in blocks(comparison):
        name = block.reference
        columns = [*block.columns[:STATISTICS]]
        columns[4] = f"{name} − this one [95 % CI]" if name else columns[4]
        rows = []
        for row, test, cells in block.rows:
            shown = [*cells[:STATISTICS]]
            if test is not None and test.paired.n:
                # As everywhere on the page: of the reference to the other.
                shown[4] = f"{_signed_mean(comparison, test)} [{_interval(comparison, test)}]"
            rows.append((_class(row), tuple(shown)))
        found.append(TableView(f"Differences of {name}" if name else "Means over seeds", tuple(columns), tuple(rows)))
    return found


def costs(comparison: Comparison) -> TableView:
    """What every contestant costs."""
    cells: dict[str, tuple[str, ...]] = {}
    columns: tuple[str, ...] = ()
    for block in blocks(comparison):
        columns = block.columns[STATISTICS:]
        cells |= {row.name: shown[STATISTICS:] for row, _, shown in block.rows}
    rows = tuple(
        (_class(row), (row.name, "–" if math.isnan(row.seconds) else f"{row.seconds:.1f} s", *cells[row.name]))
        for row in comparison.rows
    )
    return TableView("Cost of each activation", ("activation", "training of one seed", *columns), rows)


def _class(row: Row) -> str:
    return "found" if row.kind in REFERENCES else row.kind


# -- the summary ---------------------------------------------------------------------------------------------------


def headlines(comparison: Comparison) -> list[Headline]:
    """The metric of the first reference, its differences to ReLU (or another standard one) and the best random one."""
    if not comparison.references:
        return []
    reference = comparison.row(comparison.references[0])
    found = [
        Headline(
            f"{label_of(comparison.metric)} of {reference.name}",
            _mean(comparison, reference),
            f"{reference.n} seed{'s' * (reference.n != 1)}"
            + ("" if comparison.higher_is_better else ", lower is better"),
        )
    ]
    if math.isnan(reference.mean):
        return found
    standard = [row for row in comparison.rows if row.kind == "standard"]
    others = sorted(standard, key=lambda row: row.name.lower() != "relu")[:1]
    random = [row for row in comparison.rows if row.kind == "random" and not math.isnan(row.mean)]
    sign = 1 if comparison.higher_is_better else -1
    others += sorted(random, key=lambda row: -sign * row.mean)[:1]
    for row in others:
        test = next((t for t in comparison.tests if (t.reference, t.other) == (reference.name, row.name)), None)
        if test is None or not test.paired.n:
            continue
        name = row.name if len(random) < 2 or row.kind != "random" else f"{row.name}, the best of {len(random)}"
        found.append(
            Headline(
                f"against {name}", difference(comparison, test), _evidence(comparison, test), _tone(comparison, test)
            )
        )
    return found


def _digits(comparison: Comparison) -> int:
    return 2 if comparison.scale == 100 else 4


def _mean(comparison: Comparison, row: Row) -> str:
    if math.isnan(row.mean):
        return "failed"
    digits, unit = _digits(comparison), " %" if comparison.scale == 100 else ""
    spread = "" if math.isnan(row.sd) else f" ± {comparison.scale * row.sd:.{digits}f}"
    return f"{comparison.scale * row.mean:.{digits}f}{spread}{unit}"


def difference(comparison: Comparison, test: Test) -> str:
    """Of the reference to the other one, in points where the metric is in percent."""
    unit = " points" if comparison.scale == 100 else ""
    return f"{_signed_mean(comparison, test)}{unit}"


def _signed_mean(comparison: Comparison, test: Test) -> str:
    return f"{comparison.scale * test.paired.mean:+.{_digits(comparison)}f}".replace("-", "−")


def _evidence(comparison: Comparison, test: Test) -> str:
    return f"95 % CI {_interval(comparison, test)}" if math.isfinite(test.paired.interval[0]) else "no interval"


def _interval(comparison: Comparison, test: Test) -> str:
    if not math.isfinite(test.paired.interval[0]):
        return "no interval"
    low, high = (f"{comparison.scale * end:+.{_digits(comparison)}f}".replace("-", "−") for end in test.paired.interval)
    return f"{low} to {high}"


def _tone(comparison: Comparison, test: Test) -> str:
    said = comparison.says(test)
    return said if said in ("better", "worse") else ""


def forest(comparison: Comparison, reference: str) -> Figure | None:
    """The differences of a reference to every other activation, with their intervals."""
    tests = [t for t in comparison.tests if t.reference == reference and t.paired.n]
    if not tests:
        return None
    scale = comparison.scale
    known = [[scale * v for v in (t.paired.mean, *t.paired.interval) if math.isfinite(v)] for t in tests]
    low, high = common_spans([(min(ends), max(ends)) for ends in known], cut=True)
    low, high = spans([low, high, 0.0], 0.02)
    better = "right is better" if comparison.higher_is_better else "left is better"
    said = "; ".join(f"{t.other} {difference(comparison, t)}, {_evidence(comparison, t)}" for t in tests)
    chart = Chart(
        (low, high),
        (len(tests) - 0.4, -0.6),
        f"Differences of {reference} to the others: {said}",
        height=62 + 24 * len(tests),
        left=NAMES,
        x_title=f"difference in {label_of(comparison.metric)}; {better}",
        categories=[t.other for t in tests],
        classes="forest",
    )
    for k, test in enumerate(tests):
        tone = _tone(comparison, test) or "even"
        if chart.outside(
            scale * test.paired.mean, k, f"{difference(comparison, test)} [{_interval(comparison, test)}]"
        ):
            continue
        interval = [scale * end for end in test.paired.interval]
        if all(map(math.isfinite, interval)):
            chart.line(interval, [k, k], f"interval {tone}")
        chart.dot(scale * test.paired.mean, k, f"mean {tone}", 4)
    return Figure(
        f"{reference} against the others",
        chart.svg(),
        "Paired over seeds; 95 % intervals, not corrected for their number. Those that reach an edge go on.",
    )


# -- seeds, curves, ranks ------------------------------------------------------------------------------------------


def box_plots(comparison: Comparison) -> Figure:
    """Every seed of every activation: quartiles, median, extremes, mean."""
    rows, scale = comparison.rows, comparison.scale
    said = "; ".join(f"{row.name} {_mean(comparison, row)}" for row in rows)
    known = [[scale * v for v in row.values if math.isfinite(v)] for row in rows]
    low, high = common_spans([(min(values), max(values)) for values in known if values])
    chart = Chart(
        (low, high),
        (len(rows) - 0.4, -0.6),
        f"{metric_label(comparison)} of every seed: {said}",
        height=62 + 30 * len(rows),
        left=NAMES,
        categories=[row.name for row in rows],
        bold=[row.name for row in rows if row.kind in REFERENCES],
        x_title=metric_label(comparison),
        classes="boxes",
    )
    for k, row in enumerate(rows):
        good = np.array(known[k])
        colour = _class(row)
        if not len(good):
            chart.add(
                '<text class="end" x="{x:.1f}" y="{y:.1f}">every seed failed</text>', x=NAMES + 8, y=chart.sy(k) + 4
            )
            continue
        if chart.outside(float(good.mean()), k, _mean(comparison, row)):
            continue
        a, q1, median, q3, b = (chart.sx(float(q)) for q in np.quantile(good, (0, 0.25, 0.5, 0.75, 1)))
        y = chart.sy(k)
        chart.add(
            '<g class="box {c}"><path d="M{a:.1f} {y:.1f}H{q1:.1f}M{q3:.1f} {y:.1f}H{b:.1f}"/>'
            '<rect x="{q1:.1f}" y="{t:.1f}" width="{w:.1f}" height="14"/>'
            '<path class="median" d="M{m:.1f} {t:.1f}V{u:.1f}"/></g>',
            c=colour,
            a=a,
            b=b,
            q1=q1,
            q3=q3,
            w=q3 - q1,
            y=y,
            t=y - 7,
            u=y + 7,
            m=median,
        )
        beside = np.linspace(-0.22, 0.22, len(good)) if len(good) > 1 else np.zeros(1)
        for value, off in zip(good, beside, strict=True):
            chart.dot(float(value), k + float(off), f"seed {colour}", 2.6)
        x = chart.sx(float(good.mean()))
        chart.add('<path class="diamond {c}" d="M{x:.1f} {t:.1f}l5 5l-5 5l-5 -5Z"/>', c=colour, x=x, t=y - 5)
    return Figure("Every seed", chart.svg(), "A dot is a seed, the diamond their mean, the box quartiles and median.")


def learning_curves(comparison: Comparison) -> list[Figure]:
    """What was recorded of every epoch: the mean over seeds, and thin lines for the seeds."""
    colours = styles(comparison.rows)
    legend = tuple((colours[row.name], short(row.name, 28)) for row in comparison.rows)
    found = []
    for name in curves_in_order(comparison):
        scale = 100.0 if name.endswith("acc") else 1.0
        table = {row.name: scale * curve_table(comparison, row.name, name) for row in comparison.rows}
        every = [float(v) for curves in table.values() for v in curves.flat if math.isfinite(v)]
        if not every:
            continue
        log = scale == 1 and min(every) > 0 and max(every) > 30 * min(every)
        last = ", ".join(
            f"{r} {number(float(np.nanmean(c[:, -1])))}" for r, c in table.items() if np.isfinite(c[:, -1]).any()
        )
        chart = Chart(
            (1.0, float(comparison.epochs)) if comparison.epochs > 1 else (0.5, 1.5),
            (min(every) * 0.8, max(every) * 1.25) if log else spans(every),
            f"{label_of(name)} over the epochs; at the end {last}",
            height=230,
            x_title="epoch",
            y_title="logarithmic" if log else "",
            log=log,
            whole=True,
        )
        for row in comparison.rows:
            epochs = range(1, table[row.name].shape[1] + 1)
            for curve in table[row.name]:
                chart.line(epochs, curve, f"{colours[row.name]} thin")
        for row in comparison.rows:
            curves = table[row.name]
            whole = np.isfinite(curves).all(axis=0)  # a mean of survivors would jump where one fails
            mean = np.where(whole, np.where(whole, curves, 0.0).mean(axis=0), np.nan)
            chart.line(range(1, len(mean) + 1), mean, colours[row.name], row.name)
        found.append(Figure(label_of(name).replace("_", " ").capitalize(), chart.svg(), "", legend))
    return found


def styles(rows: Sequence[Row]) -> dict[str, str]:
    """Classes of the lines: what was found in the accent, random functions grey and dashed, others in a colour each."""
    found, count = {}, {"found": 0, "random": 0, "other": 0}
    for row in rows:
        group = {DISCOVERED: "found", ADAPTED: "found", "random": "random"}.get(row.kind, "other")
        k = count[group]
        count[group] += 1
        if group == "random":
            found[row.name] = f"random dash{k % 3}"
        elif group == "found":
            found[row.name] = f"strong s1{f' dash{k % 3}' if k else ''}"
        else:
            found[row.name] = f"s{k % (SERIES - 1) + 2}" + (f" dash{k % 3}" if k >= SERIES - 1 else "")
    return found


def ranks(comparison: Comparison) -> Figure | None:
    """The search's loss of each function against its metric after retraining; None where too little is known."""
    both = [row for row in comparison.rows if math.isfinite(comparison.losses.get(row.name, math.nan) - row.mean)]
    if len(both) < 3:
        return None
    losses = [comparison.losses[row.name] for row in both]
    means = [comparison.scale * row.mean for row in both]
    log = min(losses) > 0 and max(losses) > 20 * min(losses)
    x = [math.log10(v) if log else v for v in losses]
    said = comparison.rank_correlation
    chart = Chart(
        spans(x, 0.1),
        spans(means, 0.14),
        f"Metric after retraining over the search's loss of {len(both)} functions" + (f": {said}" if said else ""),
        height=260,
        x_title="the search's loss" + (" (log₁₀)" if log else ""),
        y_title=metric_label(comparison),
        right=84,
    )
    for row, a, b in zip(both, x, means, strict=True):
        chart.dot(a, b, f"mean {_class(row)}", 4.5)
    chart.labels([(short(row.name, 13), a, b) for row, a, b in zip(both, x, means, strict=True)])
    told = f"{said}." if said else "Too few functions for a rank correlation; compare.random 4 draws enough."
    return Figure("Does the search's loss rank functions as retraining does?", chart.svg(), told)
