"""Way: how a search came to its function: probabilities, survivors, certainty, losses, clips, trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from actsearch.record import Array, CellRecord, RunRecord
from actsearch.report.page.chart import Chart, number, spans

NAMED = 4  # candidates of a slot that have a colour and a name; the others are thin grey lines
SERIES = 8  # colours
MOST_TRIALS = 15  # in the table
LOSSES = (
    ("train", "weights", "the mixture, on the part that trains the weights"),
    ("arch", "mixture", "the mixture, on α's part"),
    ("val", "discrete", "the discrete function, on α's part"),
)


@dataclass(frozen=True)
class SlotView:
    """The candidates of a slot over time, and in words what became of them."""

    name: str
    chart: Markup
    words: str


@dataclass(frozen=True)
class Figure:
    """A drawing with its title, what is to be seen, and (class of colour, name) of its lines."""

    title: str
    chart: Markup
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


def refined(cell: CellRecord) -> str:
    """What the local search did, in a sentence; empty if there was none."""
    told = cell.final.provenance.get("refined") if cell.final is not None else None
    if not isinstance(told, dict):
        return ""
    before, after, n = (told.get(key) for key in ("loss_before", "loss_after", "evaluations"))
    if not (isinstance(before, int | float) and isinstance(after, int | float) and isinstance(n, int)):
        return ""
    if after == before:
        return f"The local search measured {n} functions and found none that is better."
    return (
        f"The local search measured {n} functions under the search's weights; the loss fell from {number(before)} to "
        f"{number(after)}. Before it: {told.get('formula_before', '')}"
    )


def slots(record: RunRecord, cell: CellRecord) -> list[SlotView]:
    """One for each slot of a cell."""
    return [_slot(record, cell, slot) for slot in cell.candidates]


def _slot(record: RunRecord, cell: CellRecord, slot: str) -> SlotView:
    ops, table = cell.candidates[slot], cell.probabilities[slot]
    last = table[-1]
    order = sorted(range(len(ops)), key=lambda k: _rank(table[:, k]), reverse=True)
    chosen = cell.final.slots[slot].op if cell.final is not None and slot in cell.final.slots else None
    named = order[:NAMED]
    if chosen in ops and ops.index(chosen) not in named:
        named = [*named[: NAMED - 1], ops.index(chosen)]
    best = ", ".join(f"{ops[k]} {number(float(last[k]))}" for k in order[:3] if last[k] > 0)
    chart = Chart(
        _over(record.epochs),
        (0.0, min(1.0, max(0.2, 1.08 * float(table.max(initial=0.0))))),
        f"Probability of the {len(ops)} candidates of slot {slot} over the epochs; at the end {best}",
        height=210,
        x_title="epoch",
        y_title="probability",
        right=92,
        whole=True,
        classes="probabilities",
    )
    for k in range(len(ops)):
        if k not in named:
            chart.line(record.epochs, _until_dropped(table[:, k]), "faint", ops[k])
    chart.series([(ops[k], record.epochs, _until_dropped(table[:, k]), f"s{p + 1}") for p, k in enumerate(named)])
    chart.cursor()
    return SlotView(slot, chart.svg(), _slot_in_words(cell, slot, order, chosen))


def _over(epochs: Sequence[int] | np.ndarray) -> tuple[float, float]:
    first, last = float(epochs[0]), float(epochs[-1])
    return (first, last) if last > first else (first - 0.5, first + 0.5)


def _until_dropped(p: Array) -> Array:
    return np.where(p > 0, p, np.nan)


def _rank(p: Array) -> tuple[float, int, float]:
    """How strong a candidate was: at the end, or by how long it lasted and what it then had."""
    seen = np.flatnonzero(p > 0)
    return (float(p[-1]), int(seen[-1]), float(p[seen[-1]])) if len(seen) else (0.0, -1, 0.0)


def _slot_in_words(cell: CellRecord, slot: str, order: Sequence[int], chosen: str | None) -> str:
    ops, last = cell.candidates[slot], cell.probabilities[slot][-1]
    alive = [k for k in order if last[k] > 0]
    if not alive:
        return "No candidate has a probability."
    first = ops[alive[0]]
    said = f"{first} at {100 * last[alive[0]]:.0f} %"
    if len(alive) > 1:
        lead = float(cell.margin[slot][-1])
        said += f", {ops[alive[1]]} at {100 * last[alive[1]]:.0f} %; {len(alive)} of {len(ops)} are left"
        if slot in cell.undecided:
            said += f". Undecided: a lead of {100 * lead:.1f} points"
    else:
        said += f", the only one of {len(ops)} that is left"
    if chosen is not None and chosen != first:
        said += f". The local search took {chosen} instead"
    return said + "."


# -- the whole search ----------------------------------------------------------------------------------------------


def losses(record: RunRecord) -> Figure | None:
    """Of the search, over the epochs."""
    known = [(name, short, long) for name, short, long in LOSSES if name in record.losses]
    series = {name: record.losses[name] for name, _, _ in known}
    every = [v for loss in series.values() for v in loss.tolist() if math.isfinite(v)]
    if not every:
        return None
    log = min(every) > 0 and max(every) > 20 * min(every)
    limits = (min(every) * 0.8, max(every) * 1.25) if log else spans(every)
    ends = ", ".join(f"{short} {number(last_known(series[name]))}" for name, short, _ in known)
    chart = Chart(
        _over(record.epochs),
        limits,
        f"Losses of the search over the epochs; at the end {ends}",
        height=240,
        x_title="epoch",
        y_title="logarithmic" if log else "",
        right=64,
        log=log,
        whole=True,
    )
    chart.series([(short, record.epochs, series[name], f"s{p + 1}") for p, (name, short, _) in enumerate(known)])
    chart.cursor()
    caption = "; ".join(f"{short}: {long}" for _, short, long in known)
    return Figure("Losses", chart.svg(), caption[0].upper() + caption[1:] + ". None of them is of the test set.")


def last_known(values: Array) -> float:
    """The last finite value, NaN if there is none: there is no loss of α where nothing is left to choose."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def survivors(record: RunRecord) -> Figure | None:
    """Candidates left over the epochs, all slots and cells together."""
    if not record.cells:
        return None
    counts = np.sum([n for cell in record.cells.values() for n in cell.survivors.values()], axis=0)
    slots_in_all = sum(len(cell.candidates) for cell in record.cells.values())
    chart = Chart(
        _over(record.epochs),
        (0.0, 1.06 * float(counts.max())),
        f"Candidates left in {slots_in_all} slots: {int(counts[0])} after epoch 1, {int(counts[-1])} at the end",
        height=200,
        x_title="epoch",
        whole=True,
    )
    chart.line(record.epochs, counts, "strong s1")
    chart.cursor()
    return Figure("Survivors", chart.svg(), f"One a slot, {slots_in_all} in all, is the end of shrinking.")


def certainty(record: RunRecord, cell: CellRecord) -> list[Figure]:
    """Entropy and lead of every slot of a cell."""
    entropy = {
        slot: e / math.log(len(cell.candidates[slot]))
        for slot, e in cell.entropy.items()
        if len(cell.candidates[slot]) > 1
    }
    legend = tuple((f"s{k % SERIES + 1}", slot) for k, slot in enumerate(cell.candidates))
    colour = {slot: classes for classes, slot in legend}
    found = []
    for title, y_title, series, caption in (
        ("Entropy", "entropy / log n", entropy, "1: all candidates are equal; 0: one is certain."),
        ("Lead", "", cell.margin, "How far the most probable candidate is ahead of the second."),
    ):
        if not series:
            continue
        ends = ", ".join(f"{slot} {number(float(v[-1]))}" for slot, v in series.items())
        chart = Chart(
            _over(record.epochs),
            (0.0, 1.03),
            f"{title} of every slot over the epochs; at the end {ends}",
            height=200,
            x_title="epoch",
            y_title=y_title,
            whole=True,
        )
        for slot, values in series.items():
            chart.line(record.epochs, values, colour[slot], slot)
        chart.cursor()
        found.append(Figure(title, chart.svg(), caption, legend))
    return found


def clipped(record: RunRecord, cell: CellRecord) -> Figure | None:
    """Shares of the inputs at which surviving candidates were clipped; None if none was."""
    series = {key: hits for key, hits in cell.clip_hits.items() if hits.max(initial=0.0) > 0}
    if not series:
        return None
    order = sorted(series, key=lambda key: -float(series[key].max()))
    named = order[:NAMED]
    greatest = 100 * float(series[order[0]].max())
    chart = Chart(
        _over(record.epochs),
        (0.0, 1.1 * greatest),
        f"Share of the recorded inputs at which candidates are clipped; at most {number(greatest)} %, of {order[0]}",
        height=200,
        x_title="epoch",
        y_title="clipped inputs (%)",
        right=104,
        whole=True,
    )
    # At an epoch without a hit the candidate may be gone as well: its line ends.
    shown = {key: np.where(hits > 0, 100 * hits, np.nan) for key, hits in series.items()}
    for key in order[NAMED:]:
        chart.line(record.epochs, shown[key], "faint", key)
    chart.series([(key, record.epochs, shown[key], f"s{p + 1}") for p, key in enumerate(named)])
    chart.cursor()
    return Figure("Clipping", chart.svg(), "Of surviving candidates, at a sample of inputs of the activation sites.")


# -- trials --------------------------------------------------------------------------------------------------------


def trials(record: RunRecord) -> Figure | None:
    """The loss of every trial, and the best so far among those that ran to the end."""
    known = [t for t in record.trials if math.isfinite(t.loss)]
    if not known:
        return None
    most = max(t.steps for t in record.trials)
    whole = [t for t in known if t.steps == most]
    low, high = min(t.loss for t in known), max(t.loss for t in known)
    log = low > 0 and high > 20 * low
    best = min(whole, key=lambda t: t.loss, default=known[0])
    chart = Chart(
        (-0.5, record.trials[-1].number + 0.5),
        (low * 0.8, high * 1.25) if log else spans([low, high]),
        f"Loss of {len(known)} trials; the best is {number(best.loss)}, of trial {best.number}",
        height=240,
        x_title="trial",
        y_title="loss on α's part" + (", logarithmic" if log else ""),
        log=log,
        whole=True,
    )
    steps = np.minimum.accumulate([t.loss for t in whole]) if whole else np.array([])
    chart.line([t.number for t in whole], list(steps), "s1")
    for t in known:
        chart.dot(t.number, t.loss, "s1" if t.steps == most else "faint")
    caption = "A dot is a trial; the line is the best so far of those that took all steps. Pale: stopped early."
    return Figure("Trials", chart.svg(), caption)


def best_trials(record: RunRecord) -> list[tuple[str, ...]]:
    """Number, function, loss, steps and seconds of the best, those after the most steps first."""
    order = sorted(record.trials, key=lambda t: (-t.steps, t.loss))[:MOST_TRIALS]
    return [
        (str(t.number), t.formula, number(t.loss), f"{t.steps}{' (stopped)' if t.pruned else ''}", f"{t.seconds:.1f}")
        for t in order
    ]
