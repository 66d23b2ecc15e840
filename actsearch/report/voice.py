"""How a verb speaks: live in a terminal, in sober lines, not at all, or as JSON lines for programs.

With `--progress json` standard output holds one JSON object a line and nothing else. Each has `event`, one of `EVENTS`,
and `seconds` since the verb began. Numbers that are not finite are null. Errors go to standard error, as always.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from actsearch.errors import SettingsError, unknown_name
from actsearch.ranks import is_rank_zero
from actsearch.report.terminal import PLAIN_WIDTH, duration, make_console, plain
from actsearch.work import Mode, Work, heard_by

REFRESH = 0.2  # seconds between two drawings in a terminal
PATIENCE = 10.0  # seconds without a word before the first line on work; every further one comes after twice the time
EVERY = 5.0  # seconds between two JSON lines on the same work

EVENTS: Mapping[str, Mapping[str, str]] = {
    "message": {"text": "in words, what has no event of its own"},
    "progress": {
        "work": "what is under way", "done": "so much", "total": "of so much, or null", "unit": "of both",
        "detail": "what it is at", "seconds_left": "or null",
    },
    "search_started": {
        "run": "its folder", "strategy": "gradient, random, tpe or genetic", "space": "its name",
        "functions": "genotypes of the space", "model": "its name", "data": "its name",
        "sites": "activation sites, or null where a function is trained at a time", "resumed": "whether it goes on",
    },
    "phase": {"phase": "that begins", "epoch": "with this one"},
    "epoch": {
        "epoch": "that is over, from 1", "epochs": "in all", "step": "training steps so far",
        "phase": "warm start, search, shrinking or discrete",
        "candidates": "that are left", "losses": "train, arch and val", "formulas": "by cell",
        "leading": "by cell and slot, the op with the greatest probability, and that", "seconds_left": "or null",
    },
    "shrunk": {
        "epoch": "in which", "cell": "its name", "dropped": "by slot, the ops since the last time",
        "candidates": "that are left in the cell",
    },
    "trial": {
        "number": "from 0", "loss": "its last", "steps": "of it", "pruned": "whether it was stopped early",
        "formula": "of its function", "steps_done": "of all trials", "budget": "for all trials",
    },
    "refined": {
        "cell": "its name", "loss_before": "of the searched function", "loss_after": "of the best that was met",
        "evaluations": "functions that were measured",
    },
    "found": {
        "cell": "its name", "formula": "of the function", "genotype": "its file", "loss": "by which it was chosen",
    },
    "searched": {
        "strategy": "its name", "seed": "of the search", "formula": "that was found", "loss": "by which it was chosen",
        "steps": "that it took", "search_seconds": "or null", "run": "its folder",
        "found_before": "whether it was only read",
    },
    "comparison_started": {
        "activations": "their names", "seeds": "numbers", "epochs": "of each", "model": "its name", "data": "its title",
        "directory": "of the results",
    },
    "retrained": {
        "activation": "its name", "seed": "a number", "metrics": "of the test, by name", "failure": "why, or empty",
        "training_seconds": "that it took", "done": "so many, those read from disk too", "total": "of so many",
    },
    "comparison": {
        "metric": "its name", "rows": "activation, kind, formula, n, mean, sd of each",
        "tests": "reference, other, difference (reference - other), interval, p_holm of each", "summary": "in words",
        "directory": "of the results",
    },
    "study_started": {
        "study": "its name", "done": "trials", "total": "trials", "metric": "its name", "direction": "of the metric",
    },
    "study_trial": {
        "number": "from 0", "outcome": "in words", "values": "of what is tuned", "done": "trials", "total": "trials",
    },
    "study": {
        "summary": "in words", "value": "best, or null", "values": "of the best trial", "directory": "of the results",
    },
    "trajectory": {
        "model": "its name", "steps": "taken", "time_step": "fs", "last_temperature": "K, mean of the last tenth",
    },
    "paths": {"paths": "of what was written, by name"},
}  # fmt: skip
"""The events, and what each tells."""


class Voice:
    """Where a verb's words go; as a `Listener`, work under way too. Of several processes rank zero alone speaks.

    Args:
        mode: auto, plain, quiet or json. Raises SettingsError for another.
        console: where people read; default: standard output, where JSON goes in any case.
    """

    def __init__(self, mode: Mode = "auto", console: Console | None = None) -> None:
        if mode not in get_args(Mode):
            raise SettingsError(unknown_name("progress mode", mode, get_args(Mode)))
        self.mode = mode
        self._given = console
        self._begin()

    def _begin(self) -> None:
        # A console holds locks, which cannot be sent to a spawned process: made when it is first needed.
        self._console: Console | None = None
        self._output: Any = None
        self._live: Live | None = None
        self._blocks: dict[int, Callable[[], RenderableType]] = {}
        self._drawn = 0.0
        self._spoken = time.monotonic()
        self._started = time.monotonic()
        self._patience: dict[int, float] = {}
        self._told: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"mode": self.mode, "_given": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def console(self) -> Console:
        """Where people read."""
        if self._console is None:
            if self._given is not None:
                self._console = self._given
            elif self.mode == "plain":
                self._console = Console(width=PLAIN_WIDTH, force_terminal=False, no_color=True)
            else:
                self._console = make_console()
        return self._console

    @property
    def is_silent(self) -> bool:
        return self.mode == "quiet" or not is_rank_zero()

    @property
    def is_read(self) -> bool:
        """Whether there are people to read tables."""
        return self.mode != "json" and not self.is_silent

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal in which lines can be drawn again."""
        return self.mode == "auto" and not self.is_silent and self.console.is_interactive and self.console.is_terminal

    @contextmanager
    def speaking(self, mode: Mode) -> Iterator[None]:
        """Within it, the voice has this mode, and hears of all work.

        In JSON, whatever else is printed goes to standard error, so that programs can read standard output.
        """
        before, console, output = self.mode, self._console, self._output
        self.mode, self._console, self._started = mode, None, time.monotonic()
        self._output = sys.stdout
        try:
            with heard_by(self):
                if mode == "json":
                    with redirect_stdout(sys.stderr):
                        yield
                else:
                    yield
        finally:
            self.mode, self._console, self._output = before, console, output

    # -- words -----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print as it is: no markup, and paths and formulas in one line."""
        if self.mode == "json":
            if text.strip():
                self.tell("message", text=text.strip())
        elif not self.is_silent:
            self._spoken = time.monotonic()
            self.console.print(plain(text, self.console), markup=False, highlight=False, soft_wrap=True)

    def show(self, thing: RenderableType) -> None:
        """Print a table, for people only."""
        if self.is_read:
            self.console.print(thing)

    def tell(self, event: str, line: str = "", **facts: Any) -> None:
        """One of EVENTS: `line` for people, if it is not empty, or `facts` for programs."""
        if self.mode != "json":
            if line:
                self.say(line)
        elif not self.is_silent:
            found = {"event": event, "seconds": round(time.monotonic() - self._started, 3), **facts}
            output = self._output or sys.stdout
            output.write(json.dumps(_plain(found), ensure_ascii=False, allow_nan=False) + "\n")
            output.flush()

    # -- what changes at the foot of a terminal --------------------------------------------------------------------

    def put(self, key: object, render: Callable[[], RenderableType]) -> None:
        """Show what `render` gives, drawn again at every `draw`, until `take` with the same key."""
        self._blocks[id(key)] = render
        if self._live is None:
            # No thread that redraws: a data loader that forks while it holds a lock would hang.
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self.draw(force=True)

    def take(self, key: object, leave: bool = False) -> None:
        """Show it no more; `leave` prints its last state for good."""
        render = self._blocks.pop(id(key), None)
        if render is None or self._live is None:
            return
        if not self._blocks:
            self._live.update(Text(""))
            self._live.stop()
            self._live = None
        else:
            self.draw(force=True)
        if leave:
            self.console.print(render())

    def draw(self, force: bool = False) -> None:
        """Draw all of it again, unless that was done a moment ago."""
        now = time.monotonic()
        if self._live is None or (now - self._drawn < REFRESH and not force):
            return
        self._drawn = now
        self._live.update(Group(*(render() for render in self._blocks.values())), refresh=True)

    # -- a Listener ------------------------------------------------------------------------------------------------

    def opened(self, work: Work) -> None:
        """Show it in a terminal."""
        if self.is_live:
            self.put(work, lambda: self._row(work))
        elif not self.is_silent:
            self._patience[id(work)] = EVERY if self.mode == "json" else PATIENCE
            self._told[id(work)] = work.started

    def moved(self, work: Work) -> None:
        """Draw it again; elsewhere tell of it if it takes long."""
        if self._live is not None:
            self.draw()
        elif self._is_due(work):
            self._told[id(work)] = time.monotonic()
            if self.mode != "json":
                self._patience[id(work)] *= 2
            left = work.seconds_left
            facts = {"work": work.title, "done": work.done, "total": work.total, "unit": work.unit}
            rest = "" if left is None else f", {duration(left)} left"
            line = f"  {work.title}: {_amount(work)}{work.detail and f' ({work.detail})'}{rest}"
            self.tell("progress", line, **facts, detail=work.detail, seconds_left=left)

    def closed(self, work: Work) -> None:
        """Forget it."""
        self.take(work)
        self._patience.pop(id(work), None)
        self._told.pop(id(work), None)

    def _is_due(self, work: Work) -> bool:
        if id(work) not in self._told:
            return False
        last = self._told[id(work)]
        if self.mode != "json":  # any other line is a sign of life too
            last = max(last, self._spoken)
        return time.monotonic() - last >= self._patience[id(work)]

    def _row(self, work: Work) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        left = work.seconds_left
        parts = [Text(plain(work.title, self.console), style="bold", no_wrap=True, overflow="ellipsis")]
        bar = ProgressBar(total=work.total, completed=work.done, width=20) if work.total else Text("")
        state = [_amount(work), work.detail, "" if left is None else f"{duration(left)} left"]
        text = plain(" · ".join(part for part in state if part) or "…", self.console)
        row.add_row(*parts, bar, Text(text, style="cyan", no_wrap=True, overflow="ellipsis"))
        return row


def _amount(work: Work) -> str:
    """12/200 frames, 3.4 of 58 MiB, epoch 2/5."""
    if work.unit == "epochs":
        total = "" if work.total is None else f"/{work.total:g}"
        epoch = int(work.done) + 1 if work.total is None else min(int(work.done) + 1, int(work.total))
        return f"epoch {epoch}{total}"
    if not work.done and work.total is None:
        return ""
    done, total = (f"{n:.1f}" if n is not None and n != int(n) else f"{n or 0:.0f}" for n in (work.done, work.total))
    amount = done if work.total is None else f"{done}/{total}"
    return f"{amount} {work.unit}".rstrip()


def _plain(value: Any) -> Any:
    """Plain data; numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
