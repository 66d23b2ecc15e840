"""Of two processes that share a search one is killed, or told to end: the other ends too, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]

ALONE = ["-m", "actsearch"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "actsearch"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
SEARCH = ["search", "--space", "tiny", "--search.epochs", "4", "--search.shrink_start", "2", "--compare.enabled"]
SEARCH += ["false", "--search.refine.evaluations", "8", "--trainer.threads", "1", *TWO]


class Search:
    """A search in processes of its own, in a session of its own; `root` marks them."""

    def __init__(self, launcher: list[str], root: Path, *options: str) -> None:
        self.root = root
        self._errors = root.with_suffix(".err")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(self._errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *SEARCH, "--run.root", str(root), *options],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def processes(self) -> dict[int, Mapping[str, str]]:
        """The environment of each of its processes that is alive, by number."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) != self.process.pid and str(self.root) not in (
                    folder / "cmdline"
                ).read_text().split("\0"):
                    continue
                if (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    continue
                lines = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                found[int(folder.name)] = dict(line.split("=", 1) for line in lines if "=" in line)
            except (OSError, ProcessLookupError):
                continue
        return found

    def rank(self, number: int) -> int:
        """The process of that rank. torchrun's agent has no number, nor has the first that Lightning starts."""
        processes = self.processes()
        numbered = number or any("TORCHELASTIC_RUN_ID" in environment for environment in processes.values())
        wanted = str(number) if numbered else None
        (found,) = [pid for pid, environment in processes.items() if environment.get("LOCAL_RANK") == wanted]
        return found

    def until_checkpoints(self, n: int) -> Path:
        """Wait for that many epochs; the run's folder."""
        for _ in range(1200):
            checkpoints = sorted(self.root.glob("*/*/checkpoints/epoch-*.ckpt"))
            if checkpoints and int(checkpoints[-1].name.split("-")[1]) >= n:
                return checkpoints[-1].parents[1]
            assert self.process.poll() is None, self._errors.read_text()
            time.sleep(0.05)
        raise AssertionError("no checkpoint")

    def ended(self, within: float) -> tuple[int, str]:
        """Its exit code and what it said, once none of its processes is left."""
        end = time.monotonic() + within
        code = self.process.wait(within)
        while self.processes():
            assert time.monotonic() < end, self.processes().keys()
            time.sleep(0.05)
        return code, self._errors.read_text()


def resumed(run: Path, *options: str) -> Path:
    done = subprocess.run(
        [sys.executable, *ALONE, "search", "--resume", str(run), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return run


def state(run: Path) -> dict[str, Any]:
    last = sorted((run / "checkpoints").glob("epoch-*"))[-1]
    return {"name": last.name, **torch.load(last, weights_only=True)["state_dict"]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    search = Search(ALONE, tmp_path_factory.mktemp("undisturbed") / "runs")
    code, said = search.ended(120)
    assert code == 0, said
    (run,) = search.root.glob("*/*")
    return state(run)


def assert_goes_on(run: Path, undisturbed: dict[str, Any]) -> None:
    """In two processes as before it ends with the bits of a search that was not disturbed."""
    found = state(resumed(run))
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        assert value == found[name] if name == "name" else torch.equal(value, found[name]), name


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_with_one_line_and_the_run_goes_on_to_the_same_bits(
    victim: int, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    search = Search(ALONE, tmp_path / "runs")
    run = search.until_checkpoints(2)
    os.kill(search.rank(victim), signal.SIGKILL)
    code, said = search.ended(30)
    assert code == (2 if victim else -signal.SIGKILL)
    lines = [line for line in said.splitlines() if line.startswith("actsearch:")]
    assert len(lines) == 1, said
    assert f"go on with: actsearch search --resume {run}" in lines[0]
    assert "Traceback" not in said
    if victim:
        assert_goes_on(run, undisturbed)
    else:
        alone = resumed(run, "--trainer.devices", "1", "--trainer.strategy", "auto")
        assert int(state(alone)["epochs_done"]) == 4
        assert (alone / "genotype.json").is_file()


def test_under_torchrun_the_other_ends_too_and_the_agent_with_it(tmp_path: Path) -> None:
    search = Search(TORCHRUN, tmp_path / "runs")
    run = search.until_checkpoints(1)
    os.kill(search.rank(0), signal.SIGKILL)
    code, said = search.ended(60)
    assert code == 1  # torchrun's own, with its own report
    assert "actsearch.errors" not in said
    assert int(state(run)["epochs_done"]) >= 1


@pytest.mark.parametrize("told", [[1], [0, 1]], ids=["second", "both"])
def test_whichever_is_told_to_end_both_save_after_the_same_step_and_exit_0(
    told: list[int], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    search = Search(ALONE, tmp_path / "runs")
    run = search.until_checkpoints(1)
    for number in [search.rank(number) for number in told]:
        os.kill(number, signal.SIGTERM)
    code, said = search.ended(30)
    assert code == 0, said
    assert f"actsearch: told to end (SIGTERM); go on with: actsearch search --resume {run}" in said
    if len(told) == 2:
        assert_goes_on(run, undisturbed)
