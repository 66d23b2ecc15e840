"""Endings of a training from outside it: whichever of a dead process's traces comes first, the error is one line."""

from __future__ import annotations

import signal
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from actsearch.endings import explained
from actsearch.errors import DataError


def test_a_notice_that_comes_after_the_connection_broke_does_not_take_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actsearch.endings._is_dead_worker", lambda error: True)

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
            raise ConnectionResetError("Connection reset by peer")
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


def test_other_errors_of_files_are_not_taken_for_a_dead_process() -> None:
    trainer: Any = SimpleNamespace(received_sigterm=False)
    with pytest.raises(FileNotFoundError), explained(trainer):
        raise FileNotFoundError("settings.yaml")
