"""A search in two processes, of which one meets a number that is not finite. Its processes import this file."""

from __future__ import annotations

import logging
from datetime import timedelta
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
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.loader import PairLoader
from actsearch.search.settings import RefineSettings, SearchSettings
from actsearch.swap import swap


class Network(pl.LightningModule):
    def __init__(self, cell: MixedCell) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
        swap(self.net, lambda site: cell.add_site(site.name))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def search(rank: int, deferred: bool, accumulate: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    cell = MixedCell("tiny", "dirichlet", "dense", seed=1)
    settings = SearchSettings(
        epochs=2, shrink=False, accumulate=accumulate, alpha_lr=0.05, refine=RefineSettings(enabled=False)
    )
    found = BilevelSearch(Network(cell), {"network": cell}, settings)
    found.deferred = deferred
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(7))
    if rank == 1:  # once a weights' batch, once a batch of α, and all batches of one step of two
        x[[1, 9, 13, 41]] = torch.nan
    template = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=2)
    pairs = PairLoader(template, range(32), range(32, 64), 0, lambda: found.current_epoch, rank, 2)
    pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
    ).fit(found, pairs)
    return {name: value.detach() for name, value in found.state_dict().items()}


CASES = [(deferred, accumulate) for deferred in (False, True) for accumulate in (1, 2)]


def work(rank: int, folder: str) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save([search(rank, *case) for case in CASES], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_step_that_one_process_must_skip_is_skipped_by_both(tmp_path: Path) -> None:
    """Neither waits for the other for ever, and both end with the same bits, wherever the decision is made."""
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert int(ours["skipped"]) > 0
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
            assert value.isfinite().all()
    for host, device in zip(first[:2], first[2:], strict=True):
        for name, value in host.items():
            assert torch.equal(value, device[name]), name
