"""A search that is killed resumes to the same bits: real processes, real signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from actsearch.errors import RunError
from actsearch.genotype import Genotype
from actsearch.run import RunDirectory
from actsearch.search.checkpoint import checkpoints, latest_checkpoint

SEARCHER = Path(__file__).with_name("searcher.py")


def start(root: Path, run: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, str(SEARCHER), str(root), *([str(run)] if run else [])]
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
@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [1, 3])
def test_sigterm_saves_within_the_epoch_and_resumes_to_the_same_bits(
    reference: Path, tmp_path: Path, after: int
) -> None:
    for attempt in range(10):  # a signal may come between two epochs
        root = tmp_path / str(attempt)
        root.mkdir()
        process = start(root)
        assert process.stdout is not None
        told = iter(process.stdout.readline, "")
        assert any(line == f"epoch {after}\n" for line in told)  # by an observer, at the end of an epoch
        time.sleep(0.05 + 0.03 * attempt)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        run = only_run(root)
        saved = torch.load(checkpoints(run / "checkpoints")[-1], weights_only=True)
        steps = int(saved["state_dict"]["steps"])
        if steps % 8 != 0:
            break
    assert steps % 8 != 0, f"saved after {steps} steps, never within an epoch"
    finish(start(root, run))
    assert_same_bits(run, reference)


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
