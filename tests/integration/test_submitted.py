"""Retrainings as jobs of a cluster: submitit's own local one, which starts and collects them in the same way."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from actsearch import cli
from actsearch.compare import Budget, Contestant, Retraining, compare, contestant, submitted
from actsearch.compare.records import plain_retraining
from actsearch.data import ImageData
from actsearch.errors import MissingPackageError, SettingsError, TaskError
from actsearch.files import write_text
from actsearch.models import build
from actsearch.tasks import Classification

submitit = pytest.importorskip("submitit")

DATA = ImageData("digits", batch_size=32, limit_train=96, limit_test=64)
LOCAL = {"cluster": "local"}


def build_task() -> Classification:
    return Classification(build("resnet8", DATA.facts, width=2), 10, lr=0.05)


def failing() -> Classification:
    if os.environ.get("SUBMITIT_EXECUTOR") and Path(os.environ["FAULTY"]).exists():
        raise RuntimeError("a fault of the task's own code")
    return build_task()


class Dies(nn.Module):
    """Ends its process, as a machine that goes down does."""

    def forward(self, x: Any) -> Any:
        if os.environ.get("SUBMITIT_EXECUTOR"):
            os._exit(9)
        return x


def test_options_that_submitit_does_not_know_are_told(tmp_path: Path) -> None:
    for options, why in (
        ({"cluster": "moon"}, "slurm or local, not 'moon'"),
        ({**LOCAL, "slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'"),
        ({**LOCAL, "timeout_min": "long"}, "timeout_min"),
    ):
        with pytest.raises(SettingsError, match=why):
            run(tmp_path, build_task, options)


def test_without_submitit_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingPackageError, match=r"actsearch\[submitit\]"):
        run(tmp_path, build_task, LOCAL)


def test_its_options_without_it_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transfer", "zoo:mish", "--epochs", "1", "--compare.submit.cluster", "local"]) == 2
    assert "set compare.launcher to submitit" in capsys.readouterr().err


def dying(site: Any) -> nn.Module:
    return Dies()


def run(folder: Path, build_task: Any, submit: Any = None, names: Any = ("relu", "silu"), **more: Any) -> Any:
    return compare(
        build_task,
        DATA,
        [contestant(name) if isinstance(name, str) else name for name in names],
        seeds=[3],
        budget=Budget(1),
        directory=folder,
        trainer={"accelerator": "cpu"},
        reference=names[0] if isinstance(names[0], str) else names[0].name,
        jobs=1 if submit is None else 2,
        submit=submit,
        **more,
    )


def values(comparison: Any) -> dict[str, Any]:
    return {row.name: row.values for row in comparison.rows}


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Jobs find this file, and compute with one thread as they do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_jobs_give_the_bits_of_this_process_and_one_that_fails_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = tmp_path / "faulty"
    monkeypatch.setenv("FAULTY", str(faulty))
    expected = values(run(tmp_path / "local", build_task))
    found = run(tmp_path / "jobs", failing, LOCAL)
    assert values(found) == expected
    folder = tmp_path / "jobs" / submitted.FOLDER
    assert not list(folder.glob("*.json"))  # what was taken
    assert not (folder / "retrainer.pickle").exists()
    faulty.touch()
    with pytest.raises(TaskError, match=r"a retraining failed: gelu, seed 3: RuntimeError: a fault of the task's own"):
        run(tmp_path / "jobs", failing, LOCAL, ("relu", "silu", "gelu"))
    assert values(run(tmp_path / "jobs", failing, LOCAL)) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_job_that_dies_is_told_with_its_log(tmp_path: Path) -> None:
    dies = Contestant("dies", dying, "x")
    with pytest.raises(TaskError, match=r"dies, seed 3: job \d+ ended without a result; see .*\.err"):
        run(tmp_path, build_task, LOCAL, (dies,), force=True)


def test_a_result_that_nobody_took_since_the_one_who_waited_was_killed_is_taken(tmp_path: Path) -> None:
    left = Retraining("relu", 3, {"test_acc": 0.25}, seconds=1.5, step_seconds=0.25)
    file = tmp_path / submitted.FOLDER / f"{submitted._key(contestant('relu'), 3)}.json"
    write_text(file, json.dumps(plain_retraining(left)))
    comparison = run(tmp_path, build_task, LOCAL, ("relu",))
    assert comparison.retrainings == (left,)
    assert not file.exists()
    assert len((tmp_path / "retrainings.jsonl").read_text().splitlines()) == 2
