"""Where images are kept: in host memory, or on the accelerator that trains."""

from __future__ import annotations

from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch

from actsearch.data.held import HeldData
from actsearch.errors import SettingsError

# Of the free memory of an accelerator, so much may be taken by data that nobody said should lie there.
SHARE = 0.25


def check_place(wanted: str) -> str:
    """`wanted` itself. Raises SettingsError unless it is auto, cpu, cuda, or cuda with a number."""
    kind, _, number = wanted.partition(":")
    if wanted not in ("auto", "cpu") and not (kind == "cuda" and (number.isdecimal() or wanted == "cuda")):
        raise SettingsError(f"device of data must be auto, cpu, cuda or a numbered one such as cuda:1, not {wanted!r}")
    return wanted


def find_place(wanted: str, trains: torch.device, size: int) -> torch.device:
    """Where `size` bytes of data belong.

    auto: on the device that trains if it is a CUDA device, and `size` is at most SHARE of its free memory; else in host
    memory. cuda: on that device, or the first if another trains. Raises SettingsError for one that is not there.
    """
    if wanted == "auto":
        fits = trains.type == "cuda" and size <= SHARE * torch.cuda.mem_get_info(trains)[0]
        return trains if fits else torch.device("cpu")
    place = torch.device(wanted)
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            raise SettingsError(f"device of data is {wanted}, and there are {count} CUDA devices; use auto")
        if place.index is None:
            return trains if trains.type == "cuda" else torch.device("cuda", 0)
    return place


class PlaceData(pl.Callback):
    """Tells held data which device trains, in every process, as soon as Lightning knows.

    For trainers that are given loaders; a datamodule that is given to a Trainer finds out by itself.
    """

    def __init__(self, datamodule: Any) -> None:
        self._datamodule = datamodule

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if isinstance(self._datamodule, HeldData):
            self._datamodule.place(trainer.strategy.root_device)
