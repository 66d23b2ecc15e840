"""Work that takes a while, and who hears how far it is.

Whatever makes data, trains or searches opens it with `under_way` and moves it; the terminal listens. Nobody has to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

Mode = Literal["auto", "plain", "quiet", "json"]
"""How a verb tells of itself: live in a terminal and in lines elsewhere, in lines, not at all, or as JSON lines."""


class Work:
    """Something under way.

    Attributes:
        title: what is done, in a few words.
        total: how much there is; None if that is not known.
        unit: of `done` and `total`, such as `frames`.
        done: so much of it.
        detail: what it is at just now.
        started: when, by time.monotonic.
    """

    def __init__(self, title: str, total: float | None = None, unit: str = "") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0.0
        self.detail = ""
        self.started = time.monotonic()

    def advance(self, by: float = 1, detail: str | None = None) -> None:
        """So much more is done."""
        self.at(self.done + by, detail)

    def at(self, done: float, detail: str | None = None) -> None:
        """So much is done in all."""
        self.done = done
        if detail is not None:
            self.detail = detail
        for listener in _listeners[-1:]:
            listener.moved(self)

    @property
    def seconds_left(self) -> float | None:
        """To the end, if it goes on as it went; None while there is nothing to judge by."""
        if not self.total or not self.done > 0:
            return None
        return (time.monotonic() - self.started) / self.done * max(self.total - self.done, 0.0)


class Listener(Protocol):
    """Who is told of work."""

    def opened(self, work: Work) -> None:
        """It begins."""

    def moved(self, work: Work) -> None:
        """It is farther than before; comes often."""

    def closed(self, work: Work) -> None:
        """It has ended, whole or not."""


_listeners: list[Listener] = []  # the last one hears


@contextmanager
def under_way(title: str, total: float | None = None, unit: str = "") -> Iterator[Work]:
    """Work that lasts as long as the context."""
    work = Work(title, total, unit)
    told = _listeners[-1:]
    for listener in told:
        listener.opened(work)
    try:
        yield work
    finally:
        for listener in told:
            listener.closed(work)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within it, `listener` is told of all work of this process, and no other."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
