"""PairLoader: the same batches for the same seed and epoch, from any position, with any number of workers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from actsearch.data import ImageData
from actsearch.errors import TaskError
from actsearch.search.loader import PairLoader


class Augmented(Dataset[Any]):
    """Gives its position, and noise of all three global generators."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        noise = [torch.rand(()).item(), float(np.random.rand()), random.random()]  # noqa: NPY002
        return index, torch.tensor(noise)


def pairs(workers: int = 0, seed: int = 1, epoch: int = 0, skip: int | None = None, **options: Any) -> list[Any]:
    given = {name: options.pop(name) for name in ("ranks", "limit") if name in options}
    template = DataLoader(Augmented(46), batch_size=5, num_workers=workers, **options)
    loader = PairLoader(template, range(36), range(36, 46), seed, lambda: epoch, **given)
    if skip is not None:
        loader.load_state_dict({"position": skip})
    return list(loader)


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p[part][k], q[part][k]) for p, q in zip(a, b, strict=True) for part in p for k in (0, 1)
    )


def positions(batches: list[Any], part: str) -> list[int]:
    return [int(k) for pair in batches for k in pair[part][0]]


def test_an_epoch_goes_once_through_the_weights_part_and_around_alphas_part() -> None:
    epoch = pairs()
    assert len(epoch) == 7  # 36 examples in batches of 5; the last of one would break batch normalisation
    weights, arch = positions(epoch, "weights"), positions(epoch, "arch")
    assert len(set(weights)) == len(weights) == 35
    assert set(weights) <= set(range(36))
    assert [len(pair["arch"][0]) for pair in epoch] == [5] * 7
    assert set(arch) == set(range(36, 46))
    assert sorted(arch[:10]) == sorted(arch[10:20]) == list(range(36, 46))
    assert arch[:10] != arch[10:20]  # a new order each time round


def test_a_limit_ends_the_epoch_early_and_each_epoch_sees_others() -> None:
    assert same(pairs(limit=3), pairs()[:3])
    assert same(pairs(limit=3, skip=2), pairs()[2:3])
    assert same(pairs(limit=99), pairs())
    seen = {k for epoch in range(20) for k in positions(pairs(limit=3, epoch=epoch), "weights")}
    assert seen == set(range(36))


def test_after_a_limited_epoch_the_next_starts_at_its_beginning() -> None:
    loader = PairLoader(DataLoader(Augmented(46), batch_size=5), range(36), range(36, 46), 1, lambda: 0, limit=3)
    assert len(loader) == len(list(loader)) == 3
    assert loader.state_dict() == {"position": 0}


def test_no_two_batches_of_an_epoch_share_their_augmentation() -> None:
    noise = torch.cat([pair[part][1] for pair in pairs() for part in pair])
    assert len(noise.unique()) == noise.numel()


def test_the_batches_depend_on_seed_and_epoch_and_not_on_the_global_generators() -> None:
    torch.manual_seed(1)
    first = pairs()
    torch.manual_seed(2)
    random.seed(2)
    assert same(first, pairs())
    for other in (pairs(seed=2), pairs(epoch=1)):
        assert positions(other, "weights") != positions(first, "weights")
        assert positions(other, "arch") != positions(first, "arch")


def test_workers_change_nothing() -> None:
    assert same(pairs(), pairs(workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_at_a_batch_goes_on_with_the_same_bits(workers: int) -> None:
    whole = pairs(epoch=3)
    for position in (0, 1, 4, 6):
        assert same(pairs(workers, epoch=3, skip=position), whole[position:])


def test_the_state_is_the_position_and_zero_between_epochs() -> None:
    epoch = 0
    template = DataLoader(Augmented(46), batch_size=5)
    loader = PairLoader(template, range(36), range(36, 46), 1, lambda: epoch)
    assert loader.state_dict() == {"position": 0}
    iterator = iter(loader)
    seen = []
    for _ in range(3):
        next(iterator)
        seen.append(loader.state_dict()["position"])
    assert seen == [1, 2, 3]
    rest = PairLoader(template, range(36), range(36, 46), 1, lambda: epoch)
    rest.load_state_dict(loader.state_dict())
    assert same(list(rest), list(iterator))
    assert loader.state_dict() == rest.state_dict() == {"position": 0}
    epoch = 1
    assert same(list(loader), list(rest))
    assert len(list(loader)) == len(loader) == 7


def test_the_epoch_is_asked_for_when_the_iteration_begins() -> None:
    epoch = 0
    loader = PairLoader(DataLoader(Augmented(46), batch_size=5), range(36), range(36, 46), 1, lambda: epoch)
    iterator = iter(loader)
    epoch = 5  # Lightning makes the iterator before it moves on
    assert same(list(iterator), pairs(epoch=5))


def test_processes_share_an_order_without_overlap() -> None:
    ranks = [pairs(ranks=lambda rank=rank: (rank, 2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    both = [positions(batches, "weights") for batches in ranks]
    assert not set(both[0]) & set(both[1])
    assert len(both[0]) == len(both[1]) == 18
    assert set(both[0]) | set(both[1]) == set(range(36))


def test_a_short_last_batch_is_kept_unless_it_is_dropped_or_single() -> None:
    def sizes(n: int, **options: Any) -> list[int]:
        template = DataLoader(Augmented(n + 10), batch_size=4, **options)
        return [len(p["weights"][0]) for p in PairLoader(template, range(n), range(n, n + 10), 0, lambda: 0)]

    assert sizes(10) == [4, 4, 2]
    assert sizes(9) == [4, 4]
    assert sizes(10, drop_last=True) == [4, 4]
    assert sizes(3) == [3]


def test_collation_is_that_of_the_users_loader() -> None:
    def collate(items: list[Any]) -> str:
        return ",".join(str(index) for index, _ in items)

    template = DataLoader(Augmented(20), batch_size=4, collate_fn=collate)
    pair = next(iter(PairLoader(template, range(16), range(16, 20), 0, lambda: 0)))
    assert sorted(pair["arch"].split(",")) == ["16", "17", "18", "19"]


class Told(Dataset[Any]):
    """Gives the process that made an example, and noise."""

    def __len__(self) -> int:
        return 46

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return os.getpid(), torch.rand(2)


def two_epochs(workers: int, keep: bool, stop: int | None = None) -> tuple[list[Any], list[Any]]:
    """Epochs 0 and 1 of one loader; of the first only `stop` pairs, if that is given."""
    epoch = 0
    template = DataLoader(Told(), batch_size=5, num_workers=workers, persistent_workers=keep)
    loader = PairLoader(template, range(36), range(36, 46), 1, lambda: epoch)
    first = list(itertools.islice(loader, stop))
    epoch = 1
    return first, list(loader)


def processes(batches: list[Any]) -> set[int]:
    return {int(k) for pair in batches for half in pair.values() for k in half[0]}


def noise(batches: list[Any]) -> torch.Tensor:
    return torch.cat([half[1] for pair in batches for half in pair.values()])


def test_both_halves_come_from_the_workers_that_were_asked_for_and_these_go_on_if_they_shall() -> None:
    first, second = two_epochs(2, keep=True)
    assert len(processes(first)) == 2
    assert processes(first) == processes(second)
    assert not processes(first) & {os.getpid()}
    first, second = two_epochs(2, keep=False)
    assert len(processes(first)) == len(processes(second)) == 2
    assert not processes(first) & processes(second)


@pytest.mark.parametrize("stop", [None, 3])
def test_workers_that_go_on_change_nothing_even_after_an_epoch_that_was_broken_off(stop: int | None) -> None:
    for kept, alone in zip(two_epochs(2, keep=True, stop=stop), two_epochs(0, keep=False, stop=stop), strict=True):
        assert torch.equal(noise(kept), noise(alone))


def test_workers_load_ahead_start_and_wait_as_the_users_loader_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Watched(DataLoader):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.update(options)
            super().__init__(*arguments, **options)

    template = DataLoader(
        Augmented(46), batch_size=5, num_workers=1, prefetch_factor=3, multiprocessing_context="fork", timeout=30
    )
    loader = PairLoader(template, range(36), range(36, 46), 1, lambda: 0)
    monkeypatch.setattr("actsearch.search.loader.DataLoader", Watched)
    assert len(list(loader)) == 7
    assert (asked["prefetch_factor"], asked["timeout"]) == (3, 30)
    assert asked["multiprocessing_context"].get_start_method() == "fork"


@pytest.mark.parametrize("position", [1, 4])
def test_an_epoch_resumed_with_workers_that_go_on_has_the_same_bits(position: int) -> None:
    template = DataLoader(Told(), batch_size=5, num_workers=2, persistent_workers=True)
    loader = PairLoader(template, range(36), range(36, 46), 1, lambda: 0)
    whole = list(loader)
    loader.load_state_dict({"position": position})
    assert torch.equal(noise(list(loader)), noise(whole[position:]))


def test_closing_ends_the_workers_and_another_epoch_starts_new_ones() -> None:
    template = DataLoader(Told(), batch_size=5, num_workers=1, persistent_workers=True)
    loader = PairLoader(template, range(36), range(36, 46), 1, lambda: 0)
    first = list(loader)
    (process,) = (p for p in multiprocessing.active_children() if p.pid in processes(first))
    loader.close()
    process.join(20)
    assert not process.is_alive()
    again = list(loader)
    loader.close()
    assert not processes(first) & processes(again)
    assert torch.equal(noise(first), noise(again))


class Stacked(list[Any]):
    def stacked(self) -> list[Any]:
        return ["a batch of", len(self)]


class Whole(Augmented):
    def __getitems__(self, indices: list[int]) -> Stacked:
        return Stacked(self[i] for i in indices)


def test_the_default_collation_takes_a_batch_that_is_stacked_already() -> None:
    def first(**options: Any) -> Any:
        template = DataLoader(Whole(46), batch_size=5, **options)
        return next(iter(PairLoader(template, range(36), range(36, 46), 1, lambda: 0)))

    assert first() == {"weights": ["a batch of", 5], "arch": ["a batch of", 5]}
    assert first(collate_fn=len) == {"weights": 5, "arch": 5}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_the_bits_of_the_examples(workers: int) -> None:
    data = ImageData(augment=True, limit_train=46, batch_size=5, num_workers=workers)

    class Examples(Dataset[Any]):
        __len__ = data.train_set.__len__

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return list(data.train_set.__getitems__(indices))

    def epoch(template: DataLoader[Any]) -> list[Any]:
        return list(PairLoader(template, range(36), range(36, 46), 1, lambda: 0))

    one_by_one = epoch(DataLoader(Examples(), batch_size=5))
    own = data.train_dataloader()
    for template in (own, DataLoader(data.train_set, batch_size=5), DataLoader(own.dataset, 5, num_workers=workers)):
        assert same(epoch(template), one_by_one)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([1, 2], "must return a torch DataLoader, not list"),
        (DataLoader(Stream()), "is a stream and cannot be split"),
        (DataLoader(Augmented(4), batch_size=None), "must batch by batch_size"),
        (DataLoader(Augmented(4), batch_sampler=[[0, 1], [2, 3]]), "must batch by batch_size"),
    ],
)
def test_a_loader_that_cannot_be_split_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        PairLoader(loader, [0, 1], [2, 3], 0, lambda: 0)


def test_parts_without_a_batch_are_refused() -> None:
    template = DataLoader(TensorDataset(torch.zeros(4)), batch_size=2)
    for weights, arch in (([], [0, 1]), ([0, 1], [])):
        with pytest.raises(TaskError, match="too few training examples"):
            PairLoader(template, weights, arch, 0, lambda: 0)
    with pytest.raises(TaskError, match="too few"):
        PairLoader(template, [0], [1, 2], 0, lambda: 0, lambda: (0, 2))
