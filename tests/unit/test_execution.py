"""How a network is run changes rounding alone: channels last, compiled, in the search and in retraining."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actsearch
from actsearch.cell.mixed import MixedSite
from actsearch.compare import Budget, Contestant, Retrainer
from actsearch.config import TrainerConfig
from actsearch.errors import SettingsError
from actsearch.execution import Execution
from actsearch.search.monitor import Snapshot

CPU = {"accelerator": "cpu"}


class Images(pl.LightningModule):
    """A network of two blocks of one class, whose second has what the first has."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.norm(self.conv(x)))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [Images.Block() for _ in range(2)]
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.Flatten(), nn.LazyLinear(2))
        self.net(torch.zeros(1, 3, 6, 6))
        self.batches: list[bool] = []

    def step(self, batch: Any) -> Tensor:
        self.batches.append(batch[0].is_contiguous(memory_format=torch.channels_last))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.step(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(n: int = 52) -> DataLoader[Any]:
    """Its last batches are smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 6, 6, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=8)


class Data:
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    test_dataloader = train_dataloader


def search(tmp_path: Path, execution: Execution | None, task: Images, **settings: Any) -> list[Snapshot]:
    snapshots: list[Snapshot] = []
    options: dict[str, Any] = {"relaxation": "softmax", "evaluator": "dense", "epochs": 3, "alpha_lr": 0.05}
    actsearch.search(
        task,
        loader(),
        space="tiny",
        run_root=tmp_path / "runs",
        observers=[snapshots.append],
        callbacks=[],
        trainer=CPU,
        execution=execution,
        refine={"enabled": False},
        **(options | settings),
    )
    return snapshots


def assert_close(found: list[Snapshot], expected: list[Snapshot]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-3)
        assert a.cells["network"].survivors == b.cells["network"].survivors
        for slot, probabilities in a.cells["network"].probabilities.items():
            assert probabilities == pytest.approx(b.cells["network"].probabilities[slot], rel=1e-3)


def test_a_search_with_channels_last_agrees_and_its_sites_see_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    forward = MixedSite.forward

    def watched(site: MixedSite, x: Tensor) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return forward(site, x)

    plain, task = Images(), Images()
    expected = search(tmp_path, None, plain)
    monkeypatch.setattr(MixedSite, "forward", watched)
    assert_close(search(tmp_path, Execution(channels_last=True), task), expected)
    assert seen
    assert all(seen)
    assert all(task.batches)
    assert not any(plain.batches)
    # And it gets its network back as it was.
    assert all(p.is_contiguous() for p in task.parameters())
    assert "on_after_batch_transfer" not in vars(task)


def test_a_retraining_with_channels_last_agrees() -> None:
    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
            return x.relu()

    seen: list[bool] = []
    contestant = Contestant("watching", lambda site: Watching(), "relu")
    results = []
    for execution in (Execution(), Execution(channels_last=True)):
        seen.clear()
        results.append(Retrainer(Images, Data(), Budget(2), CPU, execution=execution)(contestant, 0))
        assert seen
        assert all(seen) if execution.channels_last else not any(seen)
    assert results[0].metrics == pytest.approx(dict(results[1].metrics), rel=1e-4)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pieces that torch.compile makes, by their code; they are run without a C++ compiler."""
    pieces: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        pieces.append(graph.print_readable(print_output=False))
        return graph.forward

    def compiled(function: Any, mode: str | None) -> Any:
        assert mode is None
        return plain_compile(function, backend=backend)

    plain_compile = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiled)
    return pieces


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch hides it, unless warnings are errors
@pytest.mark.parametrize("evaluator", ["dense", "table"])
def test_a_compiled_search_agrees_and_is_not_compiled_again_when_the_cell_changes(
    tmp_path: Path, traced: list[str], evaluator: str
) -> None:
    task, after_epoch = Images(), list[int]()
    expected = search(tmp_path, None, Images(), evaluator=evaluator, epochs=5)
    snapshots = search_counting(tmp_path, task, traced, after_epoch, evaluator)
    assert_close(snapshots, expected)
    # The first epoch is measured after it was counted. From then on α and tables changed at every step, and masks.
    assert after_epoch[-1] == after_epoch[1] > 0
    assert snapshots[-1].cells["network"].n_survivors == 3
    assert "forward" not in vars(task.net)


def search_counting(
    tmp_path: Path, task: Images, traced: list[str], after_epoch: list[int], evaluator: str
) -> list[Snapshot]:
    hook = task.on_train_epoch_end
    task.on_train_epoch_end = lambda: (after_epoch.append(len(traced)), hook())[1]  # type: ignore[method-assign]
    return search(tmp_path, Execution(compile=True), task, evaluator=evaluator, epochs=5)


@pytest.mark.slow
def test_a_compiled_retraining_agrees(traced: list[str]) -> None:
    contestant = Contestant("gelu", lambda site: nn.GELU(), "gelu")
    plain, compiled = (
        Retrainer(Images, Data(), Budget(2), CPU, execution=Execution(compile=compile))(contestant, 0)
        for compile in (False, True)
    )
    assert traced
    assert plain.metrics == pytest.approx(dict(compiled.metrics), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (partial(Execution, channels_last=1), "channels_last must be true or false"),
        (partial(Execution, compile="reduce-overheads"), "did you mean 'reduce-overhead'"),
        (partial(Execution(compile="reduce-overhead").check, "cpu"), "needs a CUDA device"),
        (
            partial(Retrainer, Images, Data(), Budget(1), CPU, execution=Execution(compile="reduce-overhead")),
            "needs a CUDA device",
        ),
        (partial(TrainerConfig, accelerator="cpu", compile="reduce-overhead"), "needs a CUDA device"),
    ],
)
def test_what_cannot_be_is_one_line(make: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_cuda_graphs_refuse_what_keeps_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    execution = Execution(compile="reduce-overhead")
    execution.check("gpu")
    for wrong in ({"accumulate": 2}, {"order": 2}):
        with pytest.raises(SettingsError, match="needs accumulate 1 and order 1"):
            execution.check("gpu", **wrong)


def test_a_search_without_a_cuda_device_refuses_cuda_graphs_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needs a CUDA device"):
        search(tmp_path, Execution(compile="reduce-overhead"), Images())
    assert not (tmp_path / "runs").exists()


def test_the_command_line_hands_over_what_is_the_trainers_and_what_is_not() -> None:
    config = TrainerConfig(accelerator="cpu", channels_last=True, compile=True)
    assert Execution(**config.execution()) == Execution(True, True)
    assert not {"channels_last", "compile", "threads"} & set(config.options())
