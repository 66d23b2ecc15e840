"""A search that is killed resumes to the same bits: real processes, real signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import searcher
import torch

from actsearch.errors import RunError, Stopped
from actsearch.genotype import Genotype
from actsearch.process import stoppable
from actsearch.run import RunDirectory
from actsearch.search.checkpoint import checkpoints, latest_checkpoint


def start(root: Path, run: Path | None = None, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, searcher.__file__, str(root), *([str(run)] if run else []), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def only_run(root: Path) -> Path:
    (run,) = (root / "resume").iterdir()
    return run


def final_state(run: Path) -> dict[str, Any]:
    return torch.load(latest_checkpoint(run / "checkpoints"), weights_only=True)


def assert_same_bits(run: Path, reference: Path) -> None:
    ours, theirs = final_state(run), final_state(reference)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in theirs["state_dict"].items():  # weights, α, masks, op parameters, counters, BN statistics
        assert torch.equal(ours["state_dict"][name], tensor), name
    for a, b in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        for key, entry in b["state"].items():
            for name, value in entry.items():
                same = (
                    torch.equal(a["state"][key][name], value)
                    if torch.is_tensor(value)
                    else a["state"][key][name] == value
                )
                assert same, (key, name)
    assert Genotype.load(run / "genotype.json") == Genotype.load(reference / "genotype.json")
    assert (run / "genotype.json").read_text().replace(run.name, "") == (
        reference / "genotype.json"
    ).read_text().replace(reference.name, "")
    epochs = [record["epoch"] for record in RunDirectory(run).history()]
    assert epochs == [record["epoch"] for record in RunDirectory(reference).history()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reference")
    finish(start(root))
    return only_run(root)


def has_checkpoint(root: Path) -> bool:
    return any((root / "resume").glob("*/checkpoints/epoch-*.ckpt"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_at_random_moments_end_in_the_same_genotype_and_bits(reference: Path, tmp_path: Path) -> None:
    generator = random.Random(0)
    process = start(tmp_path)
    kills = 0
    deadline = time.monotonic() + 800
    while kills < 10:
        # The first checkpoint must be there, or there is nothing to resume.
        while not has_checkpoint(tmp_path) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(generator.uniform(0.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = start(tmp_path, only_run(tmp_path))
    finish(process)
    assert_same_bits(only_run(tmp_path), reference)


@pytest.mark.slow
@pytest.mark.parametrize("after", [11, 14, 29])
def test_sigterm_saves_within_the_epoch_and_resumes_to_the_same_bits(
    reference: Path, tmp_path: Path, after: int
) -> None:
    process = start(tmp_path, options=("--sigterm-after", str(after)))
    finish(process)
    run = only_run(tmp_path)
    assert int(final_state(run)["state_dict"]["steps"]) == after
    finish(start(tmp_path, run))
    assert_same_bits(run, reference)


@pytest.mark.slow
def test_a_search_that_chooses_its_evaluator_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actsearch.cell.evaluator.faster", lambda **given: True)  # not by the clock
    searcher.search(tmp_path / "whole", evaluator="auto")
    for after in (11, 13, 16):  # after half a batch of α, after whole ones, and after half a batch of the weights
        root = tmp_path / str(after)
        with pytest.raises(Stopped), stoppable(lambda: "go on"):
            searcher.search(root, sigterm_after=after, evaluator="auto")
        searcher.search(root, only_run(root), evaluator="auto")
        assert_same_bits(only_run(root), only_run(tmp_path / "whole"))


@pytest.mark.slow
def test_of_truncated_checkpoints_the_one_before_is_taken(reference: Path, tmp_path: Path) -> None:
    found = checkpoints(reference / "checkpoints")
    for path in found:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    newest = tmp_path / found[-1].name
    newest.write_bytes(newest.read_bytes()[:1000])
    assert latest_checkpoint(tmp_path).name == found[-2].name
    for path in found[:-1]:
        (tmp_path / path.name).write_bytes(b"")
    with pytest.raises(RunError, match=f"{newest.name} is truncated.*nor can .*{found[-2].name} be used"):
        latest_checkpoint(tmp_path)
