"""Retraining: paired, resumed, in parallel, and honest about what failed, on real images."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from actsearch import models
from actsearch.build import TaskBuilder
from actsearch.compare import (
    Budget,
    Comparison,
    Contestant,
    Retrainer,
    Retraining,
    compare,
    contestant,
    fresh_task,
    load_model,
    of_genotype,
    save_model,
    standard_contestants,
)
from actsearch.compare.retrain import _settle
from actsearch.compare.saved import model_file
from actsearch.data import ImageData
from actsearch.errors import RunError, SettingsError, TaskError, UnknownNameError
from actsearch.genotype import Genotype
from actsearch.search.batches import SeededBatches
from actsearch.space import SearchSpace
from actsearch.swap import Site, swap
from actsearch.tasks import Classification

CPU = {"accelerator": "cpu"}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData("digits", limit_train=160, limit_test=100, batch_size=32, augment=True)


@dataclass
class Build:
    """A picklable builder of tasks, as the command line has one."""

    width: int = 16
    lr: float = 0.05

    def __call__(self) -> Classification:
        return Classification(models.mlp(64, 10, hidden=(self.width, self.width)), 10, lr=self.lr)


class Watched(Classification):
    """Keeps what it saw."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, 10, lr=0.05)
        self.start = {name: p.detach().clone() for name, p in self.named_parameters()}
        self.seen: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        self.seen.append(batch[0].clone())
        self.masks.append(nn.functional.dropout(torch.ones(8), 0.5))
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps += 1


def watched(make_model: Callable[[], nn.Module] | None = None) -> tuple[list[Watched], Callable[[], Watched]]:
    """The tasks that the builder beside it has built."""
    built: list[Watched] = []

    def build() -> Watched:
        made = make_model() if make_model else nn.Sequential(nn.Dropout(0.2), models.mlp(64, 10, hidden=(16, 16)))
        built.append(Watched(made))
        return built[-1]

    return built, build


def values(comparison: Comparison) -> dict[tuple[str, int], dict[str, float]]:
    return {(r.activation, r.seed): dict(r.metrics) for r in comparison.retrainings}


# -- pairing -------------------------------------------------------------------------------------------------------


def test_contestants_of_a_seed_start_and_learn_from_the_same(digits: ImageData, tmp_path: Path) -> None:
    """RReLU and a random function's drawn parameters use up random numbers; ReLU uses none."""
    built, build = watched()
    several = [contestant("relu"), contestant("RReLU"), contestant("beta_mul", parameters="site")]
    compare(build, digits, several, seeds=[3, 4], budget=Budget(2), directory=tmp_path, trainer=CPU)
    for seed in range(2):
        # The first task of all was only looked at.
        first, *others = built[1 + 3 * seed : 4 + 3 * seed]
        assert len(first.seen) == 10
        assert not torch.equal(first.seen[0], first.seen[5])  # another order in the next epoch
        for other in others:
            assert first.start.keys() == other.start.keys()
            assert all(torch.equal(first.start[name], other.start[name]) for name in first.start)
            assert all(torch.equal(a, b) for a, b in zip(first.seen, other.seen, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(first.masks, other.masks, strict=True))
    assert not torch.equal(built[1].seen[0], built[4].seen[0])
    assert not torch.equal(built[1].start["model.1.fc1.weight"], built[4].start["model.1.fc1.weight"])
    assert len({tuple(mask.tolist()) for mask in built[1].masks}) > 5


class Noisy(Dataset[Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), float(torch.rand(()))])


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return (torch.rand(2) for _ in range(12))


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(0)),
    "worker": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    "stream": lambda: DataLoader(Stream(), 4),
}


@pytest.mark.parametrize("name", LOADERS)
def test_batches_depend_on_seed_and_epoch_alone(name: str) -> None:
    loader = LOADERS[name]()

    def batches(seed: int, epoch: int) -> Tensor:
        found = []
        for batch in SeededBatches(loader, seed, lambda: epoch):
            torch.rand(int(1 + found.__len__()))  # what a network may draw
            found.append(batch)
        return torch.cat(found)

    first = batches(1, 0)
    torch.rand(7)
    assert torch.equal(first, batches(1, 0))
    assert not torch.equal(first, batches(1, 1))
    assert not torch.equal(first, batches(2, 0))
    if name != "stream":
        assert len(SeededBatches(loader, 0, int)) == 3
        assert sorted(first[:, 0].tolist()) == list(range(12))


def test_dropout_is_the_same_where_lightning_fetches_ahead() -> None:
    """Of a stream without a length the next batch is drawn before a step, and none before the last."""

    class Streamed(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return ((torch.rand(1, 8, 8), k % 10) for k in range(24))

    class Data:
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Streamed(), 8)

        test_dataloader = train_dataloader

    built, build = watched()
    for name in ("relu", "RReLU"):
        Retrainer(build, Data(), Budget(1), CPU)(contestant(name), 0)
    first, other = built
    assert len(first.seen) == 3
    for kept in ("seen", "masks"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(first, kept), getattr(other, kept), strict=True))


def test_budget_reaches_the_trainer(digits: ImageData) -> None:
    built, build = watched()
    budget = Budget(2, accumulate=2, gradient_clip=1e-9, epoch_batches=4)
    Retrainer(build, digits, budget, CPU)(contestant("relu"), 0)
    assert (len(built[0].seen), built[0].steps) == (8, 4)
    # Clipped to next to nothing; weight decay moves a little.
    moved = [(p - built[0].start[name]).abs().max().item() for name, p in built[0].named_parameters()]
    assert 0 < max(moved) < 1e-4
    for wrong in ({"epochs": 0}, {"epochs": 1, "accumulate": 0}, {"epochs": 1, "gradient_clip": -1.0}):
        with pytest.raises(SettingsError, match="above 0"):
            Budget(**wrong)  # type: ignore[arg-type]


# -- results on disk -----------------------------------------------------------------------------------------------


SEVERAL = [contestant("silu", "discovered", "discovered"), contestant("relu"), contestant("Hardswish")]


def run(directory: Path, data: Any, **changes: Any) -> Comparison:
    options = {"seeds": [0, 1], "budget": Budget(1), "directory": directory, "trainer": CPU, **changes}
    return compare(options.pop("build_task", Build()), data, options.pop("contestants", SEVERAL), **options)


def test_a_killed_comparison_goes_on_without_training_twice(digits: ImageData, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", digits)
    seen: list[Retraining] = []

    def killer(result: Retraining) -> None:
        seen.append(result)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", digits, report=killer)
    records = tmp_path / "cut" / "retrainings.jsonl"
    assert len(records.read_text().splitlines()) == 4
    with open(records, "a") as file:
        file.write('{"function": "relu(x)", "activation": "re')  # the kill came in the middle of a line
    built = []

    def build() -> Classification:
        built.append(1)
        return Build()()

    looks = 1  # whether all contestants are smooth enough is asked of a task of its own

    told: list[Retraining] = []
    cut = run(tmp_path / "cut", digits, build_task=build, report=told.append)
    assert len(built) == looks + 3
    assert len(told) == 6
    assert values(cut) == values(whole)
    assert cut.retrainings[:3] == tuple(seen)
    assert len(records.read_text().splitlines()) == 7
    before = (tmp_path / "cut" / "comparison.csv").read_text()
    run(tmp_path / "cut", digits, build_task=build)
    assert len(built) == looks + 3
    assert (tmp_path / "cut" / "comparison.csv").read_text() == before


def test_a_cut_header_is_as_if_there_were_nothing(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "retrainings.jsonl").write_text('{"budg')
    run(tmp_path, digits, contestants=SEVERAL[:1], seeds=[0])
    assert len((tmp_path / "retrainings.jsonl").read_text().splitlines()) == 2


def test_results_of_other_conditions_are_refused_with_what_differs(digits: ImageData, tmp_path: Path) -> None:
    context = {"training": {"lr": 0.1, "milestones": (0.5, 0.75)}}
    first = {"contestants": SEVERAL[:2], "seeds": [0], "context": context}
    run(tmp_path, digits, **first)
    other = {"training": {"lr": 0.2, "milestones": (0.5, 0.75)}}
    for change, said in (
        ({"budget": Budget(2)}, r"budget\.epochs: 1 there, 2 here"),
        ({"budget": Budget(1, accumulate=2)}, r"budget\.accumulate"),
        ({"context": other}, r"context\.training\.lr: 0\.1 there, 0\.2 here"),
        ({"context": None}, r"context\.training"),
        ({"trainer": {**CPU, "precision": "64-true"}}, r"trainer\.precision"),
        ({"contestants": [contestant("gelu", "relu")]}, "another function named 'relu'"),
        ({"contestants": [contestant("relu", gain="activation")]}, "another function named 'relu'"),
    ):
        with pytest.raises(RunError, match=said):
            run(tmp_path, digits, **{**first, **change})

    def build() -> Classification:
        raise AssertionError("trained again")

    # Where it runs, and in what company, does not matter.
    place = {"trainer": {**CPU, "devices": 2, "strategy": "ddp"}, "contestants": SEVERAL[1::-1], "build_task": build}
    assert [row.name for row in run(tmp_path, digits, **{**first, **place}).rows] == ["relu", "discovered"]


def test_a_file_that_holds_something_else_is_refused(digits: ImageData, tmp_path: Path) -> None:
    for text in ("no json\n", "[1]\n"):
        (tmp_path / "retrainings.jsonl").write_text(text)
        with pytest.raises(RunError, match="retrainings"):
            run(tmp_path, digits)
    run(tmp_path / "a", digits, seeds=[0], contestants=SEVERAL[:1])
    with open(tmp_path / "a" / "retrainings.jsonl", "a") as file:
        file.write('{"activation": "relu"}\n')
    with pytest.raises(RunError, match="no retraining"):
        run(tmp_path / "a", digits)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"seeds": []}, SettingsError, "at least one"),
        ({"seeds": [1, 1]}, SettingsError, "seeds"),
        ({"contestants": [SEVERAL[0], SEVERAL[0]]}, SettingsError, "'discovered'"),
        ({"jobs": 0}, SettingsError, "jobs"),
        ({"reference": "relo"}, UnknownNameError, "'relu'"),
        ({"curve": "tests"}, SettingsError, "'test'"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_training(
    change: dict[str, Any], error: type[Exception], said: str, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        run(tmp_path, digits, **change)
    assert not list(tmp_path.iterdir())


def test_genotypes_by_name_are_contestants(digits: ImageData, tmp_path: Path) -> None:
    space = SearchSpace.load("grafs")
    genotypes = {"discovered": space.random(1), "random 1": space.random(2), "relu": Genotype.of_op("relu")}
    comparison = run(tmp_path, digits, contestants=genotypes, seeds=[0], reference="relu", metric="test_loss")
    assert [entry.kind for entry in comparison.entries] == ["discovered", "random", "standard"]
    assert comparison.references == ("relu",)
    assert not comparison.higher_is_better


# -- several at once -----------------------------------------------------------------------------------------------


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such function")


class Dying(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        os._exit(3)


def raising(site: Site) -> nn.Module:
    return Raising()


def dying(site: Site) -> nn.Module:
    return Dying()


@pytest.mark.slow
def test_several_processes_give_the_bits_of_one(digits: ImageData, tmp_path: Path) -> None:
    one, two = (run(tmp_path / str(jobs), digits, jobs=jobs) for jobs in (1, 2))
    assert values(one) == values(two)
    assert [dict(r.curve) for r in one.retrainings] == [dict(r.curve) for r in two.retrainings]
    assert {r.jobs for r in one.retrainings} == {1}
    assert {r.jobs for r in two.retrainings} == {2}
    assert any("up to 2 retrainings at once" in note for note in two.notes())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "said"), [(raising, r"bad, seed \d: ValueError: no such function"), (dying, "code 3")]
)
def test_a_failing_worker_leaves_the_results_of_others(
    make: Callable[[Site], nn.Module], said: str, digits: ImageData, tmp_path: Path
) -> None:
    several = [SEVERAL[0], Contestant("bad", make, "bad"), *SEVERAL[1:]]
    with pytest.raises(TaskError, match=said):
        run(tmp_path, digits, contestants=several, seeds=[0, 1, 2], jobs=2)
    lines = [json.loads(line) for line in (tmp_path / "retrainings.jsonl").read_text().splitlines()[1:]]
    assert [(line["activation"], line["seed"]) for line in lines][:1] == [("discovered", 0)]
    assert len(lines) < 6  # nothing more was started


@pytest.mark.slow
def test_an_interrupt_ends_the_workers(digits: ImageData, tmp_path: Path) -> None:
    def interrupt(result: Retraining) -> None:
        raise KeyboardInterrupt

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, digits, budget=Budget(30), seeds=range(20), jobs=2, report=interrupt)
    assert time.perf_counter() - started < 60
    import multiprocessing

    assert multiprocessing.active_children() == []
    assert len((tmp_path / "retrainings.jsonl").read_text().splitlines()) == 2


def test_what_cannot_be_sent_to_a_process_is_told(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="jobs 1"):
        run(tmp_path, digits, build_task=lambda: Build()(), jobs=2)


# -- failures, curves and costs ------------------------------------------------------------------------------------


class Exploding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros_like(x)


def test_a_divergent_contestant_is_reported_as_failed(digits: ImageData, tmp_path: Path) -> None:
    several = [*SEVERAL[:2], Contestant("exploding", lambda site: Exploding(), "x / 0")]
    comparison = run(tmp_path, digits, contestants=several, budget=Budget(3))
    row = comparison.row("exploding")
    assert row.n == 0
    assert all(math.isnan(value) for value in row.values)
    assert [seed for seed, _ in row.failures] == [0, 1]
    assert "loss was nan at the end of epoch 1" in row.failures[0][1]
    assert len(comparison.retrainings[2].curve["train_loss"]) == 1  # it was not trained on
    assert comparison.retrainings[2].curve["train_loss"] == [None]
    assert "exploding, seed 0: failed" in comparison.verdict()
    # Neither trained again nor lost when the comparison goes on.
    assert run(tmp_path, digits, contestants=several, budget=Budget(3)).to_dict() == comparison.to_dict()


def test_every_contestant_failing_is_no_crash(digits: ImageData, tmp_path: Path) -> None:
    comparison = run(tmp_path, digits, contestants=[Contestant("a", lambda site: Exploding(), "x / 0")])
    assert math.isnan(comparison.rows[0].mean)


def test_parameters_that_are_not_finite_are_a_failure(digits: ImageData) -> None:
    """Their test accuracy would be a finite number, that of the first class."""

    class Task(Classification):
        def on_train_end(self) -> None:
            next(self.parameters()).data.fill_(math.nan)

    def build() -> Classification:
        return Task(models.mlp(64, 10, hidden=(16,)), 10)

    result = Retrainer(build, digits, Budget(1), CPU)(SEVERAL[1], 0)
    assert "not finite after training" in result.failure
    assert math.isnan(result.value("test_acc"))


def test_curves_are_those_asked_for(digits: ImageData) -> None:
    for curve, names in (
        ("none", set()),
        ("train", {"train_loss", "train_acc"}),
        ("test", {"train_loss", "train_acc", "test_loss", "test_acc"}),
    ):
        result = Retrainer(Build(), digits, Budget(2), CPU, curve)(SEVERAL[0], 0)  # type: ignore[arg-type]
        assert set(result.curve) == names
        assert all(len(series) == 2 for series in result.curve.values())
        if curve == "test":
            assert result.curve["test_acc"][-1] == pytest.approx(result.metrics["test_acc"])
            tested = result
        else:
            last = result
    assert last.metrics == tested.metrics  # looking at the test set changed nothing


class Silent(pl.LightningModule):
    """Logs nothing in training, and validates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.model = models.mlp(64, 10, hidden=(16,))

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int = 0) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_task_that_logs_nothing_has_a_loss_curve(digits: ImageData) -> None:
    silent = Retrainer(Silent, digits, Budget(1, accumulate=3), CPU)(SEVERAL[1], 0)
    assert set(silent.curve) == {"train_loss"}
    assert silent.curve["train_loss"][0] == pytest.approx(math.log(10), abs=0.4)  # not a third of it
    with pytest.raises(TaskError, match="validation_step"):
        Retrainer(Silent, digits, Budget(1), CPU, "test")(SEVERAL[1], 0)


def test_a_metric_that_is_not_logged_is_told_after_one_retraining(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="test_acc, test_loss"):
        run(tmp_path, digits, metric="test_f1")
    assert len((tmp_path / "retrainings.jsonl").read_text().splitlines()) == 2


class Sleeping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(0.01)
        return x.relu()


def test_costs_are_measured(digits: ImageData, tmp_path: Path) -> None:
    several = [contestant("relu"), Contestant("slow", lambda site: Sleeping(), "relu, late"), contestant("PReLU")]
    several.append(contestant("beta_mul", parameters="network"))
    comparison = run(tmp_path, digits, contestants=several, seeds=[0], budget=Budget(2))
    rows = {row.name: row for row in comparison.rows}
    assert [row.added_parameters for row in comparison.rows] == [0, 0, 2, 1]
    assert rows["slow"].step_seconds >= 0.02  # two sites
    assert rows["slow"].step_seconds > rows["relu"].step_seconds > 1e-5
    assert rows["relu"].seconds > 10 * rows["relu"].step_seconds
    assert rows["relu"].saved_bytes == 4
    assert math.isnan(rows["relu"].peak_memory)


# -- parameters ----------------------------------------------------------------------------------------------------


def resnet() -> nn.Module:
    return models.resnet8(10, in_channels=1, width=4)


def test_parameters_by_channel_are_trained_from_the_first_step(digits: ImageData) -> None:
    built, build = watched(resnet)
    found = contestant("beta_mul", parameters="channel", channel_axis=1)
    result = Retrainer(build, digits, Budget(1, epoch_batches=3), CPU)(found, 0)
    betas = {name: p for name, p in built[0].named_parameters() if name.endswith("beta")}
    assert len(betas) == 7
    assert {p.shape[0] for p in betas.values()} == {4, 8, 16}
    assert result.added_parameters == sum(p.numel() for p in betas.values())
    for p in betas.values():
        assert len(set(p.tolist())) > 1
    assert len(built[0].seen) == 3  # the dry run was no step
    assert not result.failure


def test_the_dry_run_changes_nothing_but_shapes(digits: ImageData) -> None:
    task = Watched(resnet())
    swap(task, contestant("beta_mul", parameters="channel", channel_axis=1).make)
    before = {k: v.clone() for k, v in task.state_dict().items() if not k.endswith("beta")}
    _settle(task, digits.train_dataloader())
    after = task.state_dict()
    assert before.keys() <= after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(module.training for module in task.modules())
    assert not task.seen


def test_a_site_that_no_batch_reaches_has_no_channels(digits: ImageData) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused = models.mlp(64, 10, hidden=(16,)), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    found = contestant("beta_mul", parameters="channel", channel_axis=1)
    with pytest.raises(TaskError, match=r"model\.unused is not reached"):
        Retrainer(lambda: Classification(Net(), 10), digits, Budget(1), CPU)(found, 0)


def test_parameters_of_one_network_do_not_pass_to_the_next_seed(digits: ImageData) -> None:
    found = contestant("beta_mul", parameters="network")
    retrainer = Retrainer(Build(), digits, Budget(1), CPU)
    first = retrainer(found, 0)
    assert retrainer(found, 0).metrics == first.metrics
    assert found.make(Site("", "")).genotype.slots["u1"].parameters["beta"] == 1.0  # type: ignore[union-attr]


def test_gain_of_the_weights_scales_the_start_relative_to_relu(digits: ImageData) -> None:
    pytest.importorskip("actsearch.models.init")
    built, build = watched()
    seen: list[Tensor] = []

    def record(task: Watched) -> None:
        seen.append(task.model[1].fc1.weight.detach().clone())

    for gain in ("none", "weights"):
        found = contestant("tanh", gain=gain)  # type: ignore[arg-type]
        task, _ = fresh_task(build, digits, found, 0)
        record(task)  # type: ignore[arg-type]
    torch.testing.assert_close(seen[1], seen[0] * found.weights)
    assert found.weights > 1
    assert torch.equal(built[0].start["model.1.fc1.weight"], seen[0])


# -- whole ---------------------------------------------------------------------------------------------------------


def test_any_datamodule_and_loss_will_do(tmp_path: Path) -> None:
    from actsearch.tasks import Regression

    class Data:
        def train_dataloader(self) -> DataLoader[Any]:
            x = torch.linspace(-1, 1, 64).reshape(-1, 1)
            return DataLoader(TensorDataset(x, x.sin()), 16, shuffle=True)

        def test_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.train_dataloader().dataset, 64)

    space = SearchSpace.load("tiny")
    several = [of_genotype(space.random(0), "discovered"), *standard_contestants(["relu", "ELU"], space, 1)]
    comparison = run(
        tmp_path,
        Data(),
        build_task=lambda: Regression(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)), lr=0.01),
        contestants=several,
        budget=Budget(2),
    )
    assert comparison.metric == "test_loss"
    assert not comparison.higher_is_better
    assert Comparison.load(tmp_path).to_dict() == comparison.to_dict()
    assert copy.deepcopy(comparison).verdict() == comparison.verdict()


# -- the model's own, adapted --------------------------------------------------------------------------------------

SOURCES = ["taafs:chebyshev", "laaf:site", "own"]


def test_adapted_activations_take_part(digits: ImageData, tmp_path: Path) -> None:
    several = [contestant(source) for source in SOURCES]
    built, build = watched()
    comparison = run(tmp_path, digits, build_task=build, contestants=several, seeds=[0], budget=Budget(1))
    assert comparison.references == ("taafs:chebyshev", "laaf:site")
    assert [row.added_parameters for row in comparison.rows] == [20, 2, 0]
    assert {row.parameters for row in comparison.rows} == {sum(p.numel() for p in Build()().parameters())}
    _, _, slopes, own = built
    assert all(float(p.detach()) != 1 for name, p in slopes.named_parameters() if name.endswith(".a"))
    assert all(torch.equal(own.start[name], slopes.start[name]) for name in own.start)  # they start from the same


def test_slope_recovery_drives_adapted_slopes_up(digits: ImageData) -> None:
    found = contestant("laaf:site")
    means = []
    for weight in (0.0, 5.0):
        built, build = watched()
        Retrainer(build, digits, Budget(1, slope_recovery=weight), CPU)(found, 0)
        slopes = [p.detach() for name, p in built[0].named_parameters() if name.endswith(".a")]
        means.append(float(torch.stack(slopes).mean()))
    assert means[1] > means[0]


def test_the_verb_adapts_without_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from actsearch import cli

    monkeypatch.chdir(tmp_path)
    options = ["--model.name", "mlp", "--model.options", "{hidden: [8]}", "--data.limit_train", "200"]
    options += ["--seeds", "1", "--epochs", "1", "--compare.activations", "[relu]", "--trainer.threads", "1"]
    adapt = ["--adapt", "taafs:chebyshev,laaf:site", "--adapt=laaf:channel", "--compare.channel_axis", "1"]
    options += ["--compare.save_models", "true"]
    assert cli.main(["transfer", "--config", "default", *adapt, *options]) == 0
    folder = tmp_path / "runs" / "adapt" / "default"
    comparison = Comparison.load(folder)
    assert [row.name for row in comparison.rows] == ["taafs:chebyshev", "laaf:site", "laaf:channel", "own", "relu"]
    assert len(list((folder / "models").iterdir())) == 5
    assert "no random controls" in capsys.readouterr().out
    assert cli.main(["transfer", "--adapt", "taafs:chebishev", *options]) == 2
    assert "'chebyshev'" in capsys.readouterr().err
    assert cli.main(["transfer", "--adapt", "relu", *options]) == 2
    assert "unknown adaptation 'relu'" in capsys.readouterr().err
    assert cli.main(["transfer", *options]) == 2
    assert "sources" in capsys.readouterr().err


# -- trained models on disk ----------------------------------------------------------------------------------------


def by_name(data: ImageData, model: str = "mlp", **options: Any) -> TaskBuilder:
    options = options or {"hidden": [8, 8]}
    return TaskBuilder(data.kind, data.facts, model, options, {"lr": 0.05})


SAVED = [
    contestant("taafs:rbf:8"),
    contestant("laaf:channel", channel_axis=1),
    contestant("own"),
    of_genotype(SearchSpace.load("grafs").random(3), "found/one", parameters="channel", channel_axis=1),
    contestant("PReLU", gain="activation"),
    contestant("zoo:mish", parameters="network"),
]


def test_saved_models_compute_what_was_tested(digits: ImageData, tmp_path: Path) -> None:
    trained: dict[str, nn.Module] = {}
    builder = by_name(digits)

    class Kept(Retrainer):
        def _train(self, task: Any, added: int, found: Contestant, *arguments: Any) -> Retraining:
            trained[found.name] = task.model
            return super()._train(task, added, found, *arguments)

    digits.setup("test")
    x = next(iter(digits.test_dataloader()))[0]
    for found in SAVED:
        result = Kept(builder, digits, Budget(1), CPU, save_to=tmp_path)(found, 0)
        state = torch.get_rng_state()
        loaded = load_model(model_file(tmp_path, found.name, 0))
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(module.training for module in loaded.modules())
        torch.testing.assert_close(loaded(x), trained[found.name].eval()(x), rtol=0, atol=0)
        assert result.metrics["test_acc"] >= 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir())[0] == "PReLU-0.pt"
    assert (tmp_path / "models" / "found_one-0.pt").is_file()


def test_a_saved_model_can_be_trained_on(digits: ImageData, tmp_path: Path) -> None:
    found = contestant("laaf:network")
    Retrainer(by_name(digits), digits, Budget(1), CPU, save_to=tmp_path)(found, 0)
    loaded = load_model(model_file(tmp_path, found.name, 0))
    before = sum(p.numel() for p in models.mlp(64, 10, hidden=(8, 8)).parameters())
    assert sum(p.numel() for p in loaded.parameters()) == before + 1  # still one slope for all sites
    loaded(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_double_precision_is_kept(digits: ImageData, tmp_path: Path) -> None:
    Retrainer(by_name(digits), digits, Budget(1), {**CPU, "precision": "64-true"}, save_to=tmp_path)(SAVED[1], 0)
    loaded = load_model(model_file(tmp_path, SAVED[1].name, 0))
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}


def test_models_with_buffers_are_saved(digits: ImageData, tmp_path: Path) -> None:
    Retrainer(by_name(digits, "resnet8", width=4), digits, Budget(1), CPU, save_to=tmp_path)(SAVED[1], 0)
    loaded = load_model(model_file(tmp_path, SAVED[1].name, 0))
    assert any(float(b.abs().sum()) > 0 for name, b in loaded.named_buffers() if name.endswith("running_mean"))


def test_a_comparison_keeps_its_models_and_makes_missing_ones(digits: ImageData, tmp_path: Path) -> None:
    options = {"build_task": by_name(digits), "contestants": SEVERAL[:2], "seeds": [0]}
    first = run(tmp_path, digits, **options)
    assert not (tmp_path / "models").exists()
    again = run(tmp_path, digits, **options, save_models=True)
    files = sorted((tmp_path / "models").iterdir())
    assert [file.name for file in files] == ["discovered-0.pt", "relu-0.pt"]
    assert values(again) == values(first)
    written = [file.stat().st_mtime_ns for file in files]
    run(tmp_path, digits, **options, save_models=True)
    assert [file.stat().st_mtime_ns for file in files] == written


@pytest.mark.slow
def test_worker_processes_save_their_models(digits: ImageData, tmp_path: Path) -> None:
    run(tmp_path, digits, build_task=by_name(digits), contestants=SAVED[:2], jobs=2, save_models=True)
    assert len(list((tmp_path / "models").iterdir())) == 4
    assert all(load_model(path) for path in (tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"build_task": Build()}, "built by name"),
        ({"contestants": [Contestant("mine", lambda site: nn.ReLU(), "relu")]}, "mine, which was made by hand"),
        ({"contestants": [contestant("relu", "a:b"), contestant("gelu", "a/b")]}, "one file"),
    ],
)
def test_models_that_cannot_be_described_are_refused_early(
    change: dict[str, Any], said: str, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        run(tmp_path, digits, **{"build_task": by_name(digits), "save_models": True, **change})
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_model_are_told(digits: ImageData, tmp_path: Path) -> None:
    path = save_model(
        tmp_path / "a.pt",
        by_name(digits)().model,
        {"model": "mlp", "options": {"hidden": [8, 8]}, "facts": {**digits.facts, "sample": object()}},
        contestant("own"),
    )
    load_model(path)
    content = torch.load(path, weights_only=True)
    assert content["omitted"] == ["sample"]
    changes: dict[str, Any] = {
        "options": {"hidden": [9]},
        "model": "mlpp",
        "facts": {},
        "contestant": {"name": "a", "origin": {"class": "Linear", "scale": 1.0}, "shared": "keep"},
        "actsearch_model": 99,
        "state": {},
    }
    for key, value in changes.items():
        torch.save({**content, key: value}, tmp_path / "b.pt")
        with pytest.raises(RunError, match=r"b\.pt") as error:
            load_model(tmp_path / "b.pt")
        assert "\n" not in str(error.value)
    (tmp_path / "c.pt").write_text("no model")
    torch.save([1], tmp_path / "d.pt")
    torch.save(Build(), tmp_path / "e.pt")  # an object, whose code must not run
    for name in "cdef":
        with pytest.raises(RunError, match=rf"{name}\.pt"):
            load_model(tmp_path / f"{name}.pt")
