"""What the environment tells of how a process was started, and what follows from it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from actsearch import cli
from actsearch.errors import SettingsError, Stopped
from actsearch.launched import check_started_alone, requeue, slurm_job, started_together
from actsearch.process import stoppable
from actsearch.ranks import is_rank_zero

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}
SRUN = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_torchrun_and_srun_tell_how_many_they_started_and_a_batch_script_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert started_together() == 1
    with monkeypatch.context() as patch:
        given(patch, TORCHRUN)
        assert started_together() == 2
    with monkeypatch.context() as patch:
        given(patch, SRUN)
        assert started_together() == 4
        patch.delenv("SLURM_STEP_ID")
        assert started_together() == 1


@pytest.mark.parametrize(
    "verb",
    [
        ["compare-strategies"],
        ["transfer", "zoo:mish", "--space", "tiny", "--epochs", "1"],
        ["tune"],
        ["search", "--strategy", "random", "--space", "tiny", "--compare.enabled", "false"],
    ],
    ids=lambda verb: verb[0],
)
@pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_verbs_that_share_no_training_refuse_to_be_started_several_times(
    verb: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, environment)
    assert cli.main(verb) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"processes of `{verb[0]}" in said
    assert "were started together" in said
    assert "--" in said.partition("start one;")[2]


@pytest.mark.parametrize("verb", [["compare-strategies", "--strategies", "gradient,random"], ["tune"]])
def test_verbs_of_many_trainings_refuse_to_share_one_among_devices(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*verb, "--trainer.devices", "2", "--trainer.strategy", "ddp"]) == 2
    assert "runs on one device: leave out trainer.devices" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_start_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    check_started_alone("tune", "")
    given(monkeypatch, {**TORCHRUN, "WORLD_SIZE": "1"})
    check_started_alone("tune", "")
    given(monkeypatch, {"WORLD_SIZE": "many"})
    check_started_alone("tune", "")
    given(monkeypatch, {"WORLD_SIZE": "3"})
    with pytest.raises(SettingsError, match="3 processes of `tune`"):
        check_started_alone("tune", "")


def test_the_first_process_of_another_machine_is_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_rank_zero()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_rank_zero()


def test_a_job_and_a_task_of_an_array_are_named_as_scontrol_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert slurm_job() == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm_job() == "16_3"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command that writes what it was told to a file, which is returned."""
    told = tmp_path / "told"
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {told}\n[ "$2" != 13 ] || {{ echo "Job is gone" >&2; exit 1; }}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return told


def test_a_requeue_that_fails_says_why(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert requeue("12") == ""
    assert requeue("13") == "Job is gone"
    monkeypatch.setenv("PATH", "")
    assert "scontrol" in requeue("12")


def test_in_a_job_sigusr1_puts_it_back_in_the_queue_and_ends_with_0(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped, match=r"^time is nearly up; go on so$") as ending, stoppable(lambda: "go on so"):
        signal.raise_signal(signal.SIGUSR1)
    assert ending.value.exit_code == 0
    assert scontrol.read_text() == "requeue 12\n"
    assert "job 12 goes back in the queue" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) is before
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.raises(Stopped, match=r"job 13 cannot be put back in the queue \(Job is gone\)"), stoppable(str):
        signal.raise_signal(signal.SIGUSR1)


def test_sigterm_in_a_job_leaves_the_queue_alone(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SLURM sends it for `scancel`, and where it requeues by itself."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(Stopped, match="told to end"), stoppable(str):
        signal.raise_signal(signal.SIGTERM)
    assert not scontrol.exists()


def test_outside_of_slurm_sigusr1_is_left_as_it_was() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stoppable(str):
        assert signal.getsignal(signal.SIGUSR1) is before
