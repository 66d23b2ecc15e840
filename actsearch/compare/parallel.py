"""Retrainings in worker processes, one at a time each, the accelerators shared out among them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from actsearch.compare.contestants import Contestant
from actsearch.compare.retrain import Retrainer, Retraining
from actsearch.errors import ActsearchError, SettingsError, TaskError

Job = tuple[Contestant, int]


def run_parallel(retrainer: Retrainer, jobs: Sequence[Job], workers: int, devices: int | None) -> Iterator[Retraining]:
    """The results of `jobs` as they come, from `workers` processes of one CPU thread each.

    Worker k uses accelerator k modulo `devices`; None, as on CPU, is one for all. If a retraining raises, no further
    one is started, what is running is waited for, and its results come before the error.
    Raises TaskError with the worker's message, and SettingsError if something cannot be sent to a process.
    """
    context = _context()
    try:
        payload = pickle.dumps((retrainer, warnings.filters))
        waiting = [pickle.dumps(job) for job in jobs]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingsError(f"cannot be sent to a worker process ({error}); use jobs 1, or top-level classes") from None
    labels = [f"{contestant.name}, seed {seed}" for contestant, seed in jobs]
    processes: dict[Connection, Any] = {}
    current: dict[Connection, int] = {}
    failure = ""
    following = 0
    try:
        for k in range(min(workers, len(jobs))):
            ours, theirs = context.Pipe()
            device = None if devices is None else k % devices
            process = context.Process(target=_work, args=(theirs, payload, device, workers))
            process.start()
            theirs.close()
            processes[ours] = process
        free = list(processes)
        while True:
            for connection in free:
                if not failure and following < len(jobs):
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended at once: seen below
                        connection.send_bytes(waiting[following])
                    current[connection] = following
                    following += 1
            if not current:
                break
            free = []
            for ready in wait(list(current)):
                connection = next(known for known in current if known is ready)
                label = labels[current.pop(connection)]
                try:
                    outcome = connection.recv()
                except (EOFError, ConnectionResetError):
                    process = processes.pop(connection)
                    process.join()
                    connection.close()
                    failure = failure or f"{label}: its process ended with exit code {process.exitcode}"
                    continue
                if isinstance(outcome, Retraining):
                    yield outcome
                    free.append(connection)
                else:
                    failure = failure or f"{label}: {outcome}"
    finally:
        _end(processes, at_once=bool(current))
    if failure:
        raise TaskError(f"a retraining failed: {failure}")


def _context() -> Any:
    """Not forked from this process, whose threads and CUDA do not survive that.

    Where the system has it, they are forked from a server that has only imported us: that takes seconds a process.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end(processes: dict[Connection, Any], at_once: bool) -> None:
    """Let the workers go: their pipes close; those that still train, since we were interrupted, are told to end."""
    for connection, process in processes.items():
        connection.close()
        if at_once:
            process.terminate()
    for process in processes.values():
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()


def _work(connection: Connection, payload: bytes, device: int | None, workers: int) -> None:
    """A worker: takes jobs until the pipe is closed."""
    # Ctrl-C reaches the whole group of processes; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    retrainer, filters = pickle.loads(payload)
    ours: Any = warnings.filters  # typed as if it could not be changed
    ours[:] = filters
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            contestant, seed = pickle.loads(connection.recv_bytes())
            connection.send(attempt(retrainer, contestant, seed, device, workers))


def attempt(
    retrainer: Retrainer, contestant: Contestant, seed: int, device: int | None, workers: int
) -> Retraining | str:
    """The result, or in one line why there is none."""
    try:
        return retrainer(contestant, seed, device, workers)
    except ActsearchError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()  # a fault of the task's own code: its author wants to see where
        return " ".join(f"{type(error).__name__}: {error}".split())
