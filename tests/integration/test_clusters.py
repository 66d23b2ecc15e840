"""Searches as clusters run them: agents of torchrun on two machines, and tasks of a job of SLURM that is requeued."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

SEARCH = ["search", "--space", "tiny", "--compare.enabled", "false", "--trainer.accelerator", "cpu"]
SEARCH += ["--trainer.threads", "1", "--search.refine.evaluations", "8"]
# In double precision, and without layers that depend on how examples are put together to batches.
EXACT = """
data: {name: digits, limit_train: 512, augment: false}
model: {name: mlp, options: {hidden: [32, 32]}}
training: {lr: 0.05, schedule: constant}
search: {epochs: 4, alpha_lr: 0.01, evaluator: dense}
trainer: {precision: 64-true}
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python with these arguments in a folder, with further environment variables; ends what is left."""
    with ExitStack() as started:

        def start(arguments: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """What they printed, all having ended well."""
    printed = []
    for process in processes:
        output, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
        printed.append(output)
    return printed


def only_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*/*")
    return run


def alphas(run: Path) -> dict[str, Any]:
    last = sorted((run / "checkpoints").glob("epoch-*"))[-1]
    state = torch.load(last, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if ".alpha." in name}


def test_two_machines_under_torchrun_find_what_one_process_with_the_whole_batch_finds(
    tmp_path: Path, start: Start
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder in (both, alone):
        folder.mkdir()
        (folder / "exact.yaml").write_text(EXACT)
    machines = [
        start(
            [
                *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={k}"),
                *(
                    "--master_addr=127.0.0.1",
                    f"--master_port={port}",
                    "-m",
                    "actsearch",
                    *SEARCH,
                    "--config",
                    "exact.yaml",
                ),
                *("--data.batch_size", "16", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"),
            ],
            both,
        )
        for k in range(2)
    ]
    printed = finish(*machines)
    assert sorted(text.count("found:") for text in printed) == [0, 1]
    finish(start(["-m", "actsearch", *SEARCH, "--config", "exact.yaml", "--data.batch_size", "32"], alone))
    found, expected = (json.loads((only_run(folder) / "genotype.json").read_text()) for folder in (both, alone))
    assert found["slots"].keys() == expected["slots"].keys()
    assert {s: c["op"] for s, c in found["slots"].items()} == {s: c["op"] for s, c in expected["slots"].items()}
    ours, theirs = alphas(only_run(both)), alphas(only_run(alone))
    assert ours
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=0)


class Job:
    """A job of SLURM with two tasks, as srun starts them, and a `scontrol` that notes what it is told."""

    def __init__(self, folder: Path, start: Start) -> None:
        self._start = start
        self.folder = folder
        self.told = folder / "told"
        script = folder / "bin" / "scontrol"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\necho "$@" >> {self.told}\n')
        script.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    def tasks(self, *command: str) -> list[subprocess.Popen[str]]:
        common = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "MASTER_PORT": str(self._port),  # else made of the last digits of the job's number
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "search",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_NNODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": "2",
        }
        return [
            self._start(list(command), self.folder, **common, SLURM_PROCID=str(k), SLURM_LOCALID=str(k))
            for k in range(2)
        ]


def test_a_search_whose_time_is_up_in_slurm_is_requeued_and_the_same_command_goes_on(
    tmp_path: Path, start: Start
) -> None:
    job = Job(tmp_path, start)
    command = ["-m", "actsearch", *SEARCH, "--search.epochs", "4", "--run.name", "search-4711", "--resume", "auto"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    tasks = job.tasks(*command)
    for _ in range(1200):
        if list(tmp_path.glob("runs/*/*/checkpoints/epoch-*.ckpt")):
            break
        assert all(task.poll() is None for task in tasks), tasks[0].communicate()
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    finish(*tasks)
    assert job.told.read_text() == "requeue 4711\n"
    run = only_run(tmp_path)
    assert not (run / "genotype.json").exists()
    finish(*job.tasks(*command))
    assert only_run(tmp_path) == run
    assert (run / "genotype.json").is_file()
    assert [json.loads(line)["epoch"] for line in (run / "genotypes.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("hpc_ckpt*"))  # Lightning's own requeueing had no part in it


def test_another_number_of_processes_than_the_trainer_reckons_with_is_told_at_once(
    tmp_path: Path, start: Start
) -> None:
    task = start(
        ["-m", "actsearch", *SEARCH],
        tmp_path,
        TORCHELASTIC_RUN_ID="none",
        WORLD_SIZE="2",
        RANK="0",
        LOCAL_RANK="0",
        MASTER_PORT="1",
    )
    _, errors = task.communicate(timeout=60)
    assert task.returncode == 2
    assert "the trainer reckons with 1 processes" in errors
    assert "started 2" in errors
    assert errors.count("\n") == 1
