"""The data module of force fields: frames of atoms as Lightning wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from actsearch.data.frames.frameset import FrameSet
from actsearch.data.frames.references import elements_of, isolated, least_squares
from actsearch.data.frames.source import FrameSource, identity, kinds
from actsearch.data.held import HeldData
from actsearch.data.registry import FRAMES, check, read
from actsearch.data.split import stratified
from actsearch.errors import DataError, SettingsError, unknown_name
from actsearch.forcefield.frames import Frame, FrameBatch, collate

REFERENCES = ("least_squares", "isolated")
SAMPLE = 32


@dataclass(frozen=True)
class _Loaded:
    title: str
    references: dict[int, float]
    train: FrameSet
    test: FrameSet

    @property
    def eval_train(self) -> FrameSet:
        """Frames are not augmented."""
        return self.train


class FrameData(HeldData):
    """Frames of atoms by name (`actsearch.data.names("frames")`), in eV and Å; batches are FrameBatch.

    root: folder of the set, or the one that holds it under its own name or under forcefield/; default: the
        environment's ACTSEARCH_DATA, else ~/.cache/actsearch/data. Nothing is downloaded.
    batch_size: frames.
    limit_train, limit_test: use only that many frames, each kind (composition and group) in proportion, chosen by
        `seed`, in their order. The frames of a smaller limit are among those of a greater one.
    cutoff: Å, up to which batches hold neighbours; a model must not see farther.
    references: "least_squares" over the training frames, or "isolated", energies of isolated atoms if the set has them.
    options: of the set itself, such as `molecule` of "rmd17".

    `seed` never moves a frame between training and test; a set without an official division has its own `split_seed`.
    Raises UnknownNameError, SettingsError and, when the data is first asked for, DataError and MissingPackageError.
    """

    kind = "force_field"

    def __init__(
        self,
        name: str = "ethanol",
        root: str | Path | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
        seed: int = 0,
        cutoff: float = 5.0,
        references: str = "least_squares",
        **options: Any,
    ) -> None:
        super().__init__(name, root, batch_size, num_workers, limit_train, limit_test, seed, options)
        check(FRAMES, name, options)
        if not 0 < cutoff < np.inf:
            raise SettingsError(f"a cutoff is a distance in Å above 0, not {cutoff}")
        if references not in REFERENCES:
            raise SettingsError(unknown_name("kind of references", str(references), REFERENCES))
        self.cutoff = float(cutoff)
        self._references = references

    @property
    def references(self) -> dict[int, float]:
        """Energy of an atom of each element in training, eV."""
        return self._loaded.references

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers in training, ascending."""
        return tuple(self.references)

    @cached_property
    def sample(self) -> FrameBatch:
        """Up to 32 training frames, evenly spread over the set, for statistics of a model's inputs."""
        places = np.linspace(0, len(self.train_set) - 1, min(SAMPLE, len(self.train_set))).round().astype(int)
        return collate([self.train_set[int(k)] for k in places])

    @property
    def facts(self) -> dict[str, Any]:
        """What a model must know of the data: see `actsearch.models.build`."""
        return {
            "elements": self.elements,
            "cutoff": self.cutoff,
            "references": self.references,
            "sample": self.sample,
        }

    def loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        """A loader over `dataset`, for instance a subset of `train_set`, with this module's batch size and workers."""
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @cached_property
    def _loaded(self) -> _Loaded:
        source: FrameSource = read(FRAMES, self.name, self.root, self.options)
        if shared := {identity(f) for f in source.train} & {identity(f) for f in source.test}:
            raise DataError(f"{source.title}: {len(shared)} frames of the test part are in training too: remove them")
        train = _take(source.train, self.limit_train, self.seed, "limit_train")
        test = _take(source.test, self.limit_test, self.seed, "limit_test")
        if strangers := set(elements_of(test)) - set(elements_of(train)):
            raise DataError(
                f"{source.title}: elements {sorted(strangers)} occur in the test part only; no model can learn them"
            )
        chosen = isolated(train, source.isolated) if self._references == "isolated" else least_squares(train)
        return _Loaded(source.title, chosen, FrameSet(train, self.cutoff), FrameSet(test, self.cutoff))


def _take(frames: Sequence[Frame], limit: int | None, seed: int, setting: str) -> list[Frame]:
    if limit is None:
        return list(frames)
    if not 1 <= limit <= len(frames):
        raise SettingsError(f"{setting} must be from 1 to the {len(frames)} frames that there are, not {limit}")
    return [frames[k] for k in stratified(kinds(frames), limit, seed)]
