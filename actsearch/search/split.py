"""The split of a training set into the part that trains the weights and the part that trains α."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actsearch.errors import TaskError


def split(
    n: int, fraction: float, seed: int, labels: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted positions of the weights' part and of α's part, which holds `fraction` of the `n` examples.

    With `labels` (one whole number an example) every class is split in that proportion, to within one example, and the
    total is exact. The same seed gives the same split.

    Raises TaskError if either part would be empty.
    """
    size = round(n * fraction)
    if not 0 < size < n:
        raise TaskError(f"a training set of {n} example(s) cannot be split into {1 - fraction:.0%} and {fraction:.0%}")
    generator = np.random.default_rng([seed, n])
    order = generator.permutation(n)
    chosen = np.zeros(n, dtype=bool)
    if labels is None:
        chosen[order[:size]] = True
    else:
        classes, counts = np.unique(labels, return_counts=True)
        # Largest remainders, with ties broken at random: each class gets its share rounded down or up.
        quotas, remainders = np.divmod(counts * size, n)
        tie_break = generator.permutation(len(classes))
        up = np.lexsort((tie_break, -remainders))[: size - quotas.sum()]
        quotas[up] += 1
        for value, quota in zip(classes, quotas, strict=True):
            chosen[order[labels[order] == value][:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def labels_of(dataset: Any) -> NDArray[np.int64] | None:
    """Class labels of a dataset that names them (`targets`, `labels`, or whole numbers as a TensorDataset's last)."""
    for attribute in ("targets", "labels", "train_targets"):
        labels = getattr(dataset, attribute, None)
        if isinstance(labels, Sized) and len(labels) == len(dataset):
            return _whole(labels)
    tensors = getattr(dataset, "tensors", None)
    return _whole(tensors[-1]) if tensors else None


def _whole(labels: Any) -> NDArray[np.int64] | None:
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        return None
    # Hardly a class label if most values are their own class.
    return array.astype(np.int64) if len(np.unique(array)) <= max(2, len(array) // 2) else None
