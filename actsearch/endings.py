"""Endings of a training that come from outside it, as errors that a user can mend."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch.errors import ActsearchError, DataError

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal|exited unexpectedly)")
_NOTICE = 2.0  # seconds within which the system tells of a process that closed its connection, on a busy machine too
_LOADER = "torch/utils/data/dataloader.py"
_CONNECTIONS = Path(multiprocessing.__file__).parent
_FROM_WORKER = "Original Traceback (most recent call last):"


@contextmanager
def explained(trainer: pl.Trainer) -> Iterator[None]:
    """Within it, a loader's process that dies is a DataError, and what it raised of ours is in one line again.

    A SIGTERM that the trainer noted too late to act on, or that reached its workers first, is a SIGTERMException.
    Handlers of signals are afterwards what they were, even if such an error met the trainer while it put them back.
    """
    try:
        with _handlers_kept():
            try:
                yield
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                if _is_dead_worker(error):
                    # torch tells why it died by a RuntimeError from a signal handler, wherever this process then is.
                    time.sleep(_NOTICE)
                raise
    except ActsearchError as error:
        if _FROM_WORKER not in str(error):
            raise
        raise DataError(_last_words(str(error))) from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        if not _is_dead_worker(error):
            raise
        if trainer.received_sigterm:
            raise SIGTERMException from None
        reason = " ".join(str(error).split()) or "it left in the middle of a batch"
        raise DataError(
            f"a process that loads data ended ({reason}), most often for want of memory: use fewer of them "
            "(data.num_workers), and look at the system's log"
        ) from error
    if trainer.received_sigterm:
        raise SIGTERMException


@contextmanager
def _handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # which alone may set them
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) != handler:
                    signal.signal(number, handler)


def _is_dead_worker(error: BaseException) -> bool:
    """Whether a loader says that its process died, or met the end of the connection to it."""
    if isinstance(error, RuntimeError):
        return _DEAD_WORKER.search(str(error)) is not None
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(files) and files[-1].parent == _CONNECTIONS and any(file.match(_LOADER) for file in files)


def _last_words(text: str) -> str:
    """The message of an error that torch wrapped in the traceback of a worker."""
    return re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
