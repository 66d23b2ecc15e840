"""The same batches, augmentation and dropout for every contestant of a seed, whatever it draws itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl

from actsearch.seeds import mix_seed, seed_all

_FETCH, _STEP = 1, 2  # tells their draws apart


class SeededBatches:
    """Iterates over a loader whose order and augmentation then depend on (`seed`, epoch, place) alone.

    Loaders draw from the global generators, when an epoch starts and, without worker processes, at each batch. They are
    seeded just before, and so are generators that the loader and its samplers own.

    Args:
        loader: what a `train_dataloader` gives: a DataLoader, or any iterable over batches.
        seed: of the retraining.
        epoch: tells the present epoch when an iteration starts.
    """

    def __init__(self, loader: Iterable[Any], seed: int, epoch: Callable[[], int]) -> None:
        self._loader, self._seed, self._epoch = loader, seed, epoch

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epoch()
        for part in ("", "sampler", "batch_sampler"):
            owner: Any = getattr(self._loader, part, None) if part else self._loader
            generator = getattr(owner, "generator", None)
            if generator is not None:
                generator.manual_seed(mix_seed(self._seed, _FETCH, epoch))
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)
        seed_all(self._seed, _FETCH, epoch)
        batches = iter(self._loader)
        place = 0
        while True:
            seed_all(self._seed, _FETCH, epoch, place)
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch
            place += 1


class SeededSteps(pl.Callback):
    """Seeds the global generators at the start of every training step: dropout cannot depend on the steps before."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seed_all(self._seed, _STEP, trainer.current_epoch, batch_idx)
