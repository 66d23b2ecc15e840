"""The split of the training set: exact, stratified, a function of the seed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from actsearch.errors import TaskError
from actsearch.search.split import labels_of, split


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.floats(0.02, 0.98), st.integers(0, 99), st.booleans())
def test_a_split_is_exact_and_every_class_is_within_one_example(
    counts: list[int], fraction: float, seed: int, large: bool
) -> None:
    counts = [500, *counts] if large else counts
    n = sum(counts)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if not 0 < round(n * fraction) < n:
        with pytest.raises(TaskError, match="cannot be split"):
            split(n, fraction, seed, labels)
        return
    weights, arch = split(n, fraction, seed, labels)
    assert len(arch) == round(n * fraction)
    assert np.array_equal(np.sort(np.concatenate([weights, arch])), np.arange(n))
    assert np.array_equal(weights, np.sort(weights))
    assert np.array_equal(arch, np.sort(arch))
    for value, count in enumerate(counts):
        assert abs((labels[arch] == value).sum() - count * len(arch) / n) < 1


@pytest.mark.parametrize("labels", [None, np.arange(1000) % 7])
def test_a_split_is_a_function_of_the_seed_and_random_within_a_class(labels: Any) -> None:
    first, again, other = (split(1000, 0.25, seed, labels) for seed in (3, 3, 4))
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[1], other[1])
    members = np.zeros(1000)
    for seed in range(400):
        members[split(1000, 0.25, seed, labels)[1]] += 1
    assert members.sum() == 400 * 250
    assert members.min() > 60  # expected 100 with a standard deviation of 9
    assert members.max() < 140


def test_a_split_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    split(100, 0.25, 0)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.25), (0, 0.5), (10, 0.01), (10, 0.99), (2, 0.1)])
def test_an_empty_part_is_an_error(n: int, fraction: float) -> None:
    with pytest.raises(TaskError, match=f"a training set of {n} example"):
        split(n, fraction, 0)


class Named(list[Any]):
    """A data set with whatever attributes."""

    def __init__(self, n: int, **attributes: Any) -> None:
        super().__init__(range(n))
        vars(self).update(attributes)


CLASSES = [k % 3 for k in range(12)]


@pytest.mark.parametrize(
    "dataset",
    [
        Named(12, targets=CLASSES),
        Named(12, labels=np.array(CLASSES)),
        Named(12, train_targets=torch.tensor(CLASSES)),
        Named(12, targets=None, labels=CLASSES),
        Named(12, targets=lambda: 3, labels=CLASSES),
        Named(12, targets=[1, 2], labels=CLASSES),
        TensorDataset(torch.zeros(12, 2), torch.tensor(CLASSES)),
    ],
)
def test_class_labels_are_found(dataset: Any) -> None:
    labels = labels_of(dataset)
    assert labels is not None
    assert labels.dtype == np.int64
    assert labels.tolist() == CLASSES


@pytest.mark.parametrize(
    "dataset",
    [
        Named(12),
        Named(12, targets=[0.5] * 12),
        Named(12, targets=["a"] * 12),
        Named(12, targets=[[0, 1]] * 12),
        Named(12, targets=list(range(12))),
        TensorDataset(torch.zeros(12, 2), torch.zeros(12, 1)),
        TensorDataset(torch.zeros(12, 2), torch.rand(12)),
        SimpleNamespace(),
    ],
)
def test_what_is_no_class_label_is_not_taken_for_one(dataset: Any) -> None:
    assert labels_of(dataset) is None
