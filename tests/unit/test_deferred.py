"""Steps that are not finite, decided where nobody waits for the device: as on CUDA, but forced on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from actsearch.cell import MixedCell
from actsearch.errors import NonFiniteError
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.late import DELAY, LateReadings
from actsearch.search.loader import PairLoader
from actsearch.search.monitor import Snapshot
from actsearch.search.settings import RefineSettings, SearchSettings
from actsearch.swap import swap

BATCH, BATCHES = 4, 8


class RootAtZero(torch.autograd.Function):
    """The identity, with a gradient of NaN where x is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0].where(x != 0, torch.nan)


class Network(pl.LightningModule):
    """Draws nothing at random. `y` of 0 gives a finite loss whose gradient is NaN."""

    def __init__(self, cell: MixedCell, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.make = make
        self.net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())
        self.last = nn.Linear(5, 1)
        swap(self.net, lambda site: cell.add_site(site.name))

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        out = self.last(self.net(x))
        return nn.functional.mse_loss(out + RootAtZero.apply(y + 0 * out) - y, y)

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def rows(**poison: dict[int, float]) -> TensorDataset:
    """`x` and `y` of eight batches for the weights, then of eight for α; `poison` sets rows by position."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * BATCHES * BATCH, 3, generator=generator)
    data = {"x": x, "y": x.sum(1, keepdim=True).sin()}
    for name, entries in poison.items():
        for position, value in entries.items():
            data[name][position] = value
    return TensorDataset(data["x"], data["y"])


def make(data: TensorDataset, deferred: bool, optimizer: Any = momentum, **changes: Any) -> tuple[Any, PairLoader]:
    defaults: dict[str, Any] = {"epochs": 2, "relaxation": "gumbel", "evaluator": "dense", "shrink": False}
    options = defaults | {"alpha_lr": 0.05, "max_skipped": 100, "refine": RefineSettings(enabled=False)} | changes
    torch.manual_seed(0)
    cell = MixedCell("tiny", options["relaxation"], "dense", seed=1)
    search = BilevelSearch(Network(cell, optimizer), {"network": cell}, SearchSettings(**options))
    search.deferred = deferred
    half = BATCHES * BATCH
    template = DataLoader(data, batch_size=BATCH)
    return search, PairLoader(template, range(half), range(half, 2 * half), 0, lambda: search.current_epoch)


def fit(search: BilevelSearch, loader: PairLoader, *callbacks: pl.Callback, resume: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=search.settings.epochs,
        callbacks=list(callbacks),
    )
    trainer.fit(search, train_dataloaders=loader, ckpt_path=resume, weights_only=True)
    return trainer


def trained(search: BilevelSearch) -> dict[str, Tensor]:
    """Parameters and the state of optimisers."""
    found = {name: p.detach() for name, p in search.named_parameters()}
    for k, optimizer in enumerate(search.trainer.optimizers):
        for p, entries in optimizer.state_dict()["state"].items():
            found |= {f"{k}.{p}.{name}": value for name, value in entries.items()}
    return found


def assert_same_bits(first: BilevelSearch, second: BilevelSearch) -> None:
    ours, theirs = trained(first), trained(second)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        assert value.isfinite().all()


POISONS: dict[str, dict[str, dict[int, float]]] = {
    "nothing": {},
    "loss of weight steps": {"x": {3: torch.nan, 17: torch.inf}},
    "loss of α steps": {"x": {40: torch.nan}},
    "gradients of both": {"y": {5: 0.0, 50: 0.0}},
    "losses and gradients of both": {"x": {3: torch.nan, 60: torch.inf}, "y": {9: 0.0, 10: 0.0, 41: 0.0}},
}
OPTIMIZERS = {
    "momentum": momentum,
    "fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("poison", POISONS)
def test_the_device_decides_as_the_host_does(poison: str, order: int, accumulate: int) -> None:
    snapshots: list[list[Snapshot]] = [[], []]
    searches = []
    for deferred in (False, True):
        search, loader = make(rows(**POISONS[poison]), deferred, order=order, accumulate=accumulate)
        search.observers.append(snapshots[deferred].append)
        fit(search, loader)
        searches.append(search)
    assert (int(searches[0].skipped) > 0) == (poison != "nothing")
    assert int(searches[0].skipped) == int(searches[1].skipped)
    if order == 1:
        assert_same_bits(*searches)
        for host, device in zip(*snapshots, strict=True):
            assert host.skipped == device.skipped
            assert host.losses == pytest.approx(device.losses, nan_ok=True)
    else:  # the length of the finite difference is rounded elsewhere
        for first, second in zip(trained(searches[0]).values(), trained(searches[1]).values(), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whatever_trains_the_weights(name: str) -> None:
    poison = POISONS["losses and gradients of both"]
    host, device = (make(rows(**poison), deferred, OPTIMIZERS[name]) for deferred in (False, True))
    fit(*host)
    fit(*device)
    assert_same_bits(host[0], device[0])


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
def test_a_step_of_which_every_batch_is_bad_changes_nothing() -> None:
    """Its gradient is 0 and finite; momentum and weight decay would move the weights all the same."""
    bad = dict.fromkeys(range(BATCHES * BATCH), torch.nan)
    search, loader = make(rows(x=bad), True, accumulate=2, epochs=1)
    before = {name: p.detach().clone() for name, p in search.task.named_parameters()}
    fit(search, loader)
    assert int(search.skipped) == BATCHES
    for name, p in search.task.named_parameters():
        assert torch.equal(p, before[name])


class Stops(pl.Callback):
    """Counts batches."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.batches += 1


@pytest.mark.parametrize(
    ("poison", "says"),
    [
        ({"x": dict.fromkeys(range(64), torch.nan)}, "the loss is nan; the input of site '2' is already not finite"),
        ({"y": dict.fromkeys(range(64), 0.0)}, "its gradient is not finite; no activation site saw it"),
    ],
)
def test_too_many_end_the_search_some_steps_later_with_place_and_reason(poison: Any, says: str) -> None:
    search, loader = make(rows(**poison), True, max_skipped=2)
    stops = Stops()
    with pytest.raises(NonFiniteError, match=rf"stopped after \d steps.*max_skipped.*arch step 1: {says}") as caught:
        fit(search, loader, stops)
    assert "\n" not in str(caught.value)
    assert stops.batches == 1 + DELAY + 1  # the third was in the second batch, which is told when it is so old


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
def test_what_is_not_read_by_the_end_of_an_epoch_is_read_there(caplog: pytest.LogCaptureFixture) -> None:
    search, loader = make(rows(x=dict.fromkeys(range(32), torch.nan)), True, epochs=1)
    with caplog.at_level(logging.INFO, "pytorch_lightning.utilities.rank_zero"):
        fit(search, loader)
    told = [record.message for record in caplog.records if record.message.startswith("skipped a step")]
    assert [message.split(":")[1].strip() for message in told] == [f"train step {k}" for k in range(BATCHES)]


class Saves(pl.Callback):
    """Writes a checkpoint after the given batch."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if int(pl_module.steps) == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("batch", [9, 10, 11])
def test_a_search_that_is_resumed_within_a_step_ends_with_the_same_bits(
    tmp_path: Path, batch: int, deferred: bool
) -> None:
    """Also what was skipped, and the temperature of an epoch whose start is not told again."""
    data = rows(x=dict.fromkeys((0, 1, 2, 3, 5, 9, 12, 21, 60), torch.nan))
    whole, loader = make(data, deferred, accumulate=2)
    fit(whole, loader, Saves(tmp_path / "saved.ckpt", batch))
    again, loader = make(data, deferred, accumulate=2)
    fit(again, loader, resume=tmp_path / "saved.ckpt")
    assert_same_bits(again, whole)
    assert int(again.skipped) == int(whole.skipped) > 0


def test_readings_are_due_some_steps_later_and_in_order() -> None:
    late = LateReadings()
    for step in range(3):
        late.add(step, f"step {step}", torch.tensor([float(step)]))
    assert list(late.due(DELAY - 1)) == []
    assert list(late.due(DELAY + 1)) == [("step 0", [0.0]), ("step 1", [1.0])]
    assert list(late.due()) == [("step 2", [2.0])]


def test_a_reading_is_what_the_number_was() -> None:
    late, count = LateReadings(), torch.zeros(1)
    late.add(0, "count", count)
    count += 1
    assert list(late.due()) == [("count", [0.0])]
