"""Images, text, equations and frames of atoms by name, held in memory; images are augmented a batch at a time.

    data = build("cifar10", root="~/data", batch_size=64)

A new set is a file in this folder and a line in `registry.py`.
"""

import actsearch._torchvision  # noqa: F401

from actsearch.data.augment import Augment
from actsearch.data.build import build
from actsearch.data.frames.module import FrameData
from actsearch.data.imageset import ImageSet
from actsearch.data.module import ImageData
from actsearch.data.pde.module import PointData
from actsearch.data.registry import names
from actsearch.data.split import stratified
from actsearch.data.text import TextData
from actsearch.data.textset import TextSet

__all__ = [
    "Augment",
    "FrameData",
    "ImageData",
    "ImageSet",
    "PointData",
    "TextData",
    "TextSet",
    "build",
    "names",
    "stratified",
]
