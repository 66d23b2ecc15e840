"""Launched: what the environment tells of how this process was started: by torchrun, by srun, in a job of SLURM."""

from __future__ import annotations

import os
import subprocess

from actsearch.errors import SettingsError


def started_together() -> int:
    """How many processes torchrun, or srun, started of this command."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _count("WORLD_SIZE")
    if "SLURM_STEP_ID" in os.environ:  # only what srun starts has one
        return _count("SLURM_STEP_NUM_TASKS")
    return 1


def _count(name: str) -> int:
    value = os.environ.get(name, "1")
    return int(value) if value.isdecimal() else 1


def check_started_alone(verb: str, instead: str) -> None:
    """Raise SettingsError if torchrun or srun started several processes of a verb that shares nothing among them."""
    if (n := started_together()) > 1:
        raise SettingsError(
            f"{n} processes of `{verb}` were started together, which would each do the same: start one; {instead}"
        )


def slurm_job() -> str | None:
    """The job of SLURM that this process belongs to, as `scontrol` takes it; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID") or None


def requeue(job: str) -> str:
    """Put a job of SLURM back in the queue; empty, or why that failed."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}"
