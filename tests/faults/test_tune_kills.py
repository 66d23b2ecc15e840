"""Studies whose workers, or the process that began them, are killed or told to end: the same trials come out."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest
import yaml
from studies import outcome

from actsearch.tune import Plan, Results
from actsearch.tuning import Work, tune

ROOT = Path(__file__).parents[2]
TRIALS = 6
PLAN: dict[str, Any] = {
    "verb": "transfer",
    "config": "default",
    "fixed": {
        "model.name": "mlp",
        "model.options": {"hidden": [16]},
        "data.limit_train": 400,
        "data.limit_test": 50,
        "compare.epochs": 40,  # so that a trial is met in its middle
        "trainer.accelerator": "cpu",
        "trainer.threads": 1,
    },
    "parameters": {"training.lr": {"float": [1e-3, 1.0], "log": True}},
    "objective": {"metric": "val_loss"},
    "sampler": "random",
    "pruner": "none",
    "trials": TRIALS,
    "heartbeat": 2.5,  # rare enough for a busy machine
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What comes out if nothing is killed."""
    with contextlib.chdir(tmp_path_factory.mktemp("reference")):
        return finish()


def finish() -> dict[int, Any]:
    """Go on with the study of the present folder, in this process, to its end."""
    results: Results = tune(Work(Plan.from_dict(PLAN), "mine"), 1)
    assert len(results.finished) == TRIALS
    return outcome(results)


class Study:
    """`actsearch tune` as a shell starts it, with processes of its own."""

    def __init__(self, folder: Path, workers: int) -> None:
        (folder / "mine.yaml").write_text(yaml.safe_dump(PLAN))
        self.folder = folder
        command = [sys.executable, "-u", "-m", "actsearch", "tune", "--config", "mine.yaml", "--workers", str(workers)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
        with open(folder / "out.txt", "wb") as out, open(folder / "err.txt", "wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True
            )
        self._seen: set[int] = set()

    @property
    def out(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err.txt").read_text()

    def workers(self) -> list[int]:
        """Their process ids; that of multiprocessing's own helper is no worker."""
        pid = self.process.pid
        found = []
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
        self._seen.update(found)
        return found

    def states(self, reported: bool = False) -> Counter[str]:
        """How many trials are in which state, or of those that have reported a value; nothing before there is one."""
        query = "SELECT state FROM trials"
        if reported:
            query += " WHERE trial_id IN (SELECT trial_id FROM trial_intermediate_values)"
        with contextlib.suppress(sqlite3.OperationalError):
            connection = sqlite3.connect(f"file:{self.folder}/runs/tune/mine/study.db?mode=ro", uri=True)
            with contextlib.closing(connection):
                return Counter(state for (state,) in connection.execute(query))
        return Counter()

    def until(self, reached: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not reached():
            assert self.process.poll() is None, self.out + self.err
            assert time.monotonic() < end, self.out + self.err
            time.sleep(0.02)

    def until_in_the_middle(self, done: int = 1, running: int = 1) -> None:
        def reached() -> bool:
            states = self.states(reported=True)
            return states["COMPLETE"] >= done and states["RUNNING"] >= running

        self.until(reached)

    def wait(self) -> int:
        return self.process.wait(timeout=120)

    def wait_for_workers(self) -> None:
        """Until those that were seen are gone, too."""
        end = time.monotonic() + 60
        while any(Path(f"/proc/{pid}/cmdline").exists() and _is_alive(pid) for pid in self._seen):
            assert time.monotonic() < end, "a worker stays"
            time.sleep(0.05)

    def assert_one_line(self, *words: str) -> None:
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("actsearch: ")
        assert all(word in lines[0] for word in words)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Study]]:
    monkeypatch.chdir(tmp_path)
    begun: list[Study] = []

    def start(workers: int) -> Study:
        begun.append(Study(tmp_path, workers))
        return begun[-1]

    yield start
    for study in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.process.pid, signal.SIGKILL)
        study.process.wait()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
def test_a_local_worker_that_is_signalled_costs_no_trial(
    sent: signal.Signals, begin: Callable[[int], Study], reference: dict[int, Any]
) -> None:
    study = begin(2)
    study.until_in_the_middle(done=0, running=2)
    os.kill(study.workers()[0], sent)
    assert study.wait() == 0, study.out + study.err
    assert study.err == ""
    assert ("a worker ended with exit code -9; 1 go on" in study.out) == (sent == signal.SIGKILL)
    assert f"{TRIALS} of {TRIALS} trials: {TRIALS} complete" in study.out
    assert ("1 lost and run again" in study.out) == (sent != signal.SIGINT), "of Ctrl-C only the first process hears"
    assert finish() == reference


def test_if_every_worker_is_killed_that_is_one_line(begin: Callable[[int], Study], reference: dict[int, Any]) -> None:
    study = begin(2)
    study.until_in_the_middle(done=0, running=2)
    for worker in study.workers():
        os.kill(worker, signal.SIGKILL)
    assert study.wait() == 2
    study.assert_one_line("every worker ended", "give the same command again")
    assert finish() == reference


def test_if_the_first_process_is_killed_its_workers_end_and_the_study_goes_on(
    begin: Callable[[int], Study], reference: dict[int, Any]
) -> None:
    study = begin(2)
    study.until_in_the_middle(done=0, running=2)
    assert len(study.workers()) == 2
    study.process.kill()
    study.wait()
    study.wait_for_workers()
    assert "Traceback" not in study.err
    assert study.states()["RUNNING"] == 0, "each ends its trial first"
    assert finish() == reference


@pytest.mark.parametrize(
    ("sent", "code", "workers"),
    [(signal.SIGTERM, 0, 1), (signal.SIGTERM, 0, 2), (signal.SIGINT, 130, 2)],
    ids=["SIGTERM to one", "SIGTERM to the first of several", "Ctrl-C"],
)
def test_a_study_that_is_told_to_end_puts_its_trials_back_and_goes_on(
    sent: signal.Signals, code: int, workers: int, begin: Callable[[int], Study], reference: dict[int, Any]
) -> None:
    study = begin(workers)
    study.until_in_the_middle(done=0 if workers == 2 else 1, running=workers)
    study.workers()
    if sent == signal.SIGINT:  # a terminal sends it to all
        os.killpg(study.process.pid, sent)
    else:
        study.process.send_signal(sent)
    assert study.wait() == code, study.out + study.err
    study.assert_one_line("give the same command again")
    study.wait_for_workers()
    assert study.states()["RUNNING"] == 0
    assert finish() == reference


def test_ctrl_c_while_the_workers_start_is_one_line(begin: Callable[[int], Study], reference: dict[int, Any]) -> None:
    study = begin(2)
    study.until(lambda: len(study.workers()) == 2)
    os.killpg(study.process.pid, signal.SIGINT)
    assert study.wait() == 130
    study.assert_one_line("interrupted", "give the same command again")
    study.wait_for_workers()
    assert finish() == reference


def test_a_study_that_is_killed_again_and_again_comes_to_the_same(
    begin: Callable[[int], Study], reference: dict[int, Any]
) -> None:
    rng = random.Random(0)
    for done in (0, 2):
        study = begin(1)
        study.until_in_the_middle(done)
        time.sleep(0.3 * rng.random())
        study.process.kill()
        study.wait()
    assert finish() == reference
