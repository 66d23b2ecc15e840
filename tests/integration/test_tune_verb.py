"""`actsearch tune` as a user types it: one study from the command line, and workers that are killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from postgresql_server import Server

from actsearch import cli
from actsearch.tune import Plan, TrialQueue
from actsearch.tune.queue import SLOT, WORKER
from actsearch.tuning import Work

ROOT = Path(__file__).parent.parent.parent
TRIALS, WORKERS, KILLED = 40, 4, 2

RETRAINING: dict[str, Any] = {
    "verb": "transfer",
    "config": "default",
    "fixed": {
        "model.name": "mlp",
        "model.options": {"hidden": [16]},
        "data.limit_train": 300,
        "data.limit_test": 50,
        "compare.epochs": 3,
        "trainer.accelerator": "cpu",
    },
    "parameters": {
        "training.lr": {"float": [1e-3, 1.0], "log": True},
        "training.momentum": {"choice": [0.0, 0.9]},
    },
    "objective": {"metric": "val_acc", "direction": "maximize"},
    "trials": 3,
}
SEARCH: dict[str, Any] = {
    "verb": "search",
    "config": "default",
    "fixed": {
        "space": "tiny",
        "model.name": "mlp",
        "model.options": {"hidden": [16]},
        "data.limit_train": 200,
        "data.limit_test": 50,
        "search.epochs": 3,
        "search.refine.enabled": False,
        "compare.enabled": False,
        "trainer.accelerator": "cpu",
    },
    "parameters": {
        "search.alpha_lr": {"float": [1e-3, 0.3], "log": True},
        "space.clip.limit": {"float": [3.0, 30.0]},
    },
    "objective": {"metric": "loss/val"},
    "pruner": "none",
    "trials": 2,
}


def write(path: Path, plan: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_retraining_is_tuned_on_held_out_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(folder / "mine.yaml", RETRAINING)
    assert cli.main(["tune", "--config", config]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 trials" in said
    assert "optuna-dashboard sqlite:///runs/tune/mine/study.db" in said
    results = folder / "runs" / "tune" / "mine"
    rows = list(csv.DictReader((results / "trials.csv").read_text().splitlines()))
    assert [row["slot"] for row in rows] == ["0", "1", "2"]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    data = json.loads((results / "study.json").read_text())
    assert 0 <= data["best"]["value"] <= 1
    assert {path.name for path in (results / "figures").iterdir()} == {"history.png", "importance.png"}

    # The same command has nothing left to do; more trials can be asked for.
    assert cli.main(["tune", "--config", config]) == 0
    assert "3 of 3 trials done" in capsys.readouterr().out
    assert cli.main(["tune", "--config", config, "--trials", "4"]) == 0
    assert "4 of 4 trials" in capsys.readouterr().out

    # What was found is a configuration of transfer.
    best = str(results / "best.yaml")
    assert yaml.safe_load(Path(best).read_text())["training"]["lr"] == data["best"]["values"]["training.lr"]
    arguments = ["transfer", "zoo:relu", "--config", best, "--seeds", "1", "--epochs", "1", "--compare.random", "0"]
    assert cli.main([*arguments, "--compare.activations", "[tanh]", "--out", str(folder / "compared")]) == 0
    capsys.readouterr()

    # Another range is another study.
    other = {**RETRAINING, "parameters": {**RETRAINING["parameters"], "training.lr": {"float": [0.1, 1.0]}}}
    assert cli.main(["tune", "--config", write(folder / "mine.yaml", other)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("actsearch: study mine was begun with another range of training.lr")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_search_is_tuned_by_two_local_workers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write(folder / "mine.yaml", SEARCH)
    assert (
        cli.main(["tune", "--config", config, "--workers", "2", "--storage", "journal:shared/study", "--name", "s"])
        == 0
    )
    said = capfd.readouterr().out
    assert "2 of 2 trials: 2 complete" in said
    assert "optuna-dashboard shared/study" in said
    best = yaml.safe_load((folder / "runs/tune/s/best.yaml").read_text())
    assert best["space"] == "runs/tune/s/best_space.yaml"
    limit = yaml.safe_load((folder / best["space"]).read_text())["clip"]["limit"]
    found = json.loads((folder / "runs/tune/s/study.json").read_text())["best"]["values"]
    assert (limit, best["search"]["alpha_lr"]) == (found["space.clip.limit"], found["search.alpha_lr"])
    assert not list((folder / "runs").rglob("checkpoints"))
    assert cli.main(["search", "--config", "runs/tune/s/best.yaml", "--print_config"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "defalt"], "did you mean 'default'"),
        (["--storage", "nowhere"], "--storage takes"),
        (["--workers", "0"], "--workers must be"),
        (["--trials", "0"], "--trials must be"),
        (["--search.alpha_lr", "1"], "is tuned by this study"),
        (["--search.epoch", "1"], "unknown option"),
        (["--search.epochs"], "needs a value"),
        (["--storage", "postgresql://me@127.0.0.1:1/none"], "storage|postgresql"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1
    assert any(part in error for part in said.split("|"))


def test_a_metric_that_nobody_measures_is_told_with_those_that_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(folder / "mine.yaml", {**RETRAINING, "objective": {"metric": "val_accuracy"}})
    assert cli.main(["tune", "--config", config]) == 2
    assert "unknown metric 'val_accuracy'; did you mean 'val_acc'?" in capsys.readouterr().err
    # The trial is not lost by it: it waits for a worker.
    plan = Plan.load(config)
    queue = Work(plan, "mine").queue()
    assert [slot.attempts[-1].state for slot in queue.slots().values()] == [TrialState.WAITING] * 3


def test_trials_that_diverge_are_failed_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {
        **SEARCH,
        "parameters": {"search.shrink_start": {"choice": [1, 2]}},
        "fixed": {**SEARCH["fixed"], "training.lr": 1e30, "search.max_skipped": 0},
    }
    assert cli.main(["tune", "--config", write(folder / "mine.yaml", plan)]) == 2
    error = capsys.readouterr().err
    assert "no trial was completed; trial 0 failed" in error
    assert error.count("\n") == 1


# -- several workers, of which some are killed ---------------------------------------------------------------------


def start_workers(config: str, storage: str, folder: Path) -> list[subprocess.Popen[bytes]]:
    """The same command, several times."""
    command = [sys.executable, "-m", "actsearch", "tune", "--config", config, "--storage", storage, "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
    workers = []
    for k in range(WORKERS):
        with open(folder / f"worker{k}.txt", "wb") as log:
            workers.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
    return workers


def running(queue: TrialQueue, worker: subprocess.Popen[bytes]) -> FrozenTrial | None:
    """The trial that this worker runs."""
    name = f"{socket.gethostname()}:{worker.pid}"
    trials = [t for slot in queue.slots().values() for t in slot.attempts]
    return next((t for t in trials if t.state == TrialState.RUNNING and t.user_attrs.get(WORKER) == name), None)


def let_go(worker: subprocess.Popen[bytes], held: threading.Event) -> None:
    held.set()
    worker.send_signal(signal.SIGCONT)


def kill_in_the_middle(queue: TrialQueue, worker: subprocess.Popen[bytes]) -> int:
    """Kill a worker between the epochs of a trial; the number of that."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert worker.poll() is None
        trial = running(queue, worker)
        if trial is not None and trial.intermediate_values:
            worker.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            # It may have come to its end just then; and if it was stopped while it held the lock of an SQLite file, we
            # would wait for it for ever.
            held = threading.Event()
            timer = threading.Timer(2, let_go, (worker, held))
            timer.start()
            trial = running(queue, worker)
            timer.cancel()
            timer.join()
            if trial is not None and not held.is_set():
                worker.kill()
                worker.wait()
                return trial.number
            worker.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("the worker took no trial")


def check_workers(storage: str, folder: Path) -> None:
    """Forty trials by four workers, of which two are killed: none is lost, and none done twice."""
    # Signs of life rare enough for a busy machine, whose threads wait long for their turn.
    content = {**RETRAINING, "trials": TRIALS, "heartbeat": 2.5, "pruner": "median"}
    content["fixed"] = {**RETRAINING["fixed"], "compare.epochs": 12}  # enough to be met between two of them
    config = write(folder / "mine.yaml", content)
    workers = start_workers(config, storage, folder)
    try:
        plan = Plan.load(config)
        queue = Work(plan, "mine", storage=storage).queue()
        killed = [kill_in_the_middle(queue, worker) for worker in workers[:KILLED]]
        codes = [worker.wait(timeout=500) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    said = "\n".join((folder / f"worker{k}.txt").read_text() for k in range(WORKERS))
    assert codes == [-signal.SIGKILL] * KILLED + [0] * (WORKERS - KILLED), said

    slots = queue.slots()
    queue.close()  # its connections would otherwise warn in a later test
    assert list(slots) == list(range(TRIALS))
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    for slot in slots.values():
        assert [trial.state in done for trial in slot.attempts].count(True) == 1
        assert not slot.live
    trials = {trial.number: trial for slot in slots.values() for trial in slot.attempts}
    for number in killed:
        assert trials[number].state == TrialState.FAIL
        (after,) = [t for t in trials.values() if t.user_attrs.get("retry_of") == number]
        assert after.params == trials[number].params
        assert after.user_attrs[SLOT] == trials[number].user_attrs[SLOT]
    rows = list(csv.DictReader((folder / "runs/tune/mine/trials.csv").read_text().splitlines()))
    assert len({row["slot"] for row in rows if row["state"] in ("complete", "pruned")}) == TRIALS
    assert said.count(f"{TRIALS} of {TRIALS} trials:") == WORKERS - KILLED


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_on_a_journal_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    check_workers(f"journal:{tmp_path / 'study'}", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_on_sqlite_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    check_workers(str(tmp_path / "study.db"), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_on_postgresql_lose_nothing_and_do_nothing_twice(postgresql: Server, tmp_path: Path) -> None:
    check_workers(postgresql.url(), tmp_path)
