"""Retrainings as jobs of a cluster, by submitit: SLURM, or processes of this machine that it starts in the same way."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from actsearch.compare.contestants import Contestant
from actsearch.compare.parallel import Job, attempt
from actsearch.compare.records import plain_retraining, retraining
from actsearch.compare.retrain import Retrainer, Retraining
from actsearch.errors import MissingPackageError, SettingsError, TaskError
from actsearch.files import write_atomically, write_text

FOLDER = "jobs"
POLL = 1.0  # seconds between two looks at the jobs
WITHIN = 240  # minutes that a job may take, if nothing else is said
_PAYLOAD = "retrainer.pickle"


def run_submitted(
    retrainer: Retrainer, jobs: Sequence[Job], at_once: int, directory: Path, options: Mapping[str, Any]
) -> Iterator[Retraining]:
    """The results of `jobs` as they come, each from a job of its own.

    Of SLURM they are one array. Jobs read what they do from `directory`/jobs, which all machines must reach, by pickle,
    as submitit does; their results come back as JSON. Results that are there already, since this process was killed
    before it could take them, are taken first. All jobs are waited for, also after one has failed; jobs that are left
    when this is closed are cancelled.

    Args:
        retrainer: what they have in common.
        jobs: contestants and seeds.
        at_once: so many at a time, at most.
        directory: of the comparison.
        options: of submitit.AutoExecutor, by its names, such as timeout_min, gpus_per_node, cpus_per_task, mem_gb and
            slurm_partition; and `cluster`, slurm or local; default: slurm where it is installed.

    Raises TaskError if a retraining failed, after the results of the others; SettingsError for options that submitit
    does not take, or if something cannot be sent to another process; MissingPackageError without submitit.
    """
    folder = Path(directory).resolve() / FOLDER
    files = {job: folder / f"{_key(*job)}.json" for job in jobs}
    waiting = []
    for job, file in files.items():
        there = _outcome(file)
        if isinstance(there, Retraining):
            yield there
            file.unlink()
        else:
            waiting.append(job)
    if not waiting:
        return
    executor, cluster = _executor(folder, at_once, options)
    _write_payload(retrainer, folder)
    threads = int(options.get("cpus_per_task", 1))

    def submit(job: Job) -> Any:
        files[job].unlink(missing_ok=True)
        return executor.submit(_work, folder / _PAYLOAD, job, files[job], threads, at_once)

    running: dict[Job, Any] = {}
    failures = []
    try:
        if cluster != "local":
            with executor.batch():  # one array, whose parallelism is the cluster's affair
                running = {job: submit(job) for job in waiting}
            waiting = []
        while running or waiting:
            while waiting and len(running) < at_once:
                running[waiting[0]] = submit(waiting[0])
                del waiting[0]
            for job in [job for job, submitted in running.items() if submitted.done()]:
                submitted = running.pop(job)
                outcome = _outcome(files[job])
                if isinstance(outcome, Retraining):
                    yield outcome
                    files[job].unlink()
                else:
                    ended = f"job {submitted.job_id} ended without a result; see {submitted.paths.stderr}"
                    failures.append(f"{job[0].name}, seed {job[1]}: {outcome or ended}")
            if running:
                time.sleep(POLL)
    finally:
        for submitted in running.values():
            submitted.cancel(check=False)
    (folder / _PAYLOAD).unlink(missing_ok=True)
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise TaskError(f"a retraining failed: {failures[0]}{more}")


def _executor(folder: Path, at_once: int, options: Mapping[str, Any]) -> tuple[Any, str]:
    try:
        import submitit
    except ImportError:
        raise MissingPackageError("submitit", "submitit", "launcher submitit") from None
    logging.getLogger("submitit").setLevel(logging.ERROR)
    cluster = options.get("cluster")
    if cluster not in (None, "slurm", "local"):
        raise SettingsError(f"cluster of launcher submitit must be slurm or local, not {cluster!r}")
    chosen = {"timeout_min": WITHIN, "name": "actsearch", **{k: v for k, v in options.items() if k != "cluster"}}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        if executor.cluster == "slurm":
            chosen = {"slurm_array_parallelism": at_once, **chosen}
        executor.update_parameters(**chosen)
    except (NameError, AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise SettingsError(f"launcher submitit: {' '.join(str(error).split())}") from None
    return executor, executor.cluster


def _write_payload(retrainer: Retrainer, folder: Path) -> None:
    try:
        content = pickle.dumps(retrainer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingsError(f"cannot be sent to a job ({error}); use launcher local with jobs 1") from None
    write_atomically(folder / _PAYLOAD, lambda temporary: temporary.write_bytes(content))


def _work(payload: Path, job: Job, file: Path, threads: int, at_once: int) -> None:
    """A job: its outcome is in `file` when it ends."""
    torch.set_num_threads(threads)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    retrainer = pickle.loads(payload.read_bytes())
    outcome = attempt(retrainer, *job, None, at_once)
    content = outcome if isinstance(outcome, str) else plain_retraining(outcome)
    write_text(file, json.dumps(content))


def _outcome(file: Path) -> Retraining | str:
    """What a job left: a result, or why there is none; empty if it left nothing that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if isinstance(content, str) else retraining(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""


def _key(contestant: Contestant, seed: int) -> str:
    """Tells the jobs of a comparison apart, and a function from another of the same name."""
    digest = hashlib.sha256(f"{contestant.name} {contestant.identity}".encode()).hexdigest()
    return f"{digest[:16]}-{seed}"
