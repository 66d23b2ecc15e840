"""Cautions: what a reader must know before believing a report, the gravest first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from actsearch.activation import Activation
from actsearch.compare import DISCOVERED, Comparison
from actsearch.genotype import Genotype
from actsearch.record import RunRecord
from actsearch.report.curve import central_range, derivatives, finite_values, on_cpu
from actsearch.report.facts import clipped_share
from actsearch.report.page.chart import number

Level = Literal["serious", "caution", "note"]
ORDER: tuple[Level, ...] = ("serious", "caution", "note")
GAP = 1.25  # times the mixture's loss, from which on the discrete one is far above it
FEW = 5  # seeds; of fewer it is said that they are few
STRAIGHT = 1e-3  # deviation from a straight line, relative to the range of values
CLIPPED = 0.01  # share of the inputs


@dataclass(frozen=True)
class Caution:
    """What must be known: how grave it is, in a few words, and in one or two sentences."""

    level: Level
    title: str
    text: str


def of_run(record: RunRecord, inputs: torch.Tensor | None) -> list[Caution]:
    """All of a run, its comparison's as well."""
    found = [*_ending(record), *_shapes(record, inputs), *_search(record)]
    if record.comparison is not None:
        found += of_comparison(record.comparison)
    elif record.finished:
        why = "several functions were found" if len(record.found) > 1 else "the comparison is switched off"
        found.append(
            Caution(
                "caution", "Not compared", f"Nothing was retrained, as {why}: whether the function is any good is open."
            )
        )
    found += [Caution("note", "Files", note) for note in record.notes]
    return _graded(found)


def of_comparison(comparison: Comparison) -> list[Caution]:
    """All of a comparison."""
    return _graded([*_results(comparison)])


def _graded(found: list[Caution]) -> list[Caution]:
    return sorted(found, key=lambda one: ORDER.index(one.level))


def _ending(record: RunRecord) -> Iterator[Caution]:
    if record.finished:
        return
    if record.busy:
        yield Caution(
            "serious", "This run is still being written", f"{_sentence(record.progress)} Make the report again later."
        )
        return
    what = "its comparison is not complete" if record.searched else "what is shown is not its result"
    yield Caution(
        "serious",
        "This run is not finished",
        f"{_sentence(record.progress)} It was ended before its time, so {what}. Go on with: {record.resume}",
    )


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _shapes(record: RunRecord, inputs: torch.Tensor | None) -> Iterator[Caution]:
    found = record.found or {name: cell.genotype for name, cell in record.cells.items() if cell.genotype is not None}
    for name, genotype in found.items():
        whose = "the function" if len(found) == 1 else f"the function of {name}"
        if words := straight(genotype, inputs):
            yield Caution(
                "serious",
                "Collapse",
                f"Over the inputs of the network {whose} is {words}: it adds nothing to a linear layer.",
            )
        share = clipped_share(Activation(genotype), finite_values(inputs)) if inputs is not None else None
        if share is not None and share >= CLIPPED:
            yield Caution(
                "caution",
                "Clipping",
                f"At {100 * share:.1f} % of the recorded inputs the clip acts in {whose}: it is part of the function, "
                "and the formula alone is not what was trained.",
            )


def straight(genotype: Genotype, inputs: torch.Tensor | None) -> str:
    """In words, which straight line a function is over the central inputs; empty if it is none."""
    low, high = central_range(inputs)
    x = np.linspace(low, high, 401)
    with np.errstate(all="ignore"):
        (y,) = derivatives(on_cpu(Activation(genotype)), x, 0)
    if not np.isfinite(y).all():
        return ""
    slope, offset = np.polyfit(x, y, 1)
    extent = float(np.ptp(y))
    if extent <= 1e-6 * (1 + abs(float(y[0]))):
        return f"constant ({number(float(y.mean()))})"
    if float(np.abs(y - slope * x - offset).max()) > STRAIGHT * extent:
        return ""
    if math.isclose(slope, 1, abs_tol=1e-3) and abs(offset) < 1e-3 * extent:
        return "the identity"
    return f"a straight line of slope {number(float(slope))}"


def _search(record: RunRecord) -> Iterator[Caution]:
    for name, cell in record.cells.items():
        where = "" if len(record.cells) == 1 else f" of {name}"
        if cell.undecided:
            slots = ", ".join(cell.undecided)
            refined = (
                ", which the local search then made by measuring"
                if cell.final is not None and "refined" in (cell.final.provenance)
                else ""
            )
            yield Caution(
                "caution",
                "Undecided slots",
                f"In {slots}{where} the best two candidates end within 2 points of each other: the choice between them "
                f"means little{refined}.",
            )
    nothing = np.full(len(record.epochs), math.nan)
    mixture, discrete = (record.losses.get(name, nothing) for name in ("arch", "val"))
    both = np.flatnonzero(np.isfinite(mixture) & np.isfinite(discrete))
    if both.size and discrete[both[-1]] > GAP * mixture[both[-1]]:
        k = both[-1]
        yield Caution(
            "caution",
            "Discretisation gap",
            f"After epoch {record.epochs[k]} the discrete function has a loss of {number(float(discrete[k]))} where "
            f"the mixture had {number(float(mixture[k]))} over the epoch: "
            "the step from mixture to formula lost something.",
        )
    if record.skipped:
        yield Caution(
            "caution",
            "Skipped steps",
            f"{record.skipped} step{'s were' if record.skipped > 1 else ' was'} skipped, as a loss or gradient was not "
            "finite.",
        )


def _results(comparison: Comparison) -> Iterator[Caution]:
    failed = [(row.name, len(row.failures)) for row in comparison.rows if row.failures]
    if failed:
        listed = ", ".join(f"{name} {n} of {len(comparison.seeds)}" for name, n in failed)
        yield Caution(
            "serious", "Failed retrainings", f"{listed}. Means and differences leave them out, which flatters them."
        )
    for reference in comparison.references:
        subject = "The discovered function" if reference == DISCOVERED else reference
        tests = [t for t in comparison.tests if t.reference == reference and t.paired.n]
        kinds = {row.name: row.kind for row in comparison.rows}
        random = [t for t in tests if kinds.get(t.other) == "random"]
        beaten = [t for t in random if comparison.says(t) == "better"]
        if random and len(beaten) < len(random):
            n, of = len(random) - len(beaten), len(random)
            which = f"{n} of the {of} random functions" if n < of else f"any of the {of} random functions"
            which = "the random function" if of == 1 else which
            yield Caution(
                "caution",
                "Not better than random",
                f"{subject} is not significantly better than {which} of the same space, so this shows nothing about "
                "the search.",
            )
    n = len(comparison.seeds)
    if n < FEW:
        spread = [t.paired.detectable for t in comparison.tests if t.paired.sd > 0]
        unit = " points" if comparison.scale == 100 else ""
        size = f" smaller than {number(float(format(comparison.scale * max(spread), '.2g')))}{unit}" if spread else ""
        text = (
            "With one seed no difference can be told from chance."
            if n < 2
            else f"{n} seeds show large differences only; true ones{size} may well have been missed."
        )
        yield Caution("caution", "Few seeds", f"{text} More seeds would tell.")
    if missing := comparison.missing_controls():
        yield Caution("caution", "Missing controls", f"Not compared with: {', '.join(missing)}.")
