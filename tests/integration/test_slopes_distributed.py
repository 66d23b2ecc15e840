"""The slope-recovery callback in two processes, which import this file."""

from __future__ import annotations

import logging
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from actsearch import models
from actsearch.ops.slopes import adapt, slope_recovery
from actsearch.tasks import Regression, SlopeRecovery


class ByHand(Regression):
    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return super().training_step(batch, batch_idx) + slope_recovery(self)


def fit(kind: type[Regression], callbacks: list[pl.Callback], batch_size: int, **options: Any) -> Regression:
    torch.manual_seed(0)
    model = models.mlp(4, 2, hidden=(7, 5))
    data = TensorDataset(torch.randn(64, 4), torch.randn(64, 2))
    adapt(model, "channel", 2.0, 1, example=data.tensors[0])
    task = kind(model, lr=0.05, weight_decay=0.0)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        **{"devices": 1, **options},
    )
    shares = DistributedSampler(data, shuffle=False) if dist.is_initialized() else None
    loader = DataLoader(data, batch_size=batch_size, sampler=shares)
    trainer.fit(task, loader, loader)
    if callbacks:
        assert 0 < trainer.callback_metrics["slope_recovery"] < math.exp(-0.5)
    return task


def work(rank: int, folder: str, accumulate: int) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that its processes are there already
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    # Every second example goes to the second process: four of each are eight in a row.
    task = fit(Regression, [SlopeRecovery()], 4, devices=2, strategy="ddp", accumulate_grad_batches=accumulate)
    torch.save(task.state_dict(), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one_that_adds_the_term_to_the_loss(tmp_path: Path, accumulate: int) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), accumulate), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    one = fit(ByHand, [], 8, accumulate_grad_batches=accumulate).state_dict()
    without = fit(Regression, [], 8, accumulate_grad_batches=accumulate).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)
        if name.endswith(".a"):
            assert (value - without[name]).abs().max() > 1e-3
