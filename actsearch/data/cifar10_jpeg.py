"""CIFAR-10 as JPEG files in one .npz: complete but lossy, for development where the original cannot be had."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from actsearch.data.source import Source, Split, in_bytes, vision_root
from actsearch.data.torchvision_sets import CIFAR_AUGMENT, CIFAR_MEAN, CIFAR_STD
from actsearch.errors import DataError

FILE = "cifar10_jpeg.npz"


def cifar10_jpeg(root: Path) -> Source:
    """Read `<root>/cifar10/cifar10_jpeg.npz` (or without the folder). Accuracies on it are not CIFAR-10's.

    Arrays, for `train_` and `test_`: `jpeg` uint8 (all files, one after the other), `offset` (N + 1), `label` (N).
    """
    folder = vision_root(root)
    places = [folder / "cifar10" / FILE, folder / FILE]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise DataError(f"CIFAR-10 (JPEG): no {places[0]}; put the file there, or use the data set 'cifar10'")
    try:
        with np.load(path, allow_pickle=False) as archive:
            train, test = _split(archive, "train"), _split(archive, "test")
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not CIFAR-10 as JPEG ({error}); fetch it again") from error
    return Source("CIFAR-10 (JPEG)", train, test, 10, in_bytes(CIFAR_MEAN), in_bytes(CIFAR_STD), CIFAR_AUGMENT)


def _split(archive: np.lib.npyio.NpzFile, part: str) -> Split:
    content, offsets, labels = (archive[f"{part}_{key}"] for key in ("jpeg", "offset", "label"))

    def decode(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), 3, 32, 32), dtype=np.uint8)
        for image, i in zip(images, indices, strict=True):
            file = io.BytesIO(content[offsets[i] : offsets[i + 1]].tobytes())
            image[:] = np.asarray(Image.open(file)).transpose(2, 0, 1)
        return images

    return Split(labels.astype(np.int64), decode)
