"""A search wraps any LightningModule, and says in one line what is wrong with one that it cannot drive."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actsearch
from actsearch.errors import ActsearchError, NonFiniteError, RunError, SettingsError, SwapError, TaskError
from actsearch.search.checkpoint import checkpoints, latest_checkpoint
from actsearch.search.monitor import Snapshot


class OwnTask(pl.LightningModule):
    """Knows nothing of actsearch: logs under its own names, has two schedules of its own, returns a mapping."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 16), activation or nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("loss", loss, prog_bar=True, on_step=True)
        self.log_dict({"epoch": float(self.current_epoch), "of": float(self.trainer.max_epochs or 0)})
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", (self.net(batch[0]) - batch[1]).abs().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def loader(n: int = 160, poison: float | None = None) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    y = torch.tanh(x.sum(1, keepdim=True))
    if poison is not None:
        x[::16] = poison
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


def run(task: pl.LightningModule, tmp_path: Path, data: Any = None, **settings: Any) -> actsearch.SearchResult:
    options: dict[str, Any] = {
        "space": "tiny",
        "run_root": tmp_path / "runs",
        "observers": [],
        "callbacks": [],
        "epochs": 4,
        "alpha_lr": 0.05,
        "trainer": {"accelerator": "cpu"},
        "refine": {"evaluations": 10},
        **settings,
    }
    return actsearch.search(task, loader() if data is None else data, **options)


def test_a_task_of_the_users_own_is_searched_and_gets_its_activations_back(tmp_path: Path) -> None:
    task, snapshots = OwnTask(), list[Snapshot]()
    result = run(task, tmp_path, observers=[snapshots.append])
    assert isinstance(result.activation(torch.randn(3)), Tensor)
    assert isinstance(task.net[1], nn.ReLU)
    assert isinstance(task.net[4], nn.Tanh)
    assert [site.name for site in result.swap_report.replaced] == ["net.1", "net.4"]
    assert len(snapshots) == 4
    last = snapshots[-1]
    assert last.metrics["train/epoch"] == 3.0  # the task sees the trainer's epoch, and its logs are told by level
    assert last.metrics["train/of"] == 4.0
    assert snapshots[0].metrics["arch/loss"] == pytest.approx(snapshots[0].losses["arch"])
    assert 0 < last.metrics["val_mae"] < 1
    assert last.learning_rates["weights"] == pytest.approx(1e-3)  # its schedule ran: 0.1 after three epochs
    assert set(last.pre_activations) == {"net.1", "net.4"}
    assert (result.run_dir / "genotype.json").is_file()


@pytest.mark.parametrize("sharing", ["site", "block"])
def test_a_cell_of_its_own_for_every_site_or_block(tmp_path: Path, sharing: str) -> None:
    space = {**actsearch.SearchSpace.load("tiny").to_dict(), "sharing": sharing}
    result = run(OwnTask(), tmp_path, space=space)
    assert sorted(result.genotypes) == (["net/1", "net/4"] if sharing == "site" else ["net"])


@pytest.mark.parametrize("relaxation", ["softmax", "gumbel", "dirichlet"])
@pytest.mark.parametrize("order", [1, 2])
def test_every_relaxation_and_order_ends_in_a_function(tmp_path: Path, relaxation: str, order: int) -> None:
    result = run(OwnTask(), tmp_path, relaxation=relaxation, order=order, epochs=3, anchor=1e-3)
    assert result.snapshot.cells["network"].n_survivors == 3


def test_the_same_seed_gives_the_same_function_and_losses(tmp_path: Path) -> None:
    def losses(name: str, seed: int) -> list[dict[str, float]]:
        snapshots: list[Snapshot] = []
        run(OwnTask(), tmp_path / name, observers=[snapshots.append], seed=seed)
        return [dict(s.losses) for s in snapshots]

    first = losses("a", 1)
    torch.rand(7)  # what was drawn before makes no difference
    assert losses("b", 1) == first
    assert losses("c", 2) != first


def test_steps_count_shrinking_too(tmp_path: Path) -> None:
    result = run(OwnTask(), tmp_path, shrink_unit="step", shrink_start=5, warm_steps=3)
    assert result.snapshot.cells["network"].n_survivors == 3


def test_a_search_can_be_cut_into_short_epochs_and_measured_on_few_mixed_batches(tmp_path: Path) -> None:
    measured: list[list[float]] = []

    class Recording(OwnTask):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            measured.append(batch[0][:, 0].tolist())

    x = torch.arange(160.0)[:, None].expand(-1, 4) / 160
    data = DataLoader(TensorDataset(x, x[:, :1].contiguous()), batch_size=8)
    result = run(Recording(), tmp_path, data, epoch_batches=3, validation_batches=2, epochs=3)
    assert result.snapshot.step == 9
    assert len(measured) == 2 * 3
    assert measured[:2] == measured[2:4]
    assert measured[0] != sorted(measured[0])  # data may be sorted by class: the first batches must not be of one


# -- what cannot be searched ---------------------------------------------------------------------------------------


class NoLoss(OwnTask):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class TwoOptimizers(OwnTask):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)], []


class NoActivation(OwnTask):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 1))


class Detached(OwnTask):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.tensor(1.0)


class TrainsOnTest(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.test_set = loader().dataset

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test_set, batch_size=16)


@pytest.mark.parametrize(
    ("task", "data", "settings", "error", "says"),
    [
        (NoLoss, None, {}, TaskError, "training_step returned None"),
        (Detached, None, {}, TaskError, "does not depend on what is trained"),
        (TwoOptimizers, None, {}, TaskError, "2 optimizers"),
        (NoActivation, None, {}, SwapError, "no activation was replaced"),
        (OwnTask, TrainsOnTest, {}, TaskError, "must never see"),
        (OwnTask, lambda: loader(1), {}, TaskError, "cannot be split"),
        (OwnTask, lambda: [1, 2], {}, TaskError, "train_dataloader"),
        (OwnTask, None, {"alpha_lr": float("nan")}, SettingsError, "alpha_lr"),
        (OwnTask, None, {"epoch": 3}, SettingsError, "did you mean 'epochs'"),
        (OwnTask, None, {"refine": {"evaluation": 3}}, SettingsError, "did you mean 'evaluations'"),
        (OwnTask, None, {"space": "grfs"}, ActsearchError, "did you mean 'grafs'"),
        (OwnTask, None, {"trainer": {"precision": "16-true", "accelerator": "cpu"}}, SettingsError, "bf16-mixed"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    tmp_path: Path, task: Any, data: Any, settings: Any, error: type[ActsearchError], says: str
) -> None:
    made = task()
    with pytest.raises(error, match=says) as caught:
        run(made, tmp_path, data() if data else None, **settings)
    assert "\n" not in str(caught.value)
    assert not any(isinstance(m, actsearch.cell.MixedSite) for m in made.modules())


def test_a_search_refuses_the_test_set() -> None:
    from actsearch.search.bilevel import BilevelSearch

    with pytest.raises(TaskError, match="never sees the test set"):
        BilevelSearch.test_step(None)  # type: ignore[arg-type]


def test_non_finite_data_is_skipped_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NonFiniteError, match=r"stopped after 4 steps.*max_skipped.*input of site 'net.1'") as caught:
        run(OwnTask(), tmp_path, loader(poison=float("nan")), max_skipped=3)
    assert "\n" not in str(caught.value)


def test_a_finite_number_of_bad_steps_is_survived(tmp_path: Path) -> None:
    data = loader()
    data.dataset.tensors[0][0] = float("inf")  # type: ignore[attr-defined]
    snapshots: list[Snapshot] = []
    result = run(OwnTask(), tmp_path, data, max_skipped=50, observers=[snapshots.append], refine={"enabled": False})
    assert 4 <= snapshots[-1].skipped <= 30
    assert torch.isfinite(result.activation(torch.randn(5))).all()


# -- disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A function that makes every later write beyond the given size fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_intact(tmp_path: Path, small_files: Any) -> None:
    def fill_up(snapshot: Snapshot) -> None:
        if snapshot.epoch == 2:
            small_files(10_000)  # smaller than a checkpoint, larger than the records

    with pytest.raises(RunError, match=r"cannot write .*: .*the last checkpoint, epoch-00001.* is intact") as caught:
        run(OwnTask(), tmp_path, observers=[fill_up])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "\n" not in str(caught.value)
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert [p.name[:11] for p in checkpoints(folder / "checkpoints")] == ["epoch-00001"]
    assert latest_checkpoint(folder / "checkpoints").is_file()
    assert not list((folder / "checkpoints").glob(".*"))
    resumed = run(OwnTask(), tmp_path, resume=folder)  # with space again, it goes on
    assert resumed.run_dir == folder
    assert errno.EFBIG  # the error that the limit raises, where a full disk raises ENOSPC


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run folder"):
        run(OwnTask(), tmp_path, run_root=tmp_path / "file")


def test_resuming_what_is_no_run_or_another_space_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        run(OwnTask(), tmp_path, resume=tmp_path)
    found = run(OwnTask(), tmp_path)
    with pytest.raises(RunError, match="another space"):
        run(OwnTask(), tmp_path, resume=found.run_dir, space="swish")


# -- promise 8 -----------------------------------------------------------------------------------------------------


class _Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("code was run",))


def test_nothing_that_is_loaded_can_execute_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(OwnTask(), tmp_path)
    for path in checkpoints(found.run_dir / "checkpoints"):
        torch.load(path, weights_only=True)  # a checkpoint of ours is plain data
        torch.save({"state_dict": {}, "optimizer_states": [], "actsearch": _Payload()}, path)
    with pytest.raises(RunError, match="not a checkpoint"):
        run(OwnTask(), tmp_path, resume=found.run_dir)
    (tmp_path / "space.yaml").write_text("cell: !!python/object/apply:print ['code was run']")
    with pytest.raises(ActsearchError, match="not valid YAML"):
        actsearch.SearchSpace.load(tmp_path / "space.yaml")
    (tmp_path / "genotype.json").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ActsearchError, match=r"cannot read|not valid JSON"):
        actsearch.load(tmp_path)
    assert "code was run" not in capsys.readouterr().out
