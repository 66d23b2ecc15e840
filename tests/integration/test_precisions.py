"""A search in every precision that the trainer knows: it ends well, or is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from actsearch import cli

SMALL = ["search", "--space", "tiny", "--search.epochs", "3", "--search.refine.evaluations", "4", "--progress", "quiet"]
SMALL += ["--data.limit_train", "128", "--data.limit_test", "64", "--data.batch_size", "16", "--trainer.threads", "1"]
SMALL += ["--model.options", "{width: 2}", "--trainer.accelerator", "cpu", "--run.root", "."]
COMPARED = ["--compare.seeds", "1", "--compare.epochs", "1", "--compare.random", "0", "--compare.activations", "[relu]"]


@pytest.mark.parametrize("evaluator", ["table", "dense"])
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_search_and_its_comparison_run_in_it(
    precision: str, evaluator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.precision", precision, "--search.evaluator", evaluator]
    assert cli.main([*SMALL, *COMPARED, *options]) == 0
    (run,) = tmp_path.glob("tiny/*")
    assert len((run / "retrainings.jsonl").read_text().splitlines()) == 3
    losses = json.loads((run / "search.json").read_text())["losses"]
    assert all(loss is not None for loss in losses.values())
    last = sorted((run / "checkpoints").glob("epoch-*"))[-1]
    state = torch.load(last, weights_only=True)["state_dict"]
    kinds = {value.dtype for value in state.values() if value.is_floating_point()}
    assert kinds == {torch.float64 if precision == "64-true" else torch.float32}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("bf16-true", "α is rounded to 8 bits"),
        ("16-true", "float16 needs loss scaling"),
        ("64", "unknown value of trainer.precision '64'"),
        ("bf16-miksed", "did you mean 'bf16-mixed'"),
    ],
)
def test_others_are_refused_with_one_line(
    precision: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*SMALL, "--compare.enabled", "false", "--trainer.precision", precision]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"), [("accelerator", "nonsense"), ("strategy", "nonsense"), ("accelerator", "tpu")]
)
def test_what_the_trainer_refuses_is_told_in_one_line(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*SMALL, "--compare.enabled", "false", f"--trainer.{option}", value]) == 2
    said = capsys.readouterr().err
    assert said.startswith("actsearch: Lightning's Trainer refuses its settings: ")
    assert said.count("\n") == 1


def test_resume_auto_begins_a_search_goes_on_with_it_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*SMALL, "--compare.enabled", "false", "--run.name", "job-7", "--resume", "auto"]
    assert cli.main(command) == 0
    (run,) = tmp_path.glob("job-7/*")
    found = (run / "genotype.json").read_text()
    (run / "genotype.json").unlink()
    sorted((run / "checkpoints").glob("epoch-*"))[-1].unlink()
    # Where it runs may differ, and what is said; the order of options does not matter.
    assert cli.main([*command[:-2], "--resume=auto", "--data.num_workers", "0", "--trainer.devices", "1"]) == 0
    assert [path.name for path in tmp_path.glob("job-7/*")] == [run.name]
    assert json.loads((run / "genotype.json").read_text())["slots"] == json.loads(found)["slots"]
    capsys.readouterr()
    assert cli.main([*command, "--search.seed", "5", "--training.lr", "0.2"]) == 2
    said = capsys.readouterr().err
    assert "is of other settings (search.seed, training.lr)" in said
    assert "--run.name" in said
    # A run that ended before its first checkpoint is left alone.
    for path in (run / "checkpoints").glob("*"):
        path.unlink()
    assert cli.main([*command, "--search.seed", "5"]) == 0
    assert len(list(tmp_path.glob("job-7/*"))) == 2
