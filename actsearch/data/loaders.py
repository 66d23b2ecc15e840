"""The loader that all data modules share."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from actsearch.errors import SettingsError


def check_loading(batch_size: int, num_workers: int) -> None:
    """Raise SettingsError for what no loader takes."""
    if batch_size < 1 or num_workers < 0:
        raise SettingsError(f"batch_size must be ≥ 1 and num_workers ≥ 0, not {batch_size} and {num_workers}")


def make_loader(dataset: Dataset, batch_size: int, num_workers: int, shuffle: bool) -> DataLoader:
    """Batches of `dataset`; what lies in memory needs no workers."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
