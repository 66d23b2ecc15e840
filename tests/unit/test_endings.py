"""Endings of a training from outside it: whichever of a dead process's traces comes first, the error is one line."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from multiprocessing import Pipe, reduction
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch.utils.data.dataloader

from actsearch import endings
from actsearch.endings import explained
from actsearch.errors import DataError

LOADER = str(Path(torch.utils.data.dataloader.__file__))


def in_loader(call: Callable[[], object]) -> object:
    """The call as from a line of torch's loader."""
    return eval(compile("call()", LOADER, "eval"), {"call": call})


def closed_pipe() -> object:
    here, there = Pipe()
    there.close()
    return here.recv()


def closed_socket(unread: bytes = b"") -> object:
    here, there = socket.socketpair()
    with here:
        here.send(unread)
        there.close()
        return reduction.recvfds(here, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (closed_pipe, "it left in the middle of a batch"),
        (closed_socket, "it left in the middle of a batch"),
        (lambda: closed_socket(b"unread"), "Connection reset by peer"),
    ],
)
def test_the_end_of_any_connection_to_a_process_is_its_end(
    call: Callable[[], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_NOTICE", 0.01)
    trainer: Any = SimpleNamespace(received_sigterm=False)
    told = f"a process that loads data ended .*{reason}.*data.num_workers"
    with pytest.raises(DataError, match=told), explained(trainer):
        in_loader(call)


def test_a_notice_that_comes_after_the_connection_broke_does_not_take_its_place() -> None:
    def notice(number: int, frame: FrameType | None) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    before = signal.signal(signal.SIGALRM, notice)
    trainer: Any = SimpleNamespace(received_sigterm=False)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with (
            pytest.raises(DataError, match=r"^a process that loads data ended \(DataLoader worker \(pid 7\)"),
            explained(trainer),
        ):
            in_loader(closed_pipe)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_handlers_that_the_trainer_left_are_put_back() -> None:
    def leave() -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise KeyError("something")

    trainer: Any = SimpleNamespace(received_sigterm=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), explained(trainer):
        leave()
    assert signal.getsignal(signal.SIGTERM) == before


def missing() -> object:
    return open("settings.yaml", encoding="utf-8")


@pytest.mark.parametrize("call", [lambda: in_loader(missing), missing, closed_pipe])
def test_other_errors_of_files_and_connections_are_not_taken_for_a_dead_process(call: Callable[[], object]) -> None:
    trainer: Any = SimpleNamespace(received_sigterm=False)
    with pytest.raises((FileNotFoundError, EOFError)), explained(trainer):
        call()
