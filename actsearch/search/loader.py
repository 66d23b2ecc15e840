"""PairLoader: one epoch of (weights' batch, α's batch) pairs, the same for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from actsearch.errors import TaskError
from actsearch.ranks import rank_and_world
from actsearch.seeds import mix_seed, seed_all

# Tells the orders of the two parts apart.
_STREAM = {"weights": 0, "arch": 1}


class _Seeded(Dataset[Any]):
    """A dataset whose random augmentation depends on the batch's seed and place alone, in any process.

    It is asked for [seed, place, *positions].
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, keyed: list[int]) -> Any:
        seed, place, *indices = keyed
        seed_all(seed, place)
        if hasattr(self._dataset, "__getitems__"):
            return self._dataset.__getitems__(indices)
        return [self._dataset[i] for i in indices]


class _Order:
    """What the loader's batches are to be; set before each iteration, so that one loader and its workers serve all."""

    def __init__(self) -> None:
        self.keyed: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.keyed)

    def __len__(self) -> int:
        return len(self.keyed)


def _collate(examples: Any) -> Any:
    """torch's default collation, of which a dataset that makes whole batches may have the outcome already."""
    stacked = getattr(examples, "stacked", None)
    return default_collate(examples) if stacked is None else stacked()


class PairLoader:
    """Iterates over `{"weights": batch, "arch": batch}`, as many as there are batches in the weights' part.

    α's part is gone through as often as it takes, in a new order each time. The order of both depends on (`seed`,
    epoch, round) alone, so an epoch can be repeated, and can be resumed at a batch: `state_dict` holds the position.
    Both halves come through one loader with the template's workers, which go on from epoch to epoch if it says
    `persistent_workers`.

    Args:
        template: the user's DataLoader, from which batch size, collation and workers are taken.
        weights, arch: positions of the two parts in the template's dataset.
        seed: of the orders.
        epoch: tells the present epoch when an iteration starts.
        ranks: tells the number of this process and how many there are, of which each takes every so-manieth example of
            an order; asked when an order is needed, since a Trainer starts the other processes late.
        limit: an epoch ends after so many pairs, if the weights' part has more.

    Raises TaskError if the loader cannot be split.
    """

    def __init__(
        self,
        template: DataLoader[Any],
        weights: Sequence[int],
        arch: Sequence[int],
        seed: int,
        epoch: Callable[[], int],
        ranks: Callable[[], tuple[int, int]] = rank_and_world,
        limit: int | None = None,
    ) -> None:
        check_template(template)
        self._template = template
        self._parts = {"weights": torch.as_tensor(weights), "arch": torch.as_tensor(arch)}
        self._seed = seed
        self._epoch = epoch
        self._ranks = ranks
        self._limit = limit
        self._position = 0
        self._skip = 0
        self._batches = _Order()
        self._loader: DataLoader[Any] | None = None
        for part in self._parts:
            self._order(part, 0, 0)

    def __len__(self) -> int:
        return len(self._order("weights", 0, 0)[: self._limit])

    def _order(self, part: str, epoch: int, turn: int) -> list[list[int]]:
        """Batches of dataset positions of one pass over a part."""
        indices = self._parts[part]
        rank, world = self._ranks()
        generator = torch.Generator().manual_seed(mix_seed(self._seed, epoch, turn, _STREAM[part]))
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        shuffled = shuffled[: len(shuffled) // world * world][rank::world]
        size = self._template.batch_size
        assert size is not None
        batches = [batch.tolist() for batch in shuffled.split(size) if len(batch)]
        # A last batch of one breaks batch normalisation; a short one is kept unless the user drops it.
        short = len(batches) > 1 and len(batches[-1]) < (size if self._template.drop_last else 2)
        if not batches:
            sizes = [len(self._parts[name]) for name in ("weights", "arch")]
            raise TaskError(
                f"too few training examples ({sizes[0]} for weights, {sizes[1]} for α) for batches of {size}"
                f"{f' in each of {world} processes' if world > 1 else ''}; use smaller batches or more data"
            )
        return batches[:-1] if short else batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator's body starts at the first next(), after Lightning has moved to the epoch.
        epoch = self._epoch()
        start, self._skip = self._skip, 0
        self._position = start
        weights = self._order("weights", epoch, 0)[: self._limit]
        arch: list[list[int]] = []
        turn = 0
        while len(arch) < len(weights):
            arch += self._order("arch", epoch, turn)
            turn += 1
        self._batches.keyed = [
            [mix_seed(self._seed, epoch, part), place, *half]
            for place, pair in enumerate(zip(weights, arch, strict=False))
            for part, half in enumerate(pair)
        ][2 * start :]
        stream = self._stream(epoch)
        for half in stream:
            pair = {"weights": half, "arch": next(stream)}
            self._position += 1
            yield pair
        self._position = 0

    def _stream(self, epoch: int) -> Iterator[Any]:
        """The batches, weights' and α's in turn."""
        template = self._template
        if self._loader is None:
            self._loader = DataLoader(
                _Seeded(template.dataset),
                batch_sampler=self._batches,
                collate_fn=_collate if template.collate_fn is default_collate else template.collate_fn,
                persistent_workers=template.persistent_workers,
                generator=torch.Generator(),
                **_workers(template),
            )
        # DataLoader draws a base seed at every iteration; not from the global generator.
        self._loader.generator.manual_seed(mix_seed(self._seed, epoch))
        return iter(self._loader)

    def close(self) -> None:
        """Let workers that go on from epoch to epoch end; another iteration starts new ones."""
        self._loader = None

    def state_dict(self) -> dict[str, int]:
        """The position within the epoch; 0 between epochs."""
        return {"position": 0 if self._position >= len(self) else self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration at the given position."""
        self._skip = int(state["position"])


def validation_loader(
    datamodule: Any, loader: DataLoader[Any], arch: NDArray[np.int64], seed: int, limit: int | None = None
) -> DataLoader[Any]:
    """α's part in a fixed order, without augmentation where the datamodule offers that (`eval_train_set`).

    The order is mixed: the first batches alone, which is all that refine reads, hold what the whole part holds.
    `limit`: so many batches at most.
    """
    dataset = getattr(datamodule, "eval_train_set", loader.dataset)
    mixed = np.random.default_rng([seed, len(arch)]).permutation(arch)
    if limit is not None:
        assert loader.batch_size is not None
        mixed = mixed[: limit * loader.batch_size]
    return DataLoader(
        Subset(dataset, mixed.tolist()),
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


def weights_loader(template: DataLoader[Any], weights: NDArray[np.int64]) -> DataLoader[Any]:
    """The weights' part alone, shuffled, in batches like those of a PairLoader: as many, none with a single example."""
    size = template.batch_size
    assert size is not None
    short = len(weights) % size
    return DataLoader(
        Subset(template.dataset, weights.tolist()),
        batch_size=size,
        shuffle=True,
        drop_last=len(weights) > size and (template.drop_last or short == 1),
        collate_fn=_collate if template.collate_fn is default_collate else template.collate_fn,
        generator=torch.Generator(),
        **_workers(template),
    )


def _workers(template: DataLoader[Any]) -> dict[str, Any]:
    """How a loader loads: what has no influence on which examples come, nor in which order."""
    return {
        "num_workers": template.num_workers,
        "prefetch_factor": template.prefetch_factor,
        "multiprocessing_context": template.multiprocessing_context,
        "timeout": template.timeout,
        "pin_memory": template.pin_memory,
        "worker_init_fn": template.worker_init_fn,
    }


def check_template(loader: Any) -> None:
    """Raises TaskError if `loader` is not a DataLoader over a sized dataset, in batches."""
    if not isinstance(loader, DataLoader):
        raise TaskError(
            f"the datamodule's train_dataloader must return a torch DataLoader, not {type(loader).__name__}"
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise TaskError("the training data is a stream and cannot be split 75/25; give a dataset with a length")
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler | DistributedSampler):
        raise TaskError(
            f"the training DataLoader's {type(loader.sampler).__name__} cannot be kept when its dataset is split; "
            "use shuffle=True, and weight examples in the loss"
        )
    if loader.batch_size is None:
        raise TaskError("the training DataLoader must batch by batch_size, so that its two parts can be batched alike")
