"""A swapped model under DistributedDataParallel. Its processes import this file, so it imports little."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.swap import swap


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.act(self.first(x)) - 0.1))


def swapped() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    swap(model, lambda site: nn.PReLU())
    return model


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    model = nn.parallel.DistributedDataParallel(swapped())
    torch.manual_seed(rank)
    model(torch.randn(6, 4)).square().mean().backward()
    torch.save({name: p.grad for name, p in model.module.named_parameters()}, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    model = swapped()
    batches = []
    for rank in range(2):
        torch.manual_seed(rank)
        batches.append(torch.randn(6, 4))
    model(torch.cat(batches)).square().mean().backward()
    assert {"act.weight", "relu_1.weight"} < set(first)
    for name, parameter in model.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter.grad)
