"""Together: the processes that share a training stop after the same step, and none outlives the others."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from actsearch.errors import RankError, SettingsError
from actsearch.launched import started_together

POLL = 0.5  # seconds between two looks at the other processes
GRACE = 10.0  # seconds for a collective operation to fail by itself once a process is gone
FAREWELL = 3.0  # seconds for processes that are told to end

_KNOWN = re.compile(r"Connection (closed|reset) by peer|Timed out[^.]*|Broken pipe|[Ss]ocket (closed|[Tt]imeout)")


class Together(pl.Callback):
    """Lets all processes of a training know where it is written, and end after the same step on SIGTERM.

    Whichever process is told to end, all agree after the step, by one number a step that is reduced. Lightning's own
    handler sends a message from within the handler, between any two messages of the step, and raises in one process
    before the others know.

    Args:
        path: the run of this process; from `setup` on, that of the first process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.path = Path(trainer.strategy.broadcast(str(self.path)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)  # Lightning puts back what was there before its own

    def _note(self, number: int, frame: Any) -> None:
        self._told = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._agree(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agree(trainer)

    def _agree(self, trainer: pl.Trainer) -> None:
        if trainer.world_size == 1:
            return
        told = torch.tensor(int(self._told), dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        if int(told):
            trainer._signal_connector.received_sigterm = True  # which it acts on between two steps


@contextmanager
def together(trainer: pl.Trainer, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Within it, the loss of a process that shares the training is a RankError in each of the others.

    Messages between processes fail when one is gone. Where they hang instead, or where none is under way, this process
    ends, with one line and exit code 2, some GRACE seconds after one that it started, or that started it, is gone. An
    error ends the processes that this one started.

    Args:
        trainer: of the training.
        how_to_go_on: the end of the message.
    """
    if trainer.world_size == 1:
        yield
        return
    watch = _Watch(trainer, how_to_go_on)
    watch.start()
    try:
        yield
    except BaseException as error:
        watch.stop()
        watch.dismiss()
        if not is_loss(error):
            raise
        raise RankError(f"{_LOST} ({_reason(str(error))}); {how_to_go_on()}") from error
    finally:
        watch.stop()


def check_started(trainer: pl.Trainer) -> None:
    """Raise SettingsError if torchrun or srun started another number of processes than the trainer reckons with."""
    started = started_together()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    elsewhere = isinstance(environment, SLURMEnvironment | TorchElasticEnvironment)
    if (elsewhere or started > 1) and started != trainer.world_size:
        raise SettingsError(
            f"the trainer reckons with {trainer.world_size} processes (trainer.devices times trainer.num_nodes), and "
            f"torchrun or srun started {started} of this search: give the same number to both, and set "
            "trainer.strategy to ddp"
        )


_LOST = "a process that shares this training is gone; if it was not killed, its own message tells why"


def is_loss(error: BaseException) -> bool:
    """Whether a message between processes failed, as it does when one of them is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and re.search(r"\bgloo\b", str(error), re.IGNORECASE) is not None


def _reason(message: str) -> str:
    found = _KNOWN.search(message)
    return found[0] if found else " ".join(message.split())[:120]


class _Watch(threading.Thread):
    """Looks after the processes that Lightning started, and after the one that started this."""

    def __init__(self, trainer: pl.Trainer, how_to_go_on: Callable[[], str]) -> None:
        super().__init__(daemon=True, name="actsearch-together")
        self._trainer = trainer
        self._how_to_go_on = how_to_go_on
        self._over = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        # The first process may outlive the shell that it was started from; one that a launcher started must not.
        self._parent = os.getppid() if "LOCAL_RANK" in os.environ else None

    def run(self) -> None:
        while not self._over.wait(POLL):
            self._take_over()
            if self._one_is_gone() and not self._over.wait(GRACE):
                with contextlib.suppress(OSError):
                    print(f"actsearch: {_LOST}; {self._how_to_go_on()}", file=sys.stderr, flush=True)
                for process in self._children:
                    process.kill()
                os._exit(2)  # the main thread waits for what will never come

    def _take_over(self) -> None:
        """Look after what Lightning started. Its own observer would kill this process, without a word."""
        processes = getattr(self._trainer.strategy.launcher, "procs", None)
        if processes and all(isinstance(process, subprocess.Popen) for process in processes):
            self._children += processes
            processes.clear()

    def _one_is_gone(self) -> bool:
        orphaned = self._parent is not None and os.getppid() != self._parent
        return orphaned or any(process.poll() for process in self._children)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def dismiss(self) -> None:
        """End the processes that were started: by SIGTERM, and after FAREWELL seconds for good."""
        self._take_over()
        for process in self._children:
            process.terminate()
        until = time.monotonic() + FAREWELL
        for process in self._children:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
