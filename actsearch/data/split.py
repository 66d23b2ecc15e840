"""Stratified choices of examples."""

from __future__ import annotations

import numpy as np


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of `count` examples in which each class keeps its share of `labels` (N,), to within one example.

    The same seed gives nested choices: the first 100 are among the first 200. Needs 0 ≤ count ≤ N.
    """
    rng = np.random.default_rng(seed)
    position = np.empty(len(labels))
    # Spread each class evenly over [0, 1) in random order; then any prefix of the joint order is stratified.
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.sort(np.argsort(position, kind="stable")[:count])
