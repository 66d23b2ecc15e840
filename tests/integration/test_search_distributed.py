"""A search in two processes, of which one meets a number that is not finite. Its processes import this file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import actsearch._torchvision

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actsearch
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
    pairs = PairLoader(template, range(32), range(32, 64), 0, lambda: found.current_epoch)
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
            if name != "cells.network.evaluator.elements":  # on the host a refused step makes fewer passes
                assert torch.equal(value, device[name]), name


class Smooth(pl.LightningModule):
    """In float64, without anything that depends on how examples are put together to batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double()

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def whole_search(seed: int, world: int, folder: str) -> tuple[str, dict[str, Tensor]]:
    torch.manual_seed(seed)
    task = Smooth()
    x = torch.randn(256, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    data = DataLoader(TensorDataset(x, (2 * x.sum(1, keepdim=True)).tanh()), batch_size=16 // world, shuffle=True)
    found = actsearch.search(
        task, data, space="tiny", run_root=folder, observers=[], callbacks=[],
        trainer={"accelerator": "cpu", "devices": 1}, seed=seed, epochs=6, alpha_lr=0.01, evaluator="dense",
        warm_epochs=1, shrink_start=2,
    )  # fmt: skip
    last = sorted((found.run_dir / "checkpoints").glob("*"))[-1]
    state = torch.load(last, weights_only=True)["state_dict"]
    return found.genotype.formula, {name: value for name, value in state.items() if "alpha" in name}


def half(rank: int, folder: str) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save([whole_search(seed, 2, f"{folder}/runs{rank}") for seed in range(3)], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_half_the_batch_find_what_one_with_the_whole_finds(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    for seed in range(3):
        formula, alphas = whole_search(seed, 1, f"{tmp_path}/alone")
        assert alphas
        for results in both:
            assert results[seed][0] == formula
            for name, value in alphas.items():
                torch.testing.assert_close(results[seed][1][name], value, atol=1e-6, rtol=0)
        for name, value in both[0][seed][1].items():
            assert torch.equal(value, both[1][seed][1][name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [["-m", "actsearch"], ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "actsearch"]],
    ids=["lightning", "torchrun"],
)
def test_of_two_processes_one_writes_and_compares_and_one_alone_goes_on(launcher: list[str], tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    compared = ["--compare.seeds", "1", "--compare.epochs", "1", "--compare.activations", "[]", "--compare.random", "1"]
    several = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    output = run(*launcher, "search", "--space", "tiny", "--search.epochs", "3", *compared, *several)
    assert output.count("found:") == 1
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert len((folder / "genotypes.jsonl").read_text().splitlines()) == 3
    assert len((folder / "retrainings.jsonl").read_text().splitlines()) == 1 + 2
    found = (folder / "genotype.json").read_text()
    (folder / "genotype.json").unlink()
    sorted((folder / "checkpoints").glob("*"))[-1].unlink()
    run("-m", "actsearch", "search", "--resume", str(folder), "--trainer.devices", "1", "--trainer.strategy", "auto")
    assert json.loads(found)["slots"] == json.loads((folder / "genotype.json").read_text())["slots"]
