"""What the data modules of images and of texts have in common: all of it is held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from actsearch.data.batch import collate
from actsearch.data.source import default_root
from actsearch.errors import SettingsError


class HeldData(pl.LightningDataModule):
    """A data module that reads its set once, when it is first asked for. Raises SettingsError for bad loading.

    `kind` names the task that fits, as `actsearch.tasks.build` does. `_loaded` is what was read: its title, its parts
    train and test, and eval_train, which is train without augmentation.
    """

    kind: str
    name: str  # Lightning's own attribute, which may be None there
    _loaded: Any

    def __init__(
        self,
        name: str,
        root: str | Path | None,
        batch_size: int,
        num_workers: int,
        limit_train: int | None,
        limit_test: int | None,
        seed: int,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise SettingsError(f"batch_size must be ≥ 1 and num_workers ≥ 0, not {batch_size} and {num_workers}")
        self.name = name
        self.root = default_root() if root is None else Path(root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.limit_train = limit_train
        self.limit_test = limit_test
        self.seed = seed
        self.options = options

    @property
    def title(self) -> str:
        """What to call the data in a table: "CIFAR-10 (JPEG)" is not CIFAR-10."""
        return self._loaded.title

    @property
    def train_set(self) -> Any:
        """The training examples, augmented if they are to be."""
        return self._loaded.train

    @property
    def eval_train_set(self) -> Any:
        """The training examples without augmentation, in the order of `train_set`."""
        return self._loaded.eval_train

    @property
    def test_set(self) -> Any:
        """The test examples."""
        return self._loaded.test

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this in one process a machine)."""
        _ = self._loaded

    def setup(self, stage: str | None = None) -> None:
        """Read the data, once, and put it where the Trainer trains if this module was given to one."""
        _ = self._loaded
        if self.trainer is not None:
            self.place(self.trainer.strategy.root_device)

    def place(self, device: torch.device) -> None:
        """Told which device trains, for data that may be kept there. Here it stays in host memory."""

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_set, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return self.loader(self.test_set, shuffle=False)

    def loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        """A loader over `dataset`, for instance a subset of `train_set`, with this module's batch size and workers."""
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            # Without workers `collate` pins, because it knows what is on the device already.
            pin_memory=torch.cuda.is_available() and self.num_workers > 0,
        )
