"""A folder is written by one process at a time, and what a killed one left is taken over."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actsearch import lock
from actsearch.errors import RunError
from actsearch.lock import locked

HERE = socket.gethostname()
GONE = 2**31 - 2  # no system gives such a number to a process
HOLDER = """
import sys, time
from actsearch.lock import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    """Another process that is in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_a_lock_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "folder"):
        holder = json.loads((tmp_path / "new" / "folder" / ".lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), HERE)
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with locked(tmp_path / "new" / "folder"):
        pass


def test_another_process_is_named_until_it_is_killed(tmp_path: Path) -> None:
    process = holding(tmp_path)
    with pytest.raises(RunError, match=f"in use by process {process.pid} on {HERE}"), locked(tmp_path):
        pytest.fail("two are in")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / ".lock").is_file()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 10_000, "[1]", '{"pid": "1", "host": 3}', '{"pid": -1, "host": ""}']
)
def test_a_file_that_holds_something_else_is_taken_over(content: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(content)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_an_error_within_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), locked(tmp_path / "file" / "folder"):
        pytest.fail("it was made")


# -- where the system has no locks, the process that the file names decides ----------------------------------------


class NoLocks:
    """A file system without flock."""

    LOCK_EX = LOCK_NB = 0

    @staticmethod
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def holder(pid: int, host: str = HERE, started: Any = None) -> str:
    return json.dumps({"pid": pid, "host": host, "started": started})


@pytest.mark.parametrize("without", [NoLocks, None], ids=["a file system without", "a system without"])
class TestWithoutLocks:
    @pytest.fixture(autouse=True)
    def _without(self, without: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lock, "fcntl", without)

    def test_a_process_that_is_alive_is_named(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text(holder(os.getpid(), started=lock._started(os.getpid())))
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"), locked(tmp_path):
            pytest.fail("two are in")

    @pytest.mark.parametrize("left", [holder(GONE), holder(os.getpid(), started="before it was born"), "", "{"],
                             ids=["gone", "its number given anew", "empty", "cut"])  # fmt: skip
    def test_what_a_dead_process_left_is_taken_over(self, left: str, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text(left)
        with locked(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()

    def test_of_another_host_it_is_told_what_to_delete(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text(holder(GONE, "elsewhere"))
        with pytest.raises(RunError, match=r"process .* on elsewhere.*delete .*\.lock"), locked(tmp_path):
            pytest.fail("two are in")
