"""Interleaved timing: A B C A B C …, so that what slows the machine for a while slows all alike."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TypeVar

import torch

from actsearch.bench.steps import Step

Key = TypeVar("Key", bound=Hashable)

LEAST = 0.1  # seconds that one measurement lasts at least, by repeating the step
MOST_CALLS = 100


class OutOfTime(BaseException):
    """The time limit was reached. No Exception: a compiler that catches those must not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after `seconds`; without effect where there is no SIGALRM, or in another thread."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise OutOfTime(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clock(step: Step, calls: int, device: torch.device) -> float:
    """Seconds of one call of `step`, the mean of `calls` in a row; by events on the stream on CUDA."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - started) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record(torch.cuda.current_stream(device))
    for _ in range(calls):
        step()
    end.record(torch.cuda.current_stream(device))
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


@contextmanager
def no_collection() -> Iterator[None]:
    """Within it, the garbage collector does not run by itself."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def old_objects_aside() -> Iterator[None]:
    """Within it, a collection passes over what was there before: half a second each time, of modules and code."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass
class Times:
    """What was measured of one step: one number a round, NaN for rounds in which it took no part."""

    seconds: list[float] = field(default_factory=list)
    calls: int = 1

    @property
    def median(self) -> float:
        """Seconds; NaN if nothing was measured."""
        known = [s for s in self.seconds if math.isfinite(s)]
        return median(known) if known else math.nan


def warm_up(step: Step, device: torch.device) -> Times:
    """Run `step` twice, and see how many calls a measurement needs."""
    step()
    seconds = clock(step, 1, device)
    return Times(calls=max(1, min(MOST_CALLS, math.ceil(LEAST / max(seconds, 1e-9)))))


def interleave(
    steps: Mapping[Key, Step],
    times: Mapping[Key, Times],
    device: torch.device,
    rounds: int,
    budget: float = math.inf,
    after_round: Callable[[int], None] = lambda done: None,
    failed: Callable[[Key, Exception], None] | None = None,
) -> None:
    """Add `rounds` measurements of each of `steps` to its `times`, in turn.

    A step is left out of a round that would take it beyond `budget` seconds; every step is measured once at least.
    `after_round` is told how many rounds are done. An error of a step is handed to `failed`, and the step is left out
    from then on; without `failed` it is raised.
    """
    spent = dict.fromkeys(steps, 0.0)
    out: set[Key] = set()
    for done in range(rounds):
        with no_collection():
            for key, step in steps.items():
                calls = times[key].calls
                if key in out or (done and spent[key] + calls * _last(times[key]) > budget):
                    times[key].seconds.append(math.nan)
                    continue
                try:
                    seconds = clock(step, calls, device)
                except Exception as error:
                    if failed is None:
                        raise
                    failed(key, error)
                    out.add(key)
                    seconds = math.nan
                else:
                    spent[key] += seconds * calls
                times[key].seconds.append(seconds)
        after_round(done + 1)


def _last(times: Times) -> float:
    return next((s for s in reversed(times.seconds) if math.isfinite(s)), 0.0)


@dataclass(frozen=True)
class Ratio:
    """Paired ratios over rounds: their median, quartiles, and number."""

    median: float
    low: float
    high: float
    n: int


def ratio(seconds: list[float], baseline: list[float]) -> Ratio | None:
    """`seconds` over `baseline` of the same round; None if no round has both."""
    pairs = [a / b for a, b in zip(seconds, baseline, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not pairs:
        return None
    low, middle, high = quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    return Ratio(middle, low, high, len(pairs))
