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
    ):
        warnings.filterwarnings("ignore", message=pattern)


@contextmanager
def stoppable(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM become Stopped, which says how to go on."""
    try:
        with _terminable():
            yield
    except SIGTERMException:
        raise Stopped(f"told to end (SIGTERM); {how_to_go_on()}", by_user=False) from None
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; {how_to_go_on()}", by_user=True) from None
    except SystemExit as ending:
        if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning makes one of the other
            raise Stopped(f"interrupted; {how_to_go_on()}", by_user=True) from None
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it, SIGTERM raises SIGTERMException: at once, but a training first ends its step, so that it can be saved.

    Lightning puts a handler of its own before this one for as long as it trains; that raises between two steps.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if signal.getsignal(signal.SIGTERM) is stop:
            raise SIGTERMException

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
