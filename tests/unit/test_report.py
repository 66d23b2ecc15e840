"""What people look at: facts against closed forms, figures by their parts, logs read back."""

from __future__ import annotations

import io
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from actsearch.activation import Activation
from actsearch.cell.mixed import MixedCell
from actsearch.errors import SettingsError
from actsearch.genotype import Genotype
from actsearch.ops.clip import Clip
from actsearch.ops.spec import registry
from actsearch.report.curve import central_range, derivatives, with_jumps_broken
from actsearch.report.facts import facts
from actsearch.report.plots import draw_activation, draw_cell, draw_probabilities, pixels, save
from actsearch.report.progress import SearchProgress
from actsearch.report.tensorboard import TensorBoardObserver, TrialsBoard, describe_function, is_drawn
from actsearch.report.terminal import ComparisonRow, comparison_table, derivative_text, duration, show
from actsearch.report.voice import Voice
from actsearch.search.monitor import Snapshot, snapshot_cell
from actsearch.search.schedule import drop_times
from actsearch.search.strategies import TrialRecord
from actsearch.search.strategies.mapping import to_params
from actsearch.space import SearchSpace


def series(epochs: int, space: str = "grafs", cells: tuple[str, ...] = ("network",), seed: int = 0) -> list[Snapshot]:
    """Snapshots of real cells whose α drift and whose candidates are dropped by the published schedule."""
    generator = torch.Generator().manual_seed(seed)
    mixed = {name: MixedCell(space, seed=seed + k) for k, name in enumerate(cells)}
    drift = {(n, s): torch.randn(a.shape, generator=generator) for n, c in mixed.items() for s, a in c.alpha.items()}
    found = []
    for epoch in range(1, epochs + 1):
        sites = {
            f"{name}.{k}": (1 + 0.2 * k) * torch.randn(4096, generator=generator) for name in cells for k in range(2)
        }
        for name, cell in mixed.items():
            times = drop_times(cell.space.n_candidates, len(cell.space.slots), epochs, 2)
            with torch.no_grad():
                for slot, alpha in cell.alpha.items():
                    noise = torch.randn(alpha.shape, generator=generator)
                    alpha += (3 / epochs) * drift[name, slot] + 0.05 * noise
            while cell.space.n_candidates - cell.n_survivors < sum(t <= epoch for t in times):
                cell.drop_weakest()
        recorded = {name: torch.cat([sites[f"{name}.0"], sites[f"{name}.1"]]) for name in cells}
        losses = {
            level: offset + 2 * math.exp(-epoch / 8) for level, offset in zip(LEVELS, (0.2, 0.4, 0.3), strict=True)
        }
        found.append(
            Snapshot(
                epoch=epoch,
                epochs=epochs,
                step=100 * epoch,
                phase="warm start" if epoch == 1 else "shrinking" if epoch < epochs else "discrete",
                cells={name: snapshot_cell(cell, recorded[name]) for name, cell in mixed.items()},
                losses=losses,
                metrics={**{f"loss/{k}": v for k, v in losses.items()}, "train/accuracy": 1 - math.exp(-epoch / 10)},
                learning_rates={"weights": 0.1, "alpha": 6e-4},
                skipped=0,
                seconds=2.0 * epoch,
                pre_activations=sites,
            )
        )
    return found


LEVELS = ("train", "arch", "val")


def of_op(op: str, clip: str = "none") -> Activation:
    return Activation(Genotype.of_op(op, Clip(clip)))  # type: ignore[arg-type]


# -- facts ---------------------------------------------------------------------------------------------------------


def test_facts_of_relu() -> None:
    found = facts(of_op("relu", "hard"))
    assert str(found.at_minus_infinity) == "→ 0"
    assert str(found.at_plus_infinity) == "→ 10 (clipped)"
    assert str(facts(of_op("relu")).at_plus_infinity) == "→ ∞"
    assert (found.at_zero, found.slopes_at_zero) == (0, (0, 1))
    assert (found.minimum.value, found.maximum.value, found.maximum.x) == (0, 5, 5)
    assert (found.lipschitz, found.smoothness, found.monotone) == (1, 0, "increasing")
    assert found.zeros == ((-5.0, 0.0),)
    assert found.gain == pytest.approx(math.sqrt(2), rel=1e-4)
    assert found.dead_share is None
    assert found.clipped_share is None


def test_facts_of_silu() -> None:
    found = facts(of_op("silu"))
    assert found.minimum.x == pytest.approx(-1.2784645, abs=1e-5)
    assert found.minimum.value == pytest.approx(registry["silu"].range[0], abs=1e-12)
    assert found.lipschitz == pytest.approx(1.09983932, abs=1e-7)
    assert (found.monotone, found.smoothness) == (None, math.inf)
    assert found.at_minus_infinity.value == 0
    assert found.zeros == ((0.0, 0.0),)


def test_facts_of_tanh() -> None:
    found = facts(of_op("tanh", "hard"))
    assert (found.at_minus_infinity.value, found.at_plus_infinity.value) == (-1, 1)
    assert not found.at_plus_infinity.clipped
    assert (found.lipschitz, found.monotone) == (1, "increasing")
    assert found.clipped_share is None


def test_facts_of_a_square_find_the_zero_that_only_touches() -> None:
    found = facts(lambda x: (x - 0.3) ** 2)
    assert len(found.zeros) == 1
    assert found.zeros[0][0] == pytest.approx(0.3, abs=1e-5)
    assert (found.at_minus_infinity.value, found.at_plus_infinity.value) == (math.inf, math.inf)
    assert found.smoothness is None
    assert facts(of_op("square")).zeros == ((0.0, 0.0),)


def test_a_limit_is_not_claimed_where_there_is_none() -> None:
    assert facts(torch.sin).at_plus_infinity.value is None
    assert facts(lambda x: x * torch.sin(x)).at_plus_infinity.value is None
    assert facts(lambda x: torch.sin(x) / (1 + x * x)).at_plus_infinity.value == 0
    assert facts(of_op("asinh")).at_minus_infinity.value == -math.inf
    assert facts(of_op("asinh", "smooth")).at_minus_infinity.clipped


def test_zeros_are_found_and_poles_and_jumps_are_not_among_them() -> None:
    assert [a for a, _ in facts(torch.sin).zeros] == pytest.approx([-math.pi, 0, math.pi])
    assert facts(lambda x: 1 / x).zeros == ()
    assert facts(lambda x: torch.where(x < 1, -1.0, 1.0).to(x.dtype) + 0 * x).zeros == ()
    assert facts(lambda x: torch.ones(())).monotone == "constant"


def test_dead_and_clipped_shares_are_counted_on_the_inputs() -> None:
    inputs = torch.tensor([-3.0, -2.0, 0.5, 11.0])
    found = facts(of_op("relu", "hard"), inputs)
    assert found.dead_share == 0.75
    assert found.clipped_share == 0.25
    assert facts(of_op("tanh", "hard"), inputs).clipped_share == 0


def test_every_operation_has_finite_facts_within_milliseconds() -> None:
    inputs = torch.randn(1000)
    started = time.perf_counter()
    for spec in registry.of_arity(1):
        found = facts(of_op(spec.id, "hard"), inputs)
        assert math.isfinite(found.lipschitz)
        assert all(value for _, value in found.rows())
    assert time.perf_counter() - started < 5


def test_the_range_is_that_of_the_inputs_or_the_default() -> None:
    assert central_range(None) == (-5, 5)
    assert central_range(torch.tensor([math.nan, math.inf])) == (-5, 5)
    low, high = central_range(torch.full((10,), 2.0))
    assert low < 2 < high
    low, high = central_range(torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([1e9])]))
    assert (low, high) == pytest.approx((-0.998, 0.998), abs=1e-3)


# -- figures -------------------------------------------------------------------------------------------------------


def test_a_jump_of_the_derivative_is_a_gap_and_a_steep_stretch_is_not() -> None:
    x = np.linspace(-5, 5, 2001)
    f, slope, bend = derivatives(torch.relu, x, 2)
    assert not np.isnan(with_jumps_broken(torch.relu, 0, x, f, slope)[1]).any()
    places, broken = with_jumps_broken(torch.relu, 1, x, slope, bend)
    assert np.isnan(broken).sum() == 1
    assert places[np.isnan(broken)] == pytest.approx(0, abs=1e-6)
    # The spikeless line still holds both one-sided values.
    assert set(broken[~np.isnan(broken)]) == {0.0, 1.0}

    def steep(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(2000 * (x - 0.0012))

    f, slope = derivatives(steep, x, 1)
    assert not np.isnan(with_jumps_broken(steep, 0, x, f, slope)[1]).any()


def test_an_activation_is_drawn_in_three_panels_over_its_inputs() -> None:
    inputs = 2 * torch.randn(5000)
    figure = draw_activation(of_op("silu", "hard"), inputs, title="epoch 3")
    panels = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in panels] == ["f(x)", "f′(x)", "f″(x)"]
    assert panels[-1].get_xlim() == pytest.approx(central_range(inputs))
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["ReLU", "GELU", "SiLU"]
    assert figure.get_suptitle().split("\n") == ["epoch 3", "f(x) = silu(x)  (hard\u00a0clip\u00a0at\u00a010)"]
    assert all(any(type(patch).__name__ == "StepPatch" for patch in axes.patches) for axes in panels)
    assert pixels(figure).shape == (660, 640, 3)


def test_a_plain_callable_and_a_constant_can_be_drawn() -> None:
    assert len(draw_activation(torch.sin, title="sin").axes) == 3
    assert pixels(draw_activation(lambda x: torch.ones(()))).dtype == np.uint8


def test_probabilities_have_a_panel_a_slot_and_a_row_a_candidate() -> None:
    snapshots = series(8)
    figure = draw_probabilities([s.cells["network"].probabilities for s in snapshots])
    space = SearchSpace.load("grafs")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [slot.name for slot in space.slots]
    final = snapshots[-1].cells["network"].genotype
    for axes, slot in zip(panels, space.slots, strict=True):
        labels = [text for text in axes.texts if text.get_text() != "◀"]
        assert tuple(label.get_text() for label in labels) == slot.candidates
        assert [t.get_text() for t in labels if t.get_fontweight() == "bold"] == [final.slots[slot.name].op]
        image = axes.images[0].get_array()
        assert image is not None
        assert image.shape == (len(slot.candidates), 8)
        assert (~np.ma.getmaskarray(image)[:, -1]).sum() == 1  # all others are dropped, thus blank
    assert figure.axes[-1].get_ylabel().startswith("probability")
    pixels(figure)


def test_probabilities_of_no_epoch_are_a_message() -> None:
    assert "no epoch" in draw_probabilities([]).texts[0].get_text()


@pytest.mark.parametrize("name", SearchSpace.names())
def test_a_cell_is_drawn_with_every_slot_and_every_edge(name: str) -> None:
    space = SearchSpace.load(name)
    axes = draw_cell(space).axes[0]
    written = [text.get_text() for text in axes.texts]
    assert {slot.name for slot in space.slots} <= set(written)
    assert sum("candidate" in text for text in written) == len(space.slots)
    arrows = [patch for patch in axes.patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(arrows) == 1 + sum(slot.arity for slot in space.slots)


def test_figures_are_saved_whole_by_their_ending(tmp_path: Path) -> None:
    figure = draw_cell(SearchSpace.load("tiny"))
    assert save(figure, tmp_path / "cell.png").read_bytes().startswith(b"\x89PNG")
    first = save(figure, tmp_path / "cell.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert save(draw_cell(SearchSpace.load("tiny")), tmp_path / "again.svg").read_bytes() == first
    with pytest.raises(SettingsError, match="figure format 'gif'"):
        save(figure, tmp_path / "cell.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.svg", "cell.png", "cell.svg"]


def test_figures_are_unknown_to_pyplot() -> None:
    draw_activation(torch.sin)
    # Lightning's metrics may have imported it; nothing of ours is registered there.
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


# -- terminal ------------------------------------------------------------------------------------------------------


def printed(*things: object, encoding: str = "utf-8", width: int = 120) -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width)
    for thing in things:
        if isinstance(thing, Genotype):
            show(thing, torch.randn(100), console)
        else:
            console.print(thing)
    return raw.getvalue().decode(encoding)


def test_show_prints_formula_derivative_latex_clip_and_facts() -> None:
    genotype = SearchSpace.load("tiny").genotype({"u1": "square", "u2": "sigmoid", "b1": "mul"})
    text = printed(genotype)
    assert genotype.formula in text
    assert genotype.to_latex() in text
    assert "hard, at 10" in text
    assert "second-moment gain" in text
    assert "\x1b" not in text
    assert "?" not in printed(genotype, encoding="ascii")


def test_a_derivative_is_derived_or_excused() -> None:
    assert derivative_text(Genotype.of_op("square")) == "2*x"
    for seed in range(10):
        text = derivative_text(SearchSpace.load("full").random(seed))
        assert text
        assert len(text) <= 400


def test_the_comparison_table_holds_every_number() -> None:
    rows = [
        ComparisonRow("discovered [x]", 5, 91.234, 0.211, 0.5, (0.1, 0.9), 0.0123, kind="discovered"),
        ComparisonRow("ReLU", 5, 90.734, 0.3),
        ComparisonRow("random 1", 1, 80.0, None, -10.7, (-12.0, -9.4), 1e-9),
    ]
    console = Console(file=io.StringIO(), width=120)
    lines = printed(comparison_table(rows, metric="accuracy (%)", title="CIFAR-10", console=console)).splitlines()
    assert "accuracy (%), mean ± sd" in "".join(lines[:2])
    row = re.split(r"\s{2,}", next(line for line in lines if "discovered" in line).strip())
    assert row == ["discovered [x]", "5", "91.23 ± 0.21", "+0.50 [+0.10, +0.90]", "0.012"]
    assert "< 0.001" in lines[-1]


# -- progress ------------------------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_one_plain_line_an_epoch() -> None:
    stream = io.StringIO()
    progress = SearchProgress(Voice("auto", Console(file=stream, width=40)))
    snapshots = series(5, "tiny")
    for snapshot in snapshots:
        progress(snapshot)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("epoch 1/5 · warm start · ")
    assert "candidates · train 1.96 · arch 2.16 · val 2.06 · " in lines[0]
    assert " left · " in lines[1]
    assert " left" not in lines[-1]
    assert lines[-1].endswith(snapshots[-1].cells["network"].genotype.formula)
    assert "\x1b" not in stream.getvalue()


def test_quiet_progress_says_nothing_and_another_mode_is_an_error() -> None:
    stream = io.StringIO()
    progress = SearchProgress(Voice("quiet", Console(file=stream)))
    progress(series(3, "tiny")[0])
    assert stream.getvalue() == ""
    with pytest.raises(SettingsError, match="did you mean 'quiet'"):
        SearchProgress("quite")  # type: ignore[arg-type]


class _Line(pl.LightningModule):
    """The smallest thing that Lightning can train."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*")
def test_in_a_terminal_there_is_a_bar_with_phase_losses_and_formula() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    progress = SearchProgress(Voice("auto", console))
    snapshots = series(4, "tiny")

    class _Tell(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            progress(snapshots[trainer.current_epoch])

    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[progress, _Tell()],
    )
    trainer.fit(_Line(), torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2))
    text = stream.getvalue()
    assert "epoch 4/4" in text
    assert "shrinking" in text
    assert "train 1.96 · arch" in text
    assert "f(x) = " + snapshots[-1].cells["network"].genotype.formula[:40] in text
    assert progress.voice._live is None


def test_durations_read_well() -> None:
    assert [duration(s) for s in (4.4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 05 min"]


# -- TensorBoard ---------------------------------------------------------------------------------------------------


def read(directory: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.fixture
def without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a log."""
    monkeypatch.setattr("actsearch.report.tensorboard.is_drawn", lambda epoch, epochs: False)


def test_everything_is_logged_under_readable_tags(tmp_path: Path) -> None:
    snapshots = series(4, "tiny")
    with TensorBoardObserver(tmp_path) as observer:
        for snapshot in snapshots:
            observer(snapshot)
    events = read(tmp_path)
    tags = events.Tags()
    scalars = set(tags["scalars"])
    for slot in SearchSpace.load("tiny").slots:
        assert {f"probability/{slot.name}/{op}" for op in slot.candidates} <= scalars
        assert {f"entropy/{slot.name}", f"margin/{slot.name}"} <= scalars
    assert {"loss/train", "loss/arch", "loss/val", "train/accuracy", "survivors", "collapsed_share"} <= scalars
    assert {"learning_rate/weights", "learning_rate/alpha", "skipped", "seconds"} <= scalars
    assert any(re.fullmatch(r"clip_hits/u1/\w+", tag) for tag in scalars)
    assert "op_parameters/u2/beta/beta" in scalars
    assert tags["images"] == ["function", "probabilities/u1", "probabilities/u2", "probabilities/b1"]
    assert tags["histograms"] == ["pre_activations/network.0", "pre_activations/network.1"]
    assert {"formula/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])
    probability = snapshots[2].cells["network"].probabilities["b1"]["mul"]
    assert events.Scalars("probability/b1/mul")[2].value == pytest.approx(probability)
    assert [event.step for event in events.Images("function")] == [1, 2, 3, 4]
    assert "tensorflow" not in sys.modules
    assert "tensorboard.compat.notf" not in sys.modules


@pytest.mark.usefixtures("without_images")
def test_the_line_of_a_dropped_candidate_ends_and_what_is_never_clipped_has_none(tmp_path: Path) -> None:
    snapshots = series(6, "tiny")
    with TensorBoardObserver(tmp_path) as observer:
        for snapshot in snapshots:
            observer(snapshot)
    events = read(tmp_path)
    for slot, ops in snapshots[0].cells["network"].probabilities.items():
        for op in ops:
            logged = [event.step for event in events.Scalars(f"probability/{slot}/{op}")]
            assert logged == [s.epoch for s in snapshots if op in s.cells["network"].survivors[slot]]
    clipped = {tag for tag in events.Tags()["scalars"] if tag.startswith("clip_hits/")}
    shares = [share for s in snapshots for share in s.cells["network"].clip_hits.items()]
    assert clipped == {f"clip_hits/{key}" for key, share in shares if share > 0}


@pytest.mark.usefixtures("without_images")
def test_the_layout_has_one_chart_a_slot_that_matches_its_own_tags_only(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    with TensorBoardObserver(tmp_path) as observer:
        observer(series(3, "tiny")[0])
    events = read(tmp_path)
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: chart.multiline.tag[0] for category in layout.category for chart in category.chart}
    scalars = events.Tags()["scalars"]
    for slot in SearchSpace.load("tiny").slots:
        matched = [tag for tag in scalars if re.match(charts[slot.name], tag)]
        assert sorted(matched) == sorted(f"probability/{slot.name}/{op}" for op in slot.candidates)
    assert [tag for tag in scalars if re.match(charts["train, arch and val"], tag)] == [
        f"loss/{level}" for level in LEVELS
    ]


@pytest.mark.usefixtures("without_images")
def test_a_resumed_log_hides_what_the_killed_run_logged_too_far(tmp_path: Path) -> None:
    first, second = series(6, "tiny"), series(6, "tiny", seed=1)
    with TensorBoardObserver(tmp_path) as observer:
        for snapshot in first[:4]:
            observer(snapshot)
        history = observer.history
    time.sleep(1.1)  # event files are ordered by the second in their name
    with TensorBoardObserver(tmp_path, history, purge_epoch=4) as observer:
        for snapshot in second[3:]:
            observer(snapshot)
        assert len(observer.history) == 6
    events = read(tmp_path)
    survivors = events.Scalars("loss/train")
    assert [event.step for event in survivors] == [1, 2, 3, 4, 5, 6]


def test_several_cells_have_their_own_prefixes_and_inputs(tmp_path: Path) -> None:
    with TensorBoardObserver(tmp_path) as observer:
        observer(series(3, "tiny", cells=("layer1", "layer2", "layer3"))[0])
    tags = read(tmp_path).Tags()
    assert {"layer1/probability/u1/relu", "layer3/survivors", "loss/train"} <= set(tags["scalars"])
    assert "layer2/function" in tags["images"]
    assert "layer3/function" not in tags["images"]


def test_images_are_spaced_and_at_most_twenty() -> None:
    for epochs in (1, 2, 19, 20, 21, 50, 1000):
        drawn = [epoch for epoch in range(1, epochs + 1) if is_drawn(epoch, epochs)]
        assert len(drawn) == min(epochs, 20)
        assert (drawn[0], drawn[-1]) == (1, epochs)


def test_logging_an_epoch_of_the_published_cell_is_cheap(tmp_path: Path) -> None:
    snapshots = series(40)
    with TensorBoardObserver(tmp_path) as observer:
        observer(snapshots[0])  # loads fonts and modules
        started = time.process_time()
        for snapshot in snapshots[1:6]:
            observer(snapshot)
        # A figure falls on every second epoch; the bound is generous since the machine is shared.
        assert (time.process_time() - started) / 5 < 2


@pytest.mark.usefixtures("without_images")
def test_the_layout_begins_with_the_slots_and_ends_with_the_losses(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    with TensorBoardObserver(tmp_path) as observer:
        observer(series(3, "tiny")[0])
    layout = layout_pb2.Layout()
    layout.ParseFromString(read(tmp_path).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {category.title: [chart.title for chart in category.chart] for category in layout.category}
    assert list(charts) == ["probabilities", "certainty", "losses"]
    assert charts["probabilities"] == ["u1", "u2", "b1"]


def test_a_function_is_told_in_markdown() -> None:
    text = describe_function(SearchSpace.load("tiny").genotype({"u1": "square", "u2": "sigmoid", "b1": "mul"}))
    assert text.startswith("    f(x) = ")
    assert "| fact | value |\n| --- | --- |\n| x → -∞ |" in text


def test_trials_are_logged_again_when_a_search_goes_on(tmp_path: Path) -> None:
    space = SearchSpace.load("tiny")
    losses = [0.9, 0.5, 0.7, math.inf]
    records = []
    for number, loss in enumerate(losses):
        genotype = space.random(number)
        params = to_params(space, genotype)
        records.append(TrialRecord(number, params, genotype.formula, {10: loss}, 10, False, 1.0))
    with TrialsBoard(tmp_path, space) as board:
        for record in records[:2]:
            board(record)
    time.sleep(1.1)  # event files are ordered by the second in their name
    with TrialsBoard(tmp_path, space, records[:2]) as board:
        for record in records[2:]:
            board(record)
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("trial/loss")] == [
        (k, pytest.approx(loss)) for k, loss in enumerate(losses[:3])
    ]
    assert [e.value for e in events.Scalars("trial/best")] == pytest.approx([0.9, 0.5, 0.5, 0.5])
    assert [e.value for e in events.Scalars("trial/steps_of_all")] == [10, 20, 30, 40]
    assert [e.step for e in events.Images("function")] == [0, 1]
    assert "formula/text_summary" in events.Tags()["tensors"]
