"""Progress of a search: a bar in a terminal, one plain line an epoch anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from actsearch.cell.mixed import MixedCell
from actsearch.errors import SettingsError, unknown_name
from actsearch.ranks import is_rank_zero
from actsearch.report.terminal import make_console, plain
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.monitor import Snapshot

Mode = Literal["auto", "quiet"]
REFRESH = 0.2  # seconds between two drawings of the bar


class SearchProgress(pl.Callback):
    """Tells how a search goes: give it to the Trainer as a callback *and* to the search as an observer.

    As a callback it sees batches, and moves a bar if there is a terminal; as an observer it sees the losses, survivors
    and formula at the end of each epoch, and prints one line without a terminal. Under several processes only rank zero
    prints. Turn off Lightning's own bar (`enable_progress_bar=False`).

    Args:
        mode: `auto`, or `quiet` to print nothing.
        console: where to print; default: standard output. Raises SettingsError for an unknown mode.
    """

    def __init__(self, mode: Mode = "auto", console: Console | None = None) -> None:
        if mode not in get_args(Mode):
            raise SettingsError(unknown_name("progress mode", mode, get_args(Mode)))
        self.mode = mode
        self._given = console
        # Made at the start of the search: a console holds locks, which cannot be sent to a spawned process.
        self._console: Console | None = None
        self._live: Live | None = None
        self._clock = _Clock()
        self._epochs = 0
        self._phase = ""
        self._survivors = 0
        self._losses: dict[str, float] = {}
        self._formula = ""
        self._batch = (0, 0)
        self._drawn = 0.0

    @property
    def _is_silent(self) -> bool:
        return self.mode == "quiet" or not is_rank_zero()

    def _open(self) -> Console:
        if self._console is None:
            self._console = self._given or make_console()
        return self._console

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the bar if there is a terminal."""
        self._clock.start(trainer.current_epoch)
        if self._is_silent:
            return
        self._epochs = trainer.max_epochs or 0
        self._look_at(pl_module)
        console = self._open()
        if console.is_terminal and not console.is_jupyter:
            # No thread that redraws: a data loader that forks while it holds a lock would hang.
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
            self._draw(force=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._live is None:
            return
        total = trainer.num_training_batches
        self._batch = (batch_idx + 1, int(total) if math.isfinite(total) else 0)
        if time.monotonic() - self._drawn >= REFRESH:
            self._clock.at(trainer.current_epoch + self._share_of_epoch)
            self._look_at(pl_module)
            self._draw()

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
        if self._live is not None:
            self._draw(force=True)
            self._live.stop()
            self._live = None

    def _look_at(self, module: pl.LightningModule) -> None:
        if not isinstance(module, BilevelSearch):
            return
        self._epochs = module.settings.epochs
        self._phase = module.phase
        cells = [cell for cell in module.cells.values() if isinstance(cell, MixedCell)]
        self._survivors = sum(cell.n_survivors for cell in cells)
        if not self._formula:
            self._formula = _together([cell.genotype().formula for cell in cells])

    # -- observer --------------------------------------------------------------------------------------------------

    def __call__(self, snapshot: Snapshot) -> None:
        """Take note of the end of an epoch; without a terminal, print its line."""
        self._clock.epoch_done(snapshot.epoch)
        if self._is_silent:
            return
        self._epochs = snapshot.epochs
        self._phase = snapshot.phase
        self._survivors = sum(cell.n_survivors for cell in snapshot.cells.values())
        self._losses = dict(snapshot.losses)
        self._formula = _together([cell.genotype.formula for cell in snapshot.cells.values()])
        self._batch = (0, 0)
        if self._live is not None:
            self._draw(force=True)
            return
        console = self._open()
        line = self._line(snapshot.epoch)
        console.print(plain(line, console), markup=False, highlight=False, soft_wrap=True)

    def _line(self, epoch: int) -> str:
        parts = [f"epoch {epoch}/{self._epochs}", self._phase, *self._numbers()]
        left = self._clock.left(self._epochs)
        if left is not None and epoch < self._epochs:
            parts.append(f"{duration(left)} left")
        return " · ".join([*parts, self._formula])

    def _numbers(self) -> list[str]:
        losses = [f"{name} {self._losses[name]:.3g}" for name in ("train", "arch", "val") if name in self._losses]
        return [f"{self._survivors} candidate{'s' * (self._survivors != 1)}", *losses]

    # -- the bar ---------------------------------------------------------------------------------------------------

    @property
    def _share_of_epoch(self) -> float:
        done, total = self._batch
        return min(done / total, 1.0) if total else 0.0

    def _draw(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is None or (now - self._drawn < REFRESH and not force):
            return
        self._drawn = now
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        console = self._open()
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
        return Group(bar, numbers, formula)


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


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _together(formulas: Sequence[str]) -> str:
    """The formula of one cell; of several, the first and how many there are beside it."""
    if not formulas:
        return ""
    others = len(formulas) - 1
    return formulas[0] + (f" (and {others} more cell{'s' * (others != 1)})" if others else "")
