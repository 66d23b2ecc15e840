"""The process that a verb runs in: its terminal, its threads, and how it ends when it is told to."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import actsearch._torchvision  # noqa: F401

import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch.config import TrainerConfig
from actsearch.errors import Stopped
from actsearch.launched import requeue, slurm_job
from actsearch.ranks import is_rank_zero
from actsearch.report.voice import Voice

# The one voice of the process, and what it can do; see there.
voice = Voice()
say, tell, show, speaking = voice.say, voice.tell, voice.show, voice.speaking


def prepare(trainer: TrainerConfig) -> None:
    """Set the number of threads, and keep Lightning's banners out of the terminal; its warnings stay, and our lines."""
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)

    def ours_or_serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.getMessage().startswith("skipped")

    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(ours_or_serious)
    for pattern in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*have no `val_dataloader`.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)


@contextmanager
def stoppable(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM become Stopped, which says how to go on.

    So does, in a job of SLURM, SIGUSR1, which tells that its time is nearly up: the job is put back in the queue.
    """
    times_up = threading.Event()
    try:
        with _terminable(times_up):
            yield
    except SIGTERMException:
        why = _put_back(times_up) or "told to end (SIGTERM)"
        raise Stopped(f"{why}; {how_to_go_on()}", by_user=False) from None
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; {how_to_go_on()}", by_user=True) from None
    except SystemExit as ending:
        if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning makes one of the other
            raise Stopped(f"interrupted; {how_to_go_on()}", by_user=True) from None
        raise


def _put_back(times_up: threading.Event) -> str:
    """Requeue the job, if its time is up; in words, what was done, or why not."""
    job = slurm_job()
    if job is None or not times_up.is_set():
        return ""
    if not is_rank_zero():
        return "time is nearly up"
    say(f"time is nearly up: job {job} goes back in the queue")  # SLURM may end this process before it can say more
    failure = requeue(job)
    return f"job {job} cannot be put back in the queue ({failure}): submit it again" if failure else "time is nearly up"


@contextmanager
def _terminable(times_up: threading.Event) -> Iterator[None]:
    """Within it, SIGTERM raises SIGTERMException: at once, but a training first ends its step, so that it can be saved.

    Lightning, or Together, puts a handler of its own before this one for as long as it trains; those raise between two
    steps. In a job of SLURM, SIGUSR1 sets `times_up`, and then does the same. Lightning leaves SIGUSR1 alone where it
    finds a handler; its own would save within a step.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if signal.getsignal(signal.SIGTERM) is stop:
            raise SIGTERMException

    def put_back(number: int, frame: Any) -> None:
        times_up.set()
        signal.raise_signal(signal.SIGTERM)

    handlers = {signal.SIGTERM: stop} | ({signal.SIGUSR1: put_back} if slurm_job() is not None else {})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
