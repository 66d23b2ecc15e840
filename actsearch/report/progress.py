"""Progress of a search: phase, survivors, losses, formula; live in a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from actsearch.report.terminal import duration, plain
from actsearch.report.voice import REFRESH, Voice
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.monitor import CellSnapshot, Snapshot
from actsearch.work import Mode

NAMED = 3  # dropped candidates that a line names
SLOTS_A_ROW = 3


class SearchProgress(pl.Callback):
    """Tells how a search goes: give it to the Trainer as a callback *and* to the search as an observer.

    As a callback it sees batches, and moves a bar if there is a terminal; as an observer it sees the losses, survivors,
    the best candidates and the formula at the end of each epoch, and prints one line without a terminal. Under several
    processes only rank zero prints. Turn off Lightning's own bar (`enable_progress_bar=False`).

    Args:
        voice: what it tells through, or its mode: `auto`, `plain`, `quiet` or `json`, on standard output. Raises
            SettingsError for an unknown mode.
    """

    def __init__(self, voice: Voice | Mode = "auto") -> None:
        self.voice = voice if isinstance(voice, Voice) else Voice(voice)
        self._is_drawn = False
        self._clock = _Clock()
        self._epochs = 0
        self._phase = ""
        self._survivors: dict[str, dict[str, tuple[str, ...]]] = {}
        self._dropped: dict[str, dict[str, list[str]]] = {}
        self._leading: dict[str, dict[str, tuple[str, float]]] = {}
        self._losses: dict[str, float] = {}
        self._formula = ""
        self._batch = (0, 0)
        self._looked = 0.0

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the bar if there is a terminal."""
        self._clock.start(trainer.current_epoch)
        if self.voice.is_silent:
            return
        self._epochs = trainer.max_epochs or 0
        self._look_at(pl_module)
        if self.voice.is_live:
            self._is_drawn = True
            self.voice.put(self, self._render)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if not self._is_drawn:
            return
        total = trainer.num_training_batches
        self._batch = (batch_idx + 1, int(total) if math.isfinite(total) else 0)
        if time.monotonic() - self._looked >= REFRESH:
            self._clock.at(trainer.current_epoch + self._share_of_epoch)
            self._look_at(pl_module)
            self.voice.draw()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last state of the bar on the screen."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._is_drawn:
            self.voice.take(self, leave=True)
            self._is_drawn = False

    def _look_at(self, module: pl.LightningModule) -> None:
        """What is known between two epochs."""
        self._looked = time.monotonic()
        if not isinstance(module, BilevelSearch):
            return
        self._epochs = module.settings.epochs
        cells = dict(zip(module.cells, module._cells(), strict=True))
        self._enter(module.phase, int(module.current_epoch) + 1)
        self._survive({name: cell.survivors for name, cell in cells.items()}, int(module.current_epoch) + 1)
        if not self._formula:
            self._formula = _together([cell.genotype().formula for cell in cells.values()])

    # -- observer --------------------------------------------------------------------------------------------------

    def __call__(self, snapshot: Snapshot) -> None:
        """Take note of the end of an epoch; without a terminal, print its line."""
        self._clock.epoch_done(snapshot.epoch)
        if self.voice.is_silent:
            return
        self._epochs = snapshot.epochs
        self._losses = dict(snapshot.losses)
        self._leading = {name: _leading(cell) for name, cell in snapshot.cells.items()}
        self._formula = _together([cell.genotype.formula for cell in snapshot.cells.values()])
        self._batch = (0, 0)
        self._enter(snapshot.phase, snapshot.epoch)
        dropped = self._survive({name: dict(cell.survivors) for name, cell in snapshot.cells.items()}, snapshot.epoch)
        if self._is_drawn:
            self.voice.draw(force=True)
            return
        left = self._clock.left(self._epochs)
        self.voice.tell(
            "epoch",
            self._line(snapshot.epoch, left, dropped),
            epoch=snapshot.epoch,
            epochs=snapshot.epochs,
            step=snapshot.step,
            phase=snapshot.phase,
            candidates=self._n_survivors,
            losses=self._losses,
            formulas={name: cell.genotype.formula for name, cell in snapshot.cells.items()},
            leading={
                name: {slot: {"op": op, "probability": p} for slot, (op, p) in slots.items()}
                for name, slots in self._leading.items()
            },
            seconds_left=left,
        )

    def _enter(self, phase: str, epoch: int) -> None:
        """Note the phase; a new one is told, for good in a terminal."""
        if phase == self._phase:
            return
        self._phase = phase
        self.voice.tell("phase", f"  epoch {epoch}: {phase}" if self._is_drawn else "", phase=phase, epoch=epoch)

    def _survive(self, survivors: Mapping[str, Mapping[str, tuple[str, ...]]], epoch: int) -> list[str]:
        """Note who is left, and tell who is not; the dropped ones since the last time, as `slot op`."""
        found = []
        for cell, slots in survivors.items():
            dropped = {
                slot: gone
                for slot, before in self._survivors.get(cell, {}).items()
                if (gone := [op for op in before if op not in slots[slot]])
            }
            self._survivors[cell] = dict(slots)
            if dropped:
                self._dropped[cell] = dropped
                found += [f"{slot} {op}" for slot, gone in dropped.items() for op in gone]
                left = sum(map(len, slots.values()))
                self.voice.tell("shrunk", epoch=epoch, cell=cell, dropped=dropped, candidates=left)
        return found

    @property
    def _n_survivors(self) -> int:
        return sum(len(ops) for slots in self._survivors.values() for ops in slots.values())

    def _line(self, epoch: int, left: float | None, dropped: Sequence[str]) -> str:
        parts = [f"epoch {epoch}/{self._epochs}", self._phase, *self._numbers()]
        if left is not None and epoch < self._epochs:
            parts.append(f"{duration(left)} left")
        if dropped:
            parts.append(f"dropped {_listed(dropped)}")
        return " · ".join([*parts, self._formula])

    def _numbers(self) -> list[str]:
        losses = [f"{name} {self._losses[name]:.3g}" for name in ("train", "arch", "val") if name in self._losses]
        return [f"{self._n_survivors} candidate{'s' * (self._n_survivors != 1)}", *losses]

    # -- the bar ---------------------------------------------------------------------------------------------------

    @property
    def _share_of_epoch(self) -> float:
        done, total = self._batch
        return min(done / total, 1.0) if total else 0.0

    def _render(self) -> RenderableType:
        console = self.voice.console
        done = self._clock.position
        epoch = min(int(done) + 1, max(self._epochs, 1))
        left = self._clock.left(self._epochs)
        state = "done" if done >= self._epochs else f"{duration(left)} left" if left is not None else "…"
        bar = Table.grid(padding=(0, 1), expand=False)
        bar.add_row(
            Text(f"{self._phase:<10}", style="bold"),
            Text(f"epoch {epoch}/{self._epochs}"),
            ProgressBar(total=max(self._epochs, 1), completed=done, width=30),
            Text(plain(state, console), style="cyan"),
        )
        numbers = Text(plain(" · ".join(self._numbers()), console), style="dim")
        formula = Text(f"f(x) = {self._formula}", no_wrap=True, overflow="ellipsis")
        rows: list[RenderableType] = [bar, numbers, formula]
        if self._leading:
            rows.append(self._slots())
        gone = [f"{slot} {op}" for slots in self._dropped.values() for slot, ops in slots.items() for op in ops]
        if gone and self._phase != "discrete":
            rows.append(Text(plain(f"last dropped: {_listed(gone)}", console), style="dim"))
        return Group(*rows)

    def _slots(self) -> RenderableType:
        """The best candidate of each slot with its probability, of the first cell, three slots a row."""
        table = Table.grid(padding=(0, 2, 0, 0))
        cells = []
        for slot, (op, probability) in next(iter(self._leading.values())).items():
            left = len(next(iter(self._survivors.values()))[slot])
            of = f" of {left}" if left > 1 else ""
            text = Text.assemble((slot, "cyan"), f" {op} ", (f"{100 * probability:.0f} %{of}", "dim"))
            text.no_wrap = True
            cells.append(text)
        for start in range(0, len(cells), SLOTS_A_ROW):
            table.add_row(*cells[start : start + SLOTS_A_ROW])
        return table


def _leading(cell: CellSnapshot) -> dict[str, tuple[str, float]]:
    """The most probable candidate of each slot, and its probability."""
    return {slot: max(ps.items(), key=lambda item: item[1]) for slot, ps in cell.probabilities.items()}


def _listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


class _Clock:
    """Time left. A search speeds up as candidates are dropped, so the last epoch tells more than the mean."""

    def __init__(self) -> None:
        self.start(None)

    def start(self, epoch: int | None) -> None:
        """The search stands at the beginning of `epoch`, counted from 0; None if that is not known."""
        self.position = float(epoch or 0)
        self._since = (self.position, time.monotonic()) if epoch is not None else None
        self._last: float | None = None
        self._now = time.monotonic()

    def at(self, position: float) -> None:
        """So many epochs are done, a fraction included."""
        self.position, self._now = position, time.monotonic()

    def epoch_done(self, epoch: int) -> None:
        """`epoch` is over, counted from 1."""
        now = time.monotonic()
        if self._since is not None and epoch > self._since[0]:
            self._last = (now - self._since[1]) / (epoch - self._since[0])
        self._since = (float(epoch), now)
        self.at(float(epoch))

    def left(self, epochs: int) -> float | None:
        """Seconds to the end; None while there is nothing to judge by."""
        per_epoch = self._last
        if per_epoch is None and self._since is not None and self.position > self._since[0] + 0.01:
            per_epoch = (self._now - self._since[1]) / (self.position - self._since[0])
        return None if per_epoch is None else max(epochs - self.position, 0.0) * per_epoch


def _together(formulas: Sequence[str]) -> str:
    """The formula of one cell; of several, the first and how many there are beside it."""
    if not formulas:
        return ""
    others = len(formulas) - 1
    return formulas[0] + (f" (and {others} more cell{'s' * (others != 1)})" if others else "")
