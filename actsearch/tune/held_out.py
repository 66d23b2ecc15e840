"""HeldOut: a part of the training data to choose hyper-parameters by, so that test data stay untouched."""

from __future__ import annotations

import actsearch._torchvision  # noqa: F401

from torch.utils.data import DataLoader, Subset

from actsearch.data.held import HeldData
from actsearch.search.split import labels_of, split


class HeldOut:
    """Loaders over the training set of `data`: most of it to train, `share` of it, without augmentation, to measure.

    Where examples have classes, each is divided in proportion; the same `seed` gives the same division.
    `test_dataloader` is what a Retrainer asks for, and gives the held-out part.
    Raises TaskError if either part would be empty.
    """

    def __init__(self, data: HeldData, share: float, seed: int = 0) -> None:
        self.data = data
        labels = labels_of(data.train_set)
        self.trained, self.held = split(len(data.train_set), share, seed, labels)

    def train_dataloader(self) -> DataLoader:
        return self.data.loader(Subset(self.data.train_set, self.trained.tolist()), shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return self.data.loader(Subset(self.data.eval_train_set, self.held.tolist()), shuffle=False)
