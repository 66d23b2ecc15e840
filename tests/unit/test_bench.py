"""The bench counts and compares rightly, runs everything, and survives what fails. Nothing here asserts on times."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from actsearch import zoo
from actsearch.bench import foresight, measure, report, timing, whole
from actsearch.bench.compiled import CompiledDenseCell, plain_mixture
from actsearch.bench.contestants import CONTESTANTS, Contestant, Kit
from actsearch.bench.growth import SIZES, Size, grown
from actsearch.bench.measure import Effort, Measurer
from actsearch.bench.memory import allocations, highest, kept_bytes, peak_bytes, resident_growth
from actsearch.bench.results import Group, Results, Row, Whole
from actsearch.bench.steps import Searching
from actsearch.bench.targets import findings
from actsearch.bench.timing import OutOfTime, Ratio, Times, interleave, ratio, time_limit
from actsearch.bench.workloads import QUICK, WORKLOADS, Elements, Elementwise, Network
from actsearch.cell import MixedCell
from actsearch.cell.dense import DenseEvaluator
from actsearch.errors import NonFiniteError, SettingsError
from actsearch.ops.spec import registry
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.settings import RefineSettings, SearchSettings
from actsearch.space import SearchSpace
from actsearch.swap import swap

CPU = torch.device("cpu")
# aot_eager goes all the way of a compilation, with its backward pass, except for the kernels, which take a minute.
SPACE = {
    "name": "three slots",
    "cell": {
        "u1": {"inputs": "x", "candidates": ["relu", "silu", "beta_mul"]},
        "u2": {"inputs": "x", "candidates": ["identity", "tanh", "square"]},
        "b1": {"inputs": ["u1", "u2"], "candidates": ["add", "mul", "max"]},
    },
}
KIT = Kit(SearchSpace.load(SPACE), zoo.load("fashion_vit"), backend="aot_eager")
ONCE = Effort(rounds=1)
# Dynamo looks at the gradient of what is no leaf, and hides the warning where warnings are no errors.
COMPILES = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


def quick(name: str) -> Network:
    workload = QUICK[name](CPU)
    assert isinstance(workload, Network)
    return workload


# -- memory --------------------------------------------------------------------------------------------------------


def test_the_peak_is_the_greatest_sum_of_allocations_so_far() -> None:
    assert highest([10, 20, -10, 5, -25, 12]) == 30
    assert highest([-10, 5]) == 0
    assert highest([]) == 0


def test_allocations_and_releases_are_seen_in_order() -> None:
    def step() -> Tensor:
        a = torch.empty(1000)
        b = torch.empty(500)
        del a
        c = torch.empty(2000)
        del b
        return c

    assert allocations(step) == [4000, 2000, -4000, 8000, -2000]
    assert peak_bytes(step, CPU) == 10_000
    assert kept_bytes(step, CPU) == 8000


def test_what_the_step_before_left_and_this_one_frees_does_not_count() -> None:
    left: list[Tensor] = []

    def step() -> None:
        left.clear()
        left.append(torch.empty(1000))

    assert allocations(step) == [-4000, 4000]
    assert peak_bytes(step, CPU) == 0


def test_the_peak_of_relu_forward_and_backward_is_its_output_and_gradient() -> None:
    step = Elementwise(1 << 16).steps(CONTESTANTS["relu"], KIT, CPU)["weight"]
    assert peak_bytes(step, CPU) == 2 * 4 * (1 << 16)


def test_resident_memory_grows_by_what_is_touched() -> None:
    growth = resident_growth(lambda: torch.ones(1 << 24))
    if growth is None:
        pytest.skip("the system does not let us reset the peak")
    assert 0.9 * (1 << 26) < growth < 1.5 * (1 << 26)


def test_memory_that_is_not_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "available_bytes", lambda device: 1 << 30)
    assert foresight.reason_against(float(1 << 29), CPU) is None
    assert foresight.reason_against(float(1 << 31), CPU) == "not tried: its cells need about 2.0 GiB, 1.0 GiB are free"


def test_what_an_element_needs_leaves_out_what_does_not_grow() -> None:
    """The table's knots are no part of it: the lookup keeps its output, and at its peak that and the gradient."""
    found = foresight.per_element(CONTESTANTS["table"], KIT, CPU)
    assert 4 <= found.kept < 16
    assert found.total(Elements(100, 10)) == 100 * found.kept + 10 * found.peak


# -- timing --------------------------------------------------------------------------------------------------------


def test_steps_are_measured_in_turn() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    times = {name: Times() for name in "abc"}
    interleave(steps, times, CPU, rounds=2)
    assert order == list("abcabc")
    assert all(len(t.seconds) == 2 and t.median >= 0 for t in times.values())


def test_a_slow_step_is_measured_once_at_least_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "clock", lambda step, calls, device: step())
    steps = {"slow": lambda: 8.0, "fast": lambda: 1.0}
    times = {name: Times() for name in steps}
    interleave(steps, times, CPU, rounds=4, budget=20.0)
    assert times["fast"].seconds == [1, 1, 1, 1]
    assert times["slow"].seconds[:2] == [8, 8]
    assert all(math.isnan(s) for s in times["slow"].seconds[2:])


def test_a_step_that_breaks_is_left_out_and_told_of() -> None:
    broken: list[str] = []

    def fail() -> None:
        raise RuntimeError("no")

    times = {"a": Times(), "b": Times()}
    interleave({"a": fail, "b": lambda: None}, times, CPU, 3, failed=lambda key, error: broken.append(f"{key} {error}"))
    assert broken == ["a no"]
    assert all(math.isnan(s) for s in times["a"].seconds)
    assert len(times["a"].seconds) == len(times["b"].seconds) == 3
    with pytest.raises(RuntimeError, match="no"):
        interleave({"a": fail}, {"a": Times()}, CPU, 1)


def test_ratios_are_paired_within_a_round() -> None:
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == Ratio(2.0, 2.0, 2.5, 3)
    assert ratio([2.0, math.nan, 6.0], [1.0, 10.0, math.nan]) == Ratio(2.0, 2.0, 2.0, 1)
    assert ratio([math.nan], [1.0]) is None


def test_a_time_limit_ends_what_takes_longer() -> None:
    def forever() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                pytest.fail("the limit is no Exception, so nothing swallows it")

    with pytest.raises(OutOfTime, match=r"0\.05 s"), time_limit(0.05):
        forever()
    with time_limit(60.0):
        pass


# -- what is timed is what is searched -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SearchSpace.names())
def test_the_plain_mixture_is_the_dense_evaluator(name: str) -> None:
    space = SearchSpace.load(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-4, 4, 101, dtype=torch.float64).requires_grad_()
    weights = {
        s.name: torch.rand(len(s.candidates), generator=generator, dtype=torch.float64).softmax(0).requires_grad_()
        for s in space.slots
    }
    parameters = {
        f"{s.name}/{op}/{p.name}": torch.tensor(p.mean, dtype=torch.float64).add(0.1).requires_grad_()
        for s in space.slots
        for op in s.candidates
        for p in registry[op].parameters
    }
    survivors = {s.name: s.candidates for s in space.slots}
    places = {s.name: list(range(len(s.candidates))) for s in space.slots}
    leaves = [x, *weights.values(), *parameters.values()]
    found, expected = (
        (y, torch.autograd.grad(y.sum(), leaves))
        for y in (
            plain_mixture(space, survivors)(x, weights, parameters),
            DenseEvaluator(space, places)(x, weights, parameters),
        )
    )
    torch.testing.assert_close(found, expected)


@COMPILES
def test_a_compiled_cell_computes_its_mixture_also_after_drops() -> None:
    cell = CompiledDenseCell(KIT.space, backend="aot_eager")
    site = cell.add_site("site")
    x = torch.linspace(-3, 3, 60).reshape(3, 20).requires_grad_()
    for _ in range(2):
        cell.resample()
        assert cell._drawn is not None
        weights = {slot: w[0] for slot, w in cell._drawn.items()}
        left = {
            s.name: [s.candidates.index(op) for op in ops]
            for s, ops in zip(cell.space.slots, cell.survivors.values(), strict=True)
        }
        expected = DenseEvaluator(cell.space, left)(x, weights, dict(cell.op_parameters.items()))
        torch.testing.assert_close(site(x), expected)
        cell.drop_weakest()


def test_a_compiled_cell_draws_again_at_each_resample() -> None:
    cell = CompiledDenseCell(KIT.space, backend="aot_eager")
    cell.resample()
    first = cell._drawn
    cell.resample(repeat=True)
    again = cell._drawn
    cell.resample()
    assert first is not None
    assert again is not None
    assert cell._drawn is not None
    assert all(torch.equal(first[slot], again[slot]) for slot in first)
    assert not any(torch.equal(first[slot], cell._drawn[slot]) for slot in first)


def state(search: BilevelSearch) -> dict[str, Tensor]:
    """α, op parameters and weights, copied; batch normalisation's statistics with them."""
    return {name: value.clone() for name, value in search.state_dict().items() if "cells.network.draws" not in name}


def searching() -> Searching:
    return quick("resnet20").searching(CONTESTANTS["dense"], KIT, CPU)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """`weights`, `alpha` or both: what differs."""
    different = [name for name in before if not torch.equal(before[name], after[name])]
    return {
        "alpha" if "alpha" in name or "op_parameters" in name else "weights"
        for name in different
        if name not in ("steps", "cells.network.evaluator.elements")
    }


def test_each_level_can_be_run_alone() -> None:
    s = searching()
    start = state(s.search)
    s.alpha()
    middle = state(s.search)
    assert changed(start, middle) == {"alpha"}
    s.weight()
    assert changed(middle, state(s.search)) == {"weights"}


def test_two_levels_alone_are_the_pair_of_steps_that_a_search_does() -> None:
    alone, pair = searching(), searching()
    alone.search.settings.seed = pair.search.settings.seed
    pair.pair()
    alone.alpha()
    alone._count = 0  # a batch's place seeds its dropout
    alone.weight()
    expected, found = state(pair.search), state(alone.search)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert set(different) <= {"steps"}


def test_a_pair_of_steps_is_that_of_a_search_by_the_trainer() -> None:
    s = searching()
    s.pair()
    workload = quick("resnet20")
    task, cell = workload.task(), MixedCell(KIT.space, evaluator="dense")
    swap(task, lambda site: cell.add_site(site.name))
    settings = SearchSettings(epochs=1, warm_epochs=0, shrink=False, refine=RefineSettings(enabled=False))
    search = BilevelSearch(task, {"network": cell}, settings)
    batch = workload.batch(CPU)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(search, DataLoader([{"weights": batch, "arch": batch}], batch_size=None))
    expected, found = state(search), state(s.search)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert set(different) <= {"epochs_done"}


def test_a_step_that_is_not_finite_raises() -> None:
    s = searching()
    with torch.no_grad():
        next(s.search.task.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError):
        s.weight()


def test_networks_of_a_workload_start_alike_and_see_the_same_batch() -> None:
    workload = quick("vit_tiny")
    for a, b in zip(workload.task().parameters(), workload.task().parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(workload.batch(CPU), workload.batch(CPU), strict=True))


def test_elements_are_those_of_all_sites() -> None:
    first = 8 * 4 * 8 * 8  # batch 8, width 4, on 8×8; then two stages, each of half the sites' elements
    assert quick("resnet20").elements(CPU) == Elements(3 * first + 2 * first // 2 + 2 * first // 4, first)
    assert Elementwise(5).elements(CPU) == Elements(5, 5)


@pytest.mark.parametrize("name", [n for n in WORKLOADS if n != "elementwise"])
def test_workloads_have_the_published_models(name: str) -> None:
    workload = WORKLOADS[name](CPU)
    assert isinstance(workload, Network)
    millions = sum(p.numel() for p in workload.task().parameters()) / 1e6
    assert millions == pytest.approx({"resnet20": 0.27, "vit_tiny": 4.3, "minigpt": 11.0}[name], rel=0.05)


# -- everything runs -----------------------------------------------------------------------------------------------


@pytest.fixture
def measurer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measurer]:
    monkeypatch.setattr(timing, "LEAST", 0.0)
    yield Measurer(KIT, CPU, ONCE)
    torch.compiler.reset()  # code compiled for one test is not to count against the limit of another


@COMPILES
@pytest.mark.parametrize("name", QUICK)
def test_every_contestant_leaves_figures_on_every_workload(name: str, measurer: Measurer) -> None:
    workload = QUICK[name](CPU)
    if name != "elementwise":  # once is enough for a compilation with its backward pass
        measurer.kit = dataclasses.replace(KIT, backend="eager")
    group = Group(name, workload.label, workload.detail)
    measurer.workload(workload, list(CONTESTANTS), ["weight", "alpha"], group)
    assert [row.note for row in group.rows if row.note] == []
    steps = {(row.contestant, row.step) for row in group.rows if row.contestant != measure.COPY}
    assert steps == {(c.name, "weight") for c in CONTESTANTS.values()} | {
        (c.name, "alpha") for c in CONTESTANTS.values() if c.cell is not None
    }
    for row in group.rows:
        found = group.to_baseline(row)
        assert found is not None
        assert math.isfinite(found.median)
        assert row.memory is not None
        assert row.memory > 0 or row.contestant == measure.COPY
    assert group.to_baseline(group.rows[0]) == Ratio(1.0, 1.0, 1.0, 1)
    assert group.memory_to_baseline(group.rows[0]) == 1.0


def test_a_contestant_that_fails_leaves_its_reason_and_the_others_their_figures(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(kit: Kit) -> MixedCell:
        raise RuntimeError("the compiler has no idea\nand says so at length")

    monkeypatch.setitem(CONTESTANTS, "dense", Contestant("dense", "dense, eager", cell=broken))
    group = Group("elementwise", "element-wise", "")
    measurer.workload(Elementwise(64), ["dense", "gelu"], ["weight", "alpha"], group)
    notes = {(row.contestant, row.step): row.note for row in group.rows}
    reason = "failed: RuntimeError: the compiler has no idea"
    assert notes["dense", "weight"] == notes["dense", "alpha"] == reason
    row = group.row("gelu")
    assert row is not None
    assert group.to_baseline(row) is not None
    assert group.memory_to_baseline(row) is not None


def test_a_contestant_that_takes_too_long_leaves_that_as_its_reason(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(kit: Kit) -> MixedCell:
        while True:
            sum(range(1000))

    monkeypatch.setitem(CONTESTANTS, "dense", Contestant("dense", "dense, eager", cell=slow))
    measurer.effort = Effort(rounds=1, limit=2.0)
    group = Group("elementwise", "element-wise", "")
    measurer.workload(Elementwise(64), ["dense"], ["weight"], group)
    assert [row.note for row in group.rows] == ["", "failed: took longer than 2 s", ""]


def test_a_contestant_that_needs_too_much_memory_is_not_tried(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "available_bytes", lambda device: 100)
    group = Group("elementwise", "element-wise", "")
    measurer.workload(Elementwise(64), ["table"], ["weight"], group)
    row = group.row("table")
    assert row is not None
    assert row.note.startswith("not tried: its cells need about")
    assert not row.times.seconds


# -- growth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_grown_space_has_its_size(size: Size) -> None:
    space = grown(size)
    assert (space.n_candidates, len(space.slots)) == (size.candidates, size.slots)
    assert all(len(set(slot.candidates)) == len(slot.candidates) for slot in space.slots)
    cell = MixedCell(space, evaluator="table")
    cell.add_site("a")
    cell.resample()
    assert cell.evaluator._uses_table  # what it costs is what growth is about


def test_six_slots_are_the_published_graph() -> None:
    published = SearchSpace.load("grafs")
    found = grown(Size(110, 6))
    assert [(s.name, s.inputs) for s in found.slots] == [(s.name, s.inputs) for s in published.slots]


def test_a_space_cannot_grow_beyond_the_registry() -> None:
    with pytest.raises(SettingsError, match="6 slots hold from 6 to"):
        grown(Size(300, 6))
    with pytest.raises(SettingsError, match="6 slots hold from 6 to"):
        grown(Size(5, 6))


def test_growth_measures_every_size(measurer: Measurer) -> None:
    group = Group("growth", "element-wise", "", "growth")
    sizes = (Size(10, 6), Size(36, 12))
    measurer.growth(Elementwise(64), ["table"], group, sizes)
    assert [(row.contestant, row.candidates, row.slots) for row in group.rows] == [
        ("relu", None, None),
        ("table", 10, 6),
        ("table", 36, 12),
    ]
    assert all(group.to_baseline(row) is not None for row in group.rows)


# -- whole searches ------------------------------------------------------------------------------------------------


def test_the_published_schedule_has_its_numbers() -> None:
    p = whole.Published()
    assert p.pairs(64) == 586
    assert p.validation(64) == 196
    survivors = p.survivors(110, 6)
    assert len(survivors) == 50
    assert survivors[:2] == [110, 110]
    assert survivors[-1] == 6
    assert survivors == sorted(survivors, reverse=True)


def test_a_whole_search_is_the_sum_of_its_steps() -> None:
    p = whole.Published()
    pair = dict.fromkeys(whole.levels(110, 6), 2.0)
    found = whole.search_seconds(p, 64, pair, warm_pair=1.0, validation=0.5, slots=6)
    assert found == 586 * (49 * 2.0 + 1.0) + 50 * 196 * 0.5


def test_between_measured_survivors_it_is_linear() -> None:
    assert whole.levels(110, 6) == [6, 32, 58, 84, 110]
    seconds = {6: 1.0, 58: 2.0, 110: 5.0}
    assert [whole.interpolated(seconds, n) for n in (6, 32, 58, 84, 110)] == [1.0, 1.5, 2.0, 3.5, 5.0]


def test_a_whole_search_is_extrapolated_from_the_steps_of_a_network(measurer: Measurer) -> None:
    found: list[Whole] = []
    whole.measure_whole(measurer, quick("resnet20"), ["table"], ["relu"], found)
    assert [w.note for w in found] == [""]
    assert found[0].ratios["relu"].n == 1
    assert found[0].ratios["relu"].median == pytest.approx(found[0].search / found[0].retraining["relu"])
    assert found[0].search_epochs == pytest.approx(60 * 50 / found[0].search)


# -- the report ----------------------------------------------------------------------------------------------------


def row(contestant: str, step: str, seconds: list[float], memory: int | None = None, **more: object) -> Row:
    label = CONTESTANTS[contestant].label
    return Row(contestant, label, step, Times(seconds), memory, **more)  # type: ignore[arg-type]


def some_results() -> Results:
    resnet = Group("resnet20", "ResNet-20", "batch 64, 3×32×32")
    resnet.rows = [
        row("relu", "weight", [1.0, 2.0], 100),
        row("gelu", "weight", [1.0, 2.0], 110),
        row("dense", "weight", [math.nan, math.nan], note="not tried: too large"),
        row("table", "weight", [1.4, 2.8], 120, candidates=110, slots=6),
        row("table", "alpha", [2.2, 4.4], 131, candidates=110, slots=6),
    ]
    growth = Group("growth", "ResNet-20", "batch 64", "growth")
    growth.rows = [
        row("relu", "weight", [1.0], 100),
        row("table", "alpha", [2.0], 1, candidates=30, slots=6),
        row("table", "alpha", [2.2], 1, candidates=30, slots=15),
        row("table", "alpha", [2.2], 1, candidates=300, slots=15),
        row("dense", "alpha", [math.nan], candidates=300, slots=15, note="failed: no"),
    ]
    search = Whole("table", "table", 7200.0, {"relu": 10_000.0}, {"relu": Ratio(0.72, 0.7, 0.75, 2)}, 0.4, {"relu": 1})
    machine = {"date": "2026-01-02T03:04:05", "gpu": None, "processor": "a | b", "cores": 2, "threads": 2}
    machine |= {"dtype": "float32", "actsearch": "0", "torch": "2", "python": "3", "platform": "here"}
    settings = {"space": "grafs", "rounds": 2, "winner": "x"}
    return Results(machine, settings, [resnet, growth], [search], ["it was loud"], finished=True)


def test_targets_are_set_against_what_was_measured() -> None:
    found = {f.what: (f.measured, f.most, f.met) for f in findings(some_results())}
    assert found == {
        "ResNet-20: table weight step / ReLU step": (pytest.approx(1.4), 1.5, True),
        "ResNet-20: table α step / ReLU step": (pytest.approx(2.2), 2.0, False),
        "ResNet-20: peak memory of either table step / ReLU step": (pytest.approx(1.31), 1.3, False),
        "α step, 300 candidates (15 slots) / 30 (6 slots)": (pytest.approx(1.1), 1.2, True),
        "α step, 300 candidates (15 slots) / 30 (15 slots)": (pytest.approx(1.0), 1.2, True),
        "whole search (table) / one retraining with relu": (0.72, 0.8, True),
    }


def test_the_winner_is_set_against_gelu_in_the_same_round() -> None:
    bare = Group("elementwise", "element-wise", "")
    bare.rows = [
        row("relu", "weight", [1.0, 9.0]),
        row("gelu", "weight", [2.0, 20.0]),
        row("winner_compiled", "weight", [3.0, 30.0]),
    ]
    results = dataclasses.replace(some_results(), groups=[bare], whole=[])
    assert [(f.measured, f.met) for f in findings(results)] == [(1.5, False)]


def test_bandwidth_is_the_least_traffic_as_a_fraction_of_a_copys() -> None:
    bare = Group("elementwise", "element-wise", "")
    bare.rows = [row("relu", "weight", [5.0]), Row(measure.COPY, "copy", "weight", Times([1.0]))]
    sheet = next(s for s in report.sheets(Results({}, {}, [bare])) if s.title.startswith("Memory bandwidth"))
    # Five times as long as a copy, for 20 bytes an element instead of 8.
    assert sheet.rows == [("ReLU", "50.0%", report.NONE)]


@pytest.mark.parametrize("width", [80, 120])
def test_tables_can_be_read_on_a_terminal(width: int) -> None:
    console = Console(width=width, record=True, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report.show(some_results(), console)
    console.file.close()
    text = console.export_text()
    assert "1.40 [1.40, 1.40]" in text
    assert "dense, eager: not tried: too large" in text
    assert "dense, eager, 300 candidates in 15 slots: failed: no" in text
    assert "warning: it was loud" in text
    assert max(map(len, text.splitlines())) <= width


def test_markdown_and_csv_hold_the_figures() -> None:
    text = report.markdown(some_results())
    assert text.startswith("# 2026-01-02: a | b\n")
    assert "| table | 1.40 [1.40, 1.40] | 2.20 [2.20, 2.20] | 1.20 | 1.31 |" in text
    assert "Interrupted" not in text
    assert "Interrupted" in report.markdown(dataclasses.replace(some_results(), finished=False))
    lines = report.comma_separated(some_results()).splitlines()
    assert lines[1] == "resnet20,relu,weight,,,1.5,1.0,1.0,1.0,2,100,1.0,,"
    assert lines[3] == "resnet20,dense,weight,,,,,,,0,,,,not tried: too large"


def test_json_has_no_numbers_that_are_not_finite() -> None:
    text = json.dumps(some_results().to_dict(), allow_nan=False)
    rows = json.loads(text)["groups"][0]["rows"]
    assert rows[2]["times"]["seconds"] == [None, None]
    assert rows[3]["ratio"]["median"] == pytest.approx(1.4)
    assert rows[3]["memory_ratio"] == pytest.approx(1.2)
