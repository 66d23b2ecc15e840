"""Of processes that share a training none outlives the others. Here they are stand-ins that sleep or end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actsearch import together as module
from actsearch.errors import RankError
from actsearch.together import is_loss, together

CLOSED = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:49796. Check the logs of the remote."


def trainer(*processes: subprocess.Popen[bytes], world_size: int = 2) -> Any:
    launcher = SimpleNamespace(procs=list(processes))
    return SimpleNamespace(world_size=world_size, strategy=SimpleNamespace(launcher=launcher))


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_messages_that_fail_are_told_from_other_errors() -> None:
    assert is_loss(RuntimeError(CLOSED))
    assert is_loss(torch.distributed.DistBackendError("NCCL error in: …, unhandled system error"))
    assert not is_loss(RuntimeError("shapes do not match"))
    assert not is_loss(ValueError(CLOSED))


def test_a_lost_process_is_told_in_one_line_with_what_to_do_and_the_started_ones_end() -> None:
    other = sleeper()
    said = r"is gone; .* \(Connection closed by peer\); go on so$"
    with pytest.raises(RankError, match=said), together(trainer(other), lambda: "go on so"):
        raise RuntimeError(CLOSED)
    assert other.poll() is not None


def test_any_other_error_is_left_as_it_is_and_ends_the_started_ones_too() -> None:
    other = sleeper()
    with pytest.raises(KeyError), together(trainer(other), str):
        raise KeyError("name")
    assert other.poll() is not None


def test_processes_that_end_well_are_let_go() -> None:
    other = subprocess.Popen([sys.executable, "-c", ""])
    with together(trainer(other), str):
        time.sleep(2 * module.POLL)
    assert other.wait() == 0


def test_one_process_is_watched_by_nobody() -> None:
    with together(trainer(world_size=1), str):
        assert not any(thread.name == "actsearch-together" for thread in module.threading.enumerate())


PATIENT = """
import subprocess, sys, time
from types import SimpleNamespace
from actsearch import together
together.GRACE = 0.2
ended = [subprocess.Popen([sys.executable, "-c", "exit(3)"])] if sys.argv[1] == "child" else []
strategy = SimpleNamespace(launcher=SimpleNamespace(procs=ended))
with together.together(SimpleNamespace(world_size=2, strategy=strategy), lambda: "go on so"):
    print("waits", flush=True)
    time.sleep(120)  # as for a message that will never come
"""


@pytest.mark.slow
def test_where_nothing_fails_the_first_ends_by_itself_soon_after_one_that_it_started() -> None:
    done = subprocess.run([sys.executable, "-c", PATIENT, "child"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("actsearch: a process that shares this training is gone;")
    assert done.stderr.endswith("; go on so\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_a_started_one_ends_by_itself_soon_after_the_one_that_started_it(tmp_path: Path) -> None:
    launcher = (
        "import os, subprocess, sys\n"
        f"one = subprocess.Popen([sys.executable, '-c', sys.argv[1], 'orphan'], stdout=subprocess.PIPE, "
        f"stderr=open({str(tmp_path / 'said')!r}, 'w'))\n"
        "one.stdout.readline()\n"
        "print(one.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher, PATIENT],
        env={**os.environ, "LOCAL_RANK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    one = Path("/proc") / done.stdout.strip()
    for _ in range(100):
        if not one.is_dir() or ") Z" in (one / "stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it goes on for ever")
    assert (tmp_path / "said").read_text().endswith("; go on so\n")
