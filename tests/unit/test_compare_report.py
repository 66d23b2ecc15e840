"""What a comparison says: rows, tests, verdicts, tables and pictures, on retrainings made by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from actsearch.compare import Budget, Comparison, Retraining, contestant, holm
from actsearch.compare.comparison import Entry
from actsearch.errors import RunError, UnknownNameError
from actsearch.report.comparison import describe, markdown, show_comparison, write
from actsearch.report.comparison_plots import draw_box_plots, draw_learning_curves
from actsearch.report.plots import pixels

KINDS = {"discovered": "discovered", "found 2": "discovered", "random 1": "random"}
GOOD = [0.91, 0.92, 0.905, 0.915, 0.925]
NOISE = [0.001, -0.002, 0.0015, 0.0, -0.001]
BASE = [v - 0.02 + e for v, e in zip(GOOD, NOISE, strict=True)]
ALL = {"discovered": GOOD, "relu": BASE, "gelu": [v - 0.001 * k for k, v in enumerate(BASE)], "silu": GOOD[::-1]}
ALL |= {"random 1": [v - 0.1 + 2 * e for v, e in zip(GOOD, NOISE, strict=True)]}


def made(
    values: Mapping[str, Sequence[float]],
    metric: str = "test_acc",
    formulas: Mapping[str, str] | None = None,
    **changes: object,
) -> Comparison:
    """A comparison with these values by seed; NaN is a failed retraining."""
    n = len(next(iter(values.values())))
    results = [
        Retraining(
            name,
            seed,
            {} if math.isnan(series[seed]) else {"test_loss": 1.0, metric: series[seed]},
            failure="the training loss was nan at the end of epoch 2" if math.isnan(series[seed]) else "",
            curve={"train_loss": [1.0, 0.5 + 0.01 * seed], "train_acc": [0.5, None]},
            seconds=2.0,
            step_seconds=0.01 * (1 + k),
            added_parameters=7 * k,
        )
        for seed in range(n)
        for k, (name, series) in enumerate(values.items())
    ]
    fields = {
        "metric": metric,
        "higher_is_better": metric.endswith("acc"),
        "seeds": tuple(range(n)),
        "budget": Budget(2),
        "entries": tuple(
            Entry(name, (formulas or {}).get(name, f"{name}(x)"), KINDS.get(name, "standard"), 4.0) for name in values
        ),
        "retrainings": tuple(results),
        "references": tuple(name for name in values if KINDS.get(name) == "discovered"),
        **changes,
    }
    return Comparison(**fields)  # type: ignore[arg-type]


def test_rows_and_tests_hold_the_statistics_of_scipy() -> None:
    comparison = made(ALL)
    others = [name for name in ALL if name != "discovered"]
    p_values = [stats.ttest_rel(GOOD, ALL[name]).pvalue for name in others]
    assert [test.other for test in comparison.tests] == others
    for name, p, corrected in zip(others, p_values, holm(p_values), strict=True):
        test = comparison.test(name)
        assert test.paired.mean == pytest.approx(np.mean(np.subtract(GOOD, ALL[name])), abs=1e-12)
        assert test.paired.p_t == pytest.approx(p)
        assert test.p_holm == pytest.approx(corrected)
    row = comparison.row("relu")
    assert (row.n, row.mean, row.sd) == (5, pytest.approx(np.mean(BASE)), pytest.approx(np.std(BASE, ddof=1)))
    assert (row.step_seconds, row.added_parameters) == (pytest.approx(0.02), 7)


def test_verdict_names_what_is_better_and_what_is_not() -> None:
    comparison = made(ALL)
    lines = comparison.verdict().splitlines()
    assert re.match(r"discovered - relu: \+2.01 points \(95 % CI .* n = 5\): significantly better$", lines[0])
    assert lines[2].endswith("no significant difference")
    assert comparison.summary() == (
        "The discovered function is significantly better than relu, gelu, random 1, and not significantly different "
        "from silu."
    )
    reverse = {**ALL, "discovered": [v - 0.3 for v in GOOD[1:] + GOOD[:1]]}
    assert made(reverse).summary() == "The discovered function is significantly worse than relu, gelu, silu, random 1."


@pytest.mark.parametrize("missing", [["random 1"], ["relu", "gelu", "silu"], ["random 1", "gelu"]])
def test_no_winner_without_its_controls(missing: list[str]) -> None:
    comparison = made({name: values for name, values in ALL.items() if name not in missing})
    assert "significantly better" not in comparison.verdict()
    assert "is not called better" in comparison.summary()
    assert "no winner is named" in comparison.summary()
    for name in missing:
        assert name.replace("random 1", "a random function") in comparison.summary()


def test_a_missing_standard_one_is_said_but_others_can_be_beaten() -> None:
    comparison = made({name: values for name, values in ALL.items() if name != "gelu"})
    assert "relu, random 1, and not significantly different from silu. Not compared with: gelu." in comparison.summary()


def test_a_random_function_made_of_gelu_is_not_gelu() -> None:
    comparison = made({"discovered": GOOD, "random 1": BASE}, formulas={"random 1": "gelu(tanh(x))"})
    assert comparison.missing_controls() == ["relu", "gelu", "silu"]


def test_classes_of_torch_count_as_standard_ones() -> None:
    values = {"discovered": GOOD, "ReLU": BASE, "GELU": BASE, "SiLU": BASE, "random 1": BASE}
    assert made(values).missing_controls() == []


# -- adapted ones --------------------------------------------------------------------------------------------------


def adapted(values: Mapping[str, Sequence[float]], **changes: object) -> Comparison:
    """With the kinds that `contestant` gives these names."""
    kinds = {name: contestant(name).kind for name in values if ":" in name or name == "own"}
    entries = [
        Entry(name, contestant(name).formula, kinds.get(name, KINDS.get(name, "standard")), math.nan) for name in values
    ]
    references = [entry.name for entry in entries if entry.kind in ("discovered", "adapted")]
    return made(values, **{"entries": tuple(entries), "references": tuple(references), **changes})  # type: ignore[arg-type]


ADAPTED = {"taafs:rbf": GOOD, "laaf:site": [v - 0.001 * k for k, v in enumerate(GOOD)], "own": BASE}


def test_adapted_ones_are_compared_with_controls_and_not_with_each_other() -> None:
    comparison = adapted({**ADAPTED, "relu": BASE})
    pairs = [(test.reference, test.other) for test in comparison.tests]
    assert pairs == [(a, b) for a in ("taafs:rbf", "laaf:site") for b in ("own", "relu")]
    values = {"zoo:mish": GOOD[::-1], **ADAPTED}
    both = adapted(values, references=("zoo:mish", "taafs:rbf", "laaf:site"))
    assert ("zoo:mish", "taafs:rbf") in [(test.reference, test.other) for test in both.tests]
    assert ("taafs:rbf", "laaf:site") not in [(test.reference, test.other) for test in both.tests]


def test_an_adapted_one_wins_against_what_it_starts_at_and_not_without_it() -> None:
    comparison = adapted(ADAPTED)
    assert "taafs:rbf is significantly better than own" in comparison.summary()
    assert comparison.missing_controls() == []
    assert any("No random functions" in note for note in comparison.notes())
    without = adapted({"taafs:rbf": GOOD, "relu": BASE})
    assert "significantly better" not in without.verdict()
    assert "own (the model's own activations); no winner is named without own" in without.summary()
    assert Comparison.from_dict(comparison.to_dict()).verdict() == comparison.verdict()


def test_added_parameters_are_shown_relative_to_the_model() -> None:
    comparison = adapted(ADAPTED)
    counted = [dataclasses.replace(r, parameters=1400) for r in comparison.retrainings]
    table = markdown(dataclasses.replace(comparison, retrainings=tuple(counted)))
    assert "| +7 (+0.5 %) |" in table
    assert "| +14 (+1 %) |" in table
    assert "| +7 |" in markdown(comparison)  # results from before the count


def test_losses_are_better_when_lower() -> None:
    comparison = made({"discovered": BASE, "relu": GOOD, "random 1": ALL["random 1"]}, "test_loss")
    assert comparison.says(comparison.test("relu")) == "better"
    assert comparison.says(comparison.test("random 1")) == "worse"
    assert "points" not in comparison.verdict()
    assert "lower is better" in markdown(comparison)


def test_failed_retrainings_are_told_and_left_out() -> None:
    failed = [*ALL["relu"][:3], math.nan, ALL["relu"][4]]
    comparison = made({**ALL, "relu": failed})
    row, test = comparison.row("relu"), comparison.test("relu")
    assert (row.n, row.failures[0][0]) == (4, 3)
    assert row.mean == pytest.approx(np.nanmean(failed))
    assert test.paired.n == 4
    assert test.paired.p_t == pytest.approx(stats.ttest_rel(np.delete(GOOD, 3), np.delete(failed, 3)).pvalue)
    assert "relu, seed 3: failed: the training loss was nan" in comparison.verdict()
    assert "(1 failed retraining(s) left out)" in comparison.verdict()
    assert any("flatters" in note for note in comparison.notes())
    assert "4 of 5 (1 failed)" in markdown(comparison)
    assert describe(next(r for r in comparison.retrainings if r.failure)).startswith("seed 3  relu: failed: the tr")


def test_what_sometimes_fails_is_no_winner() -> None:
    comparison = made({**ALL, "discovered": [*GOOD[:4], math.nan]})
    assert comparison.test("relu").significant
    assert "significantly better" not in comparison.summary()
    assert "It failed in 1 of 5 seeds." in comparison.summary()


def test_all_failed_is_still_a_comparison(tmp_path: Path) -> None:
    comparison = made({"discovered": GOOD, "relu": [math.nan] * 5, "random 1": BASE})
    assert comparison.test("relu").paired.n == 0
    assert not comparison.test("relu").significant
    assert "| failed |" in markdown(comparison)
    comparison.save(tmp_path)
    assert Comparison.load(tmp_path) == comparison
    assert len(write(comparison, tmp_path)) == 3


def test_one_seed_shows_no_difference() -> None:
    comparison = made({name: values[:1] for name, values in ALL.items()})
    assert "one seed shows no difference" in comparison.summary()
    assert "inf" not in markdown(comparison)
    assert "inf" not in comparison.verdict()


def test_the_same_difference_in_every_seed_is_not_tested() -> None:
    single = {"discovered": [0.985, 0.93, 0.115], "relu": [0.98, 0.925, 0.11], "random 1": [0.1, 0.2, 0.4]}
    comparison = made({name: np.float32(values).astype(float).tolist() for name, values in single.items()})
    assert "the same in every seed, so no interval" in comparison.verdict()
    assert comparison.verdict().splitlines()[0].endswith("no test is possible")
    assert parsed(markdown(comparison))[3][4:7] == ["-0.50", "–", "0.250"]


def test_several_discovered_ones_have_a_block_each_and_meet_once() -> None:
    comparison = made({"discovered": GOOD, "found 2": BASE, "relu": BASE[::-1], "random 1": ALL["random 1"]})
    pairs = [(test.reference, test.other) for test in comparison.tests]
    assert pairs == [("discovered", n) for n in ("found 2", "relu", "random 1")] + [
        ("found 2", n) for n in ("relu", "random 1")
    ]
    assert [t.p_holm for t in comparison.tests] == pytest.approx(holm([t.paired.p_t for t in comparison.tests]))
    assert markdown(comparison).count("| --- |") == 2
    assert "found 2 is significantly better than random 1" in comparison.summary()


def test_notes_say_what_so_few_seeds_could_have_shown() -> None:
    notes = " ".join(made(ALL).notes())
    assert "With 5 seeds the permutation test cannot give less than 0.062." in notes
    least = min(100 * test.paired.detectable for test in made(ALL).tests)
    assert f"a true difference of {least:.2g} to" in notes
    assert "all 4 tests" in notes


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_comparison_can_be_read_back(tmp_path: Path) -> None:
    comparison = made({**ALL, "relu": [*BASE[:4], math.nan]}, context={"data": {"name": "digits"}})
    comparison.save(tmp_path)
    loaded = Comparison.load(tmp_path)
    assert loaded.verdict() == comparison.verdict()
    assert loaded.to_dict() == comparison.to_dict()
    text = (tmp_path / "comparison.json").read_text()
    assert json.loads(text)["rows"][1]["values"][4] is None
    assert "NaN" not in text


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"metric": 1, "rows": [{}]}'])
def test_what_is_no_comparison_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read"):
        Comparison.load(tmp_path)
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(RunError, match="not a comparison"):
        Comparison.load(tmp_path)


def test_csv_has_a_line_for_each_retraining(tmp_path: Path) -> None:
    made({**ALL, "relu": [*BASE[:4], math.nan]}).save(tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert len(lines) == 25
    assert [float(line["value"]) for line in lines if line["activation"] == "discovered"] == GOOD
    (failed,) = (line for line in lines if line["failure"])
    assert (failed["activation"], failed["seed"], failed["value"], failed["test_acc"]) == ("relu", "4", "", "")
    assert lines[0]["step_seconds"] == "0.01"


def test_an_unknown_row_is_told() -> None:
    with pytest.raises(UnknownNameError, match="relu"):
        made(ALL).row("rellu")


# -- tables --------------------------------------------------------------------------------------------------------


def parsed(text: str) -> list[list[str]]:
    """The cells of a Markdown table; a bar counts unless it is escaped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_is_a_table() -> None:
    formulas = {"relu": "|x| * `a`", "discovered": "x_1 * <b>"}
    comparison = made(ALL, formulas=formulas)
    head, rule, *rows = parsed(markdown(comparison))
    assert len({len(cells) for cells in (head, rule, *rows)}) == 1
    assert [row[0] for row in rows] == list(ALL)
    named = dict(zip(head, rows[1], strict=True))
    assert named["formula"] == r"`\|x\| * 'a'`"
    assert named["n"] == "5"
    assert named["test accuracy (%), mean ± sd"] == "89.49 ± 0.67"
    low, high = (-100 * end for end in reversed(comparison.test("relu").paired.interval))
    shown = rf"{-100 * comparison.test('relu').paired.mean:+.2f} \[{low:+.2f}, {high:+.2f}\]"
    assert named[r"difference to discovered \[95 % CI\]"] == shown
    assert shown.startswith("-2.01")
    assert named["added parameters"] == "+7"
    assert named["time per step"] == "1.00 × relu (20 ms)"
    assert dict(zip(head, rows[2], strict=True))["time per step"] == "1.50 × relu (30 ms)"
    assert named["kept for backward (B/element)"] == "4"
    assert "peak GPU memory (MiB)" not in head


def test_memory_of_a_gpu_is_shown_where_there_is_one() -> None:
    comparison = made(ALL)
    on_gpu = tuple(dataclasses.replace(r, peak_memory=3 * 2**20, device="cuda") for r in comparison.retrainings)
    head, _, *rows = parsed(markdown(dataclasses.replace(comparison, retrainings=on_gpu)))
    assert head[-1] == "peak GPU memory (MiB)"
    assert {row[-1] for row in rows} == {"3"}


def test_terminal_shows_tables_and_summary() -> None:
    console = Console(file=io.StringIO(), width=160)
    show_comparison(made({**ALL, "relu": [*BASE[:4], math.nan]}), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "91.50 ± 0.79" in text
    assert "relu, seed 4: failed" in text
    assert "The discovered function is" in text


# -- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_show_every_seed(tmp_path: Path) -> None:
    comparison = made({**ALL, "relu": [*BASE[:4], math.nan]})
    (axes,) = draw_box_plots(comparison).axes
    points = [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 5]
    seen = [float(x) for offsets in points for x, _ in np.ma.filled(offsets, np.nan) if np.isfinite(x)]
    assert sorted(seen) == pytest.approx(sorted(100 * v for r in comparison.rows for v in r.values if v == v))
    assert [label.get_text() for label in axes.get_yticklabels()][1] == "relu\n(1 failed)"
    assert "accuracy (%)" in axes.get_xlabel()
    figure = draw_learning_curves(comparison)
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "training accuracy (%)"]
    assert len(figure.axes[0].lines) == 5 * (5 + 1)
    assert pixels(figure).std() > 10
    names = {path.name for path in write(comparison, tmp_path)}
    assert names == {"comparison.md", "box_plots.png", "learning_curves.png"}


def test_pictures_without_curves_or_with_one_epoch() -> None:
    comparison = made(ALL)
    bare = tuple(dataclasses.replace(r, curve={}) for r in comparison.retrainings)
    assert draw_learning_curves(dataclasses.replace(comparison, retrainings=bare)).texts
    one = tuple(dataclasses.replace(r, curve={"train_loss": [1.0]}) for r in comparison.retrainings)
    figure = draw_learning_curves(dataclasses.replace(comparison, retrainings=one, budget=Budget(1)))
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_one_that_did_not_learn_does_not_hide_the_others() -> None:
    def scale(first: float) -> str:
        return draw_box_plots(made({**ALL, "relu": [first, *BASE[1:]]})).axes[0].get_xscale()

    assert scale(BASE[0]) == "linear"
    assert scale(100 * BASE[0]) == "log"
    assert scale(-100 * BASE[0]) == "linear"
    axes = draw_box_plots(made(ALL)).axes[0]
    axes.figure.canvas.draw()
    label = axes.xaxis.label.get_window_extent()
    assert label.x0 >= 0
    assert label.x1 <= axes.figure.bbox.width
