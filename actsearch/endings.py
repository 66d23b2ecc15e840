"""Endings of a training that come from outside it, as errors that a user can mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch.errors import ActsearchError, DataError

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal: \w+|exited unexpectedly)")
_FROM_WORKER = "Original Traceback (most recent call last):"


@contextmanager
def explained(trainer: pl.Trainer) -> Iterator[None]:
    """Within it, a loader's process that dies is a DataError, and what it raised of ours is in one line again.

    A SIGTERM that the trainer noted too late to act on, or that reached its workers first, is a SIGTERMException.
    """
    try:
        yield
    except ActsearchError as error:
        if _FROM_WORKER not in str(error):
            raise
        raise DataError(_last_words(str(error))) from error
    except RuntimeError as error:
        found = _DEAD_WORKER.search(str(error))
        if found is None:
            raise
        if trainer.received_sigterm:
            raise SIGTERMException from None
        raise DataError(
            f"a process that loads data ended ({' '.join(found[1].split())}), most often for want of memory: use fewer "
            "(data.num_workers), and look at the system's log"
        ) from error
    if trainer.received_sigterm:
        raise SIGTERMException


def _last_words(text: str) -> str:
    """The message of an error that torch wrapped in the traceback of a worker."""
    return re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
