"""The data module: a named data set as Lightning wants it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actsearch.data.augment import NO_AUGMENT, Augment
from actsearch.data.held import HeldData
from actsearch.data.imageset import ImageSet, statistics
from actsearch.data.placement import check_place, find_place
from actsearch.data.registry import IMAGES, check, read
from actsearch.data.source import Source, Split
from actsearch.data.split import stratified
from actsearch.errors import SettingsError, unknown_name

AUGMENTS = ("standard", "trivial")


@dataclass(frozen=True)
class _Loaded:
    title: str
    num_classes: int
    train: ImageSet
    eval_train: ImageSet
    test: ImageSet


class ImageData(HeldData):
    """Images with classes, by name (`actsearch.data.names("images")`); batches: (B, C, H, W) float32 and (B,) int64.

    root: folder of the data sets (the .npz file for "npz", the folder with train/ and test/ for "folder"); default
        the environment's ACTSEARCH_DATA, else ~/.cache/actsearch/data. What is missing there is downloaded.
    augment: None, what is standard for the set; False, none; True or "standard", what is standard or, for a set
        without, crops with an eighth of the side as padding; "trivial", TrivialAugmentWide (for bytes from 0 to 255)
        before that.
    device: where images are kept as bytes and augmented. "auto": on the CUDA device that trains, if they take at most a
        quarter of its free memory, and without workers; else in host memory. "cpu", "cuda", "cuda:1", …: there. Batches
        of this module's loaders then arrive on that device, with the same images.
    limit_train, limit_test: use only that many images, each class in proportion, chosen by `seed`.
    options: of the set itself, such as `image_size` of "folder", or `split_seed` of the sets that have no test part.

    `seed` chooses subsets only, and never moves an image between training and test; order and augmentation draw from
    torch's global RNG. There is no validation part: whoever needs one takes it from `train_set` and, with the same
    indices and without augmentation, from `eval_train_set`.
    Raises UnknownNameError, SettingsError, and, when the data is first asked for, DataError.
    """

    kind = "classification"

    def __init__(
        self,
        name: str = "digits",
        root: str | Path | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool | str | None = None,
        limit_train: int | None = None,
        limit_test: int | None = None,
        seed: int = 0,
        device: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(name, root, batch_size, num_workers, limit_train, limit_test, seed, options)
        check(IMAGES, name, options)
        if isinstance(augment, str) and augment not in AUGMENTS:
            raise SettingsError(unknown_name("value of augment", augment, AUGMENTS))
        self.augment = augment
        self.device = check_place(device)
        if device.startswith("cuda") and num_workers:
            raise SettingsError(f"images on {device} are augmented there, not by workers: set num_workers to 0")

    @property
    def num_classes(self) -> int:
        return self._loaded.num_classes

    @property
    def in_channels(self) -> int:
        """Channels C, or the number of features F."""
        return self.train_set.images.shape[1]

    @property
    def image_size(self) -> int | tuple[int, int]:
        """The side of square images, else (height, width); 1 for feature vectors."""
        if self.train_set.images.ndim == 2:
            return 1
        height, width = self.train_set.images.shape[2:]
        return height if height == width else (height, width)

    @property
    def facts(self) -> dict[str, Any]:
        """What a model must know of the data: see `actsearch.models.build`."""
        return {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "in_features": math.prod(self.train_set.images.shape[1:]),
        }

    @property
    def train_targets(self) -> np.ndarray:
        """The labels of `train_set` as integers (N,)."""
        return self.train_set.targets

    def place(self, device: torch.device) -> None:
        """Keep the images where they belong if `device` trains. Raises SettingsError for a device that is not there."""
        train, test = self._loaded.train, self._loaded.test
        if self.device == "auto" and (self.num_workers or train.device == device):  # as before, whatever is free now
            return
        place = find_place(self.device, device, train.images.nbytes + test.images.nbytes)
        train.keep_on(place, others=[self._loaded.eval_train])
        test.keep_on(place)

    @cached_property
    def _loaded(self) -> _Loaded:
        source: Source = read(IMAGES, self.name, self.root, self.options)
        images, labels = _take(source.train, self.limit_train, self.seed, "limit_train")
        if source.mean is None or source.std is None:
            mean, std = statistics(images)
        else:
            mean, std = torch.tensor(source.mean), torch.tensor(source.std)
        return _Loaded(
            title=source.title,
            num_classes=source.num_classes,
            train=ImageSet(images, labels, mean, std, self._augment(source, images)),
            eval_train=ImageSet(images, labels, mean, std, None),
            test=ImageSet(*_take(source.test, self.limit_test, self.seed, "limit_test"), mean, std, None),
        )

    def _augment(self, source: Source, images: torch.Tensor) -> Augment | None:
        if self.augment is False:
            return None
        if self.augment is None:
            return source.augment if source.augment != NO_AUGMENT else None
        if images.ndim != 4:
            raise SettingsError(f"augment needs images, and {self.name} at {self.root} holds feature vectors")
        crops = Augment(padding=max(1, min(images.shape[2:]) // 8))
        standard = source.augment if source.augment != NO_AUGMENT else crops
        if self.augment != "trivial":
            return standard
        if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise SettingsError(
                f"augment 'trivial' needs images of bytes with 1 or 3 channels; {self.name} has {images.dtype} with "
                f"{images.shape[1]}; use 'standard'"
            )
        return replace(standard, trivial=True)


def _take(split: Split, limit: int | None, seed: int, setting: str) -> tuple[torch.Tensor, torch.Tensor]:
    total = len(split.labels)
    if limit is None:
        indices = np.arange(total)
    elif 1 <= limit <= total:
        indices = stratified(split.labels, limit, seed)
    else:
        raise SettingsError(f"{setting} must be from 1 to the {total} images that there are, not {limit}")
    return torch.from_numpy(split.pixels(indices)), torch.from_numpy(split.labels[indices])
