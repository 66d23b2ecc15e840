"""Processes that share a search must hold the same: where one does not, the search ends, and tells where."""

from __future__ import annotations

import logging
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from actsearch.cell import MixedCell
from actsearch.errors import RankError
from actsearch.search.averages import Averages
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.loader import PairLoader
from actsearch.search.settings import RefineSettings, SearchSettings
from actsearch.swap import swap

CHECK = 3


class Network(pl.LightningModule):
    def __init__(self, cell: MixedCell) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
        swap(self.net, lambda site: cell.add_site(site.name))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_first", batch[0][0, 0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Plant(pl.Callback):
    """Changes one thing a little in one process, before step 4."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer: Any, found: Any, batch: Any, index: int) -> None:
        if dist.get_rank() != 1 or index != 3 or not self.what:
            return
        cell = next(iter(found.cells.values()))
        with torch.no_grad():
            if self.what == "surviving candidates":
                cell.drop(next(iter(cell.survivors)), 0)
            elif self.what == "weights":
                found.weights[0][0, 0] += 1e-4
            else:
                found.alphas[0][0] += 1e-4


def search(what: str) -> tuple[str, list[dict[str, float]]]:
    torch.manual_seed(0)
    cell = MixedCell("tiny", "dirichlet", "dense", seed=1)
    settings = SearchSettings(
        epochs=2, shrink=False, alpha_lr=0.05, check_ranks=CHECK, refine=RefineSettings(enabled=False)
    )
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(x, x.sum(1, keepdim=True).sin())
    metrics: list[dict[str, float]] = []
    found = BilevelSearch(Network(cell), {"network": cell}, settings)
    found.validation = DataLoader(data, batch_size=8)
    found.observers = [lambda snapshot: metrics.append(dict(snapshot.metrics))]
    pairs = PairLoader(DataLoader(data, batch_size=2), range(32), range(32, 64), 0, lambda: found.current_epoch)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2, callbacks=[Plant(what)],
    )  # fmt: skip
    try:
        trainer.fit(found, pairs)
    except RankError as error:
        return str(error), metrics
    return "", metrics


PLANTED = ["", "α", "weights", "surviving candidates"]


def work(rank: int, folder: str) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save([search(what) for what in PLANTED], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_planted_difference_is_found_by_all_and_metrics_are_those_of_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    for first, second in pairwise(both):
        for (said, metrics), (also_said, other_metrics), what in zip(first, second, PLANTED, strict=True):
            assert said == also_said
            assert metrics == other_metrics
            if what:
                assert said.startswith(f"step {2 * CHECK}: ")
                assert what in said
                assert "of rank 1 differ from those of rank 0" in said
                assert metrics == []
            else:
                assert said == ""
                assert len(metrics) == 2
    # Of eight validation batches each process took four, and the mean is that of all.
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(7))
    assert both[0][0][1][-1]["val_first"] == pytest.approx(float(x[::8, 0].mean()), abs=1e-6)


def test_averages_are_gathered_by_nobody_where_there_is_one_process() -> None:
    averages = Averages()
    averages.add("loss", torch.tensor(2.0))
    averages.gather()
    assert averages.means() == {"loss": 2.0}
