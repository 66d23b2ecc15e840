"""A user's own image files, one folder a class (the layout of torchvision's ImageFolder)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from actsearch.data.augment import Augment
from actsearch.data.source import Source, Split
from actsearch.errors import DataError, SettingsError


def folder(root: Path, image_size: int = 32) -> Source:
    """Read `root/train/<class>/*` and `root/test/<class>/*` as RGB, scaled and centre-cropped to image_size squared.

    Training images are cropped at random with an eighth of their side as padding, and mirrored.
    Raises DataError for a missing folder, classes that differ between the two, or a file that is not an image.
    """
    if image_size < 1:
        raise SettingsError(f"image_size must be at least 1 pixel, not {image_size}")
    train, test = (_find(root / part) for part in ("train", "test"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{root}: train and test must hold the same classes; only one of them has {', '.join(odd[:6])}")
    return Source(
        title=root.name,
        train=_split(train, image_size),
        test=_split(test, image_size),
        num_classes=len(train.classes),
        augment=Augment(padding=image_size // 8, flip=True),
    )


def _find(path: Path) -> ImageFolder:
    try:
        return ImageFolder(str(path))
    except OSError as error:
        raise DataError(f"no images: they belong in {path}/<class>/, one folder a class") from error


def _split(found: ImageFolder, image_size: int) -> Split:
    def decode(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), 3, image_size, image_size), dtype=np.uint8)
        for image, i in zip(images, indices, strict=True):
            image[:] = _decode(Path(found.samples[i][0]), image_size)
        return images

    return Split(np.array(found.targets, dtype=np.int64), decode)


def _decode(path: Path, image_size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (image_size, image_size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: repair or remove it") from error
    return np.asarray(fitted).transpose(2, 0, 1)
