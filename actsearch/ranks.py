"""Ranks: which of the processes that share a training this one is."""

from __future__ import annotations

import os

import actsearch._torchvision  # noqa: F401

import torch
from pytorch_lightning.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Whether this process is the first, or the only one: the one that writes and prints."""
    # Before it has a Trainer, Lightning goes by the number within the machine.
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many share the training, once they have met; before that 0 and 1."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def part() -> None:
    """Leave the other processes: what follows, such as a retraining on one device, must not wait for them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
