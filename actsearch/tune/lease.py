"""Which trials have a living worker: each counts up a number, and the others watch whether it moves.

Optuna has signs of life of its own, in databases only, and as times of day, which jump. A number that no longer moves
while one's own clock runs on is the same in every storage, and asks nothing of the clocks of several machines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from types import TracebackType

from optuna.storages import BaseStorage

BEAT = "beat"


class Beat:
    """Within it, attribute `beat` of a running trial goes up every `interval` seconds, from a thread of its own.

    `taken` is set if the trial turns out to be finished by another worker, which took this one for dead.
    """

    def __init__(self, storage: BaseStorage, trial_id: int, interval: float) -> None:
        self.taken = threading.Event()
        self._storage, self._trial_id, self._interval = storage, trial_id, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Beat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        try:
            while True:
                try:
                    self._storage.set_trial_user_attr(self._trial_id, BEAT, number)
                except RuntimeError:  # it is finished
                    self.taken.set()
                    return
                except Exception:
                    number -= 1  # the next one may come through; if not, the thread of the trial says what is wrong
                number += 1
                if self._stop.wait(self._interval):
                    return
        finally:
            self._storage.remove_session()


class Watch:
    """Tells what has not changed for `grace` seconds of one's own clock since it was first seen so."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace, self._clock = grace, clock
        self._seen: dict[Hashable, tuple[object, float]] = {}

    def is_still(self, what: Hashable, value: object) -> bool:
        """Whether `what` has been seen with this `value`, and no other, for longer than the grace."""
        now = self._clock()
        known = self._seen.get(what)
        if known is None or known[0] != value:
            self._seen[what] = (value, now)
            return False
        return now - known[1] > self._grace
