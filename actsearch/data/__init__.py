"""Image classification data by name, held in memory and augmented a batch at a time.

    data = ImageData("cifar10", root="~/data", batch_size=64)

A new set is a file in this folder and a line in `registry.py`.
"""

import actsearch._torchvision  # noqa: F401

from actsearch.data.augment import Augment
from actsearch.data.imageset import ImageSet
from actsearch.data.module import ImageData
from actsearch.data.registry import names
from actsearch.data.split import stratified

__all__ = ["Augment", "ImageData", "ImageSet", "names", "stratified"]
