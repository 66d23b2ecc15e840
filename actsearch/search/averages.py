"""Averages: what is logged within an epoch, by the search and by the task that it wraps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from actsearch.ranks import rank_and_world


class Averages:
    """Sums and counts by name; tensors stay where they are until somebody asks for the means."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Any]] = {}

    def add(self, name: str, value: Tensor, count: int | Tensor = 1) -> None:
        """Count `value` (0-d) in under `name`; with a count of 0 it must be 0."""
        entry = self._sums.setdefault(name, [0.0, 0])
        entry[0] = entry[0] + value
        entry[1] = entry[1] + count

    def means(self) -> dict[str, float]:
        """The mean under every name that was counted at least once."""
        return {name: float(total / n) for name, (total, n) in self._sums.items() if n}

    def counts(self) -> dict[str, int]:
        """How often each was counted."""
        return {name: int(n) for name, (_, n) in self._sums.items()}

    def clear(self) -> None:
        """Begin again."""
        self._sums = {}

    def copy(self) -> Averages:
        """As they are now."""
        found = Averages()
        found._sums = {name: list(entry) for name, entry in self._sums.items()}
        return found

    def state(self) -> dict[str, list[float | int]]:
        """Plain data that `load` reads back."""
        return {name: [float(total), int(n)] for name, (total, n) in self._sums.items()}

    def load(self, state: Mapping[str, list[float | int]]) -> None:
        """Go on from what `state` gave."""
        self._sums = {name: list(entry) for name, entry in state.items()}

    def gather(self) -> None:
        """Add up the sums and counts of all processes that share the training; all must call it."""
        _, world = rank_and_world()
        if world == 1:
            return
        found: list[dict[str, list[float | int]]] = [{} for _ in range(world)]
        torch.distributed.all_gather_object(found, self.state())
        self._sums = {}
        for state in found:
            for name, (total, n) in state.items():
                entry = self._sums.setdefault(name, [0.0, 0])
                entry[0], entry[1] = entry[0] + total, entry[1] + n

    @contextmanager
    def recording(self, task: pl.LightningModule, prefix: str | None) -> Iterator[None]:
        """Within it, what the task logs is counted in under `prefix`; dropped if that is None.

        The task's own `log` would write into Lightning's present hook under names that both levels share.
        """

        def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            if prefix is not None and isinstance(value, Tensor | int | float):
                self.add(prefix + name, torch.as_tensor(value).detach().float().mean())

        def log_dict(values: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
            for name, value in values.items():
                log(name, value)

        task.__dict__["log"], task.__dict__["log_dict"] = log, log_dict
        try:
            yield
        finally:
            del task.__dict__["log"], task.__dict__["log_dict"]
