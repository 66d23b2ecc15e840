"""Force fields from the command line: search, transfer with trained activations, dynamics, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_scripts import run_script

from actsearch.activation import load
from actsearch.cli import main
from actsearch.compare.saved import load_model
from actsearch.forcefield.deep_potential import DeepPotential
from actsearch.ops.basis_activation import BasisActivation
from actsearch.swap.smoothness import smoothness_of

pytest.importorskip("ase")
pytest.importorskip("vesin")

COPPER = ["--config", "deep_potential_copper", "--data.options", "{frames: 16, cutoff: 4.0}"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1
    return error


def test_a_rough_control_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["transfer", "--adapt", "taafs:chebyshev", *COPPER, "--compare.activations", "[own, relu]"]
    assert main(arguments) == 2
    error = one_line(capsys)
    assert "relu" in error
    assert "C^2" in error
    assert "compare.force" in error
    assert not list(tmp_path.rglob("models"))


def test_a_search_in_a_rough_space_is_refused_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", *COPPER, "--space", "grafs", "--compare.random", "0"]) == 2
    error = one_line(capsys)
    assert "smooth_c2" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_trained_activations_of_a_force_field_are_compared_saved_and_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["transfer", "--adapt", "taafs:chebyshev,laaf:channel", *COPPER, "--compare.activations", "[own]"]
    arguments += ["--compare.epochs", "2", "--seeds", "1", "--compare.jobs", "1", "--compare.save_models", "true"]
    assert main([*arguments, "--out", "found"]) == 0
    comparison = json.loads(Path("found", "comparison.json").read_text())
    assert comparison["metric"] == "test_force_rmse"
    rows = {row["name"]: row for row in comparison["rows"]}
    assert rows["own"]["added_parameters"] == 0
    assert rows["taafs:chebyshev"]["added_parameters"] == 10 * 5  # three layers of the embedding, two of the fitting
    assert rows["laaf:channel"]["added_parameters"] == 8 + 16 + 32 + 32 + 32
    assert len({row["mean"] for row in rows.values()}) == 3
    files = sorted(Path("found", "models").glob("*.pt"))
    assert len(files) == 3
    model = load_model(next(file for file in files if "taafs" in file.name))
    assert isinstance(model, DeepPotential)
    assert sum(isinstance(module, BasisActivation) for module in model.modules()) == 5
    assert main(["md", *map(str, files), "copper", "--time-steps", "1,2", "--steps", "40", "--out", "md"]) == 0
    simulated = json.loads(Path("md", "md.json").read_text())
    assert len(simulated["models"]) == 3
    for one in simulated["models"].values():
        assert all(abs(run["drift"]) < 100 for run in one["runs"])
        assert list(one["g"]) == ["r", "Cu-Cu"]


@pytest.mark.slow
def test_a_search_with_forces_in_the_loss_finds_a_smooth_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--search.epochs", "4", "--search.epoch_batches", "3", "--search.refine.evaluations", "10"]
    assert main(["search", *COPPER, *short, "--space", "smooth_c2", "--compare.enabled", "false"]) == 0
    (run,) = Path("runs", "smooth_c2").iterdir()
    assert smoothness_of(load(run)) >= 2
    lines = [json.loads(line) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    assert len(lines) == 4


@pytest.mark.slow
def test_the_script_on_force_fields_goes_on_and_makes_a_table(data_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchani")
    arguments = ["--architectures", "[ani2]", "--bases", "[chebyshev]", "--residual", "[]", "--spaces", "[]"]
    arguments += ["--seeds", "2", "--epochs", "1", "--data", str(data_root / "forcefield"), "--out", str(tmp_path)]
    text = run_script("reproduce_taafs.py", *arguments, cwd=tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in text
    assert [line.split("|")[1].strip() for line in table.splitlines()[4:]] == [
        "own", "taafs:chebyshev", "laaf:site", "laaf:channel", "random 1",
    ]  # fmt: skip
    before = (tmp_path / "ani2" / "retrainings.jsonl").read_text()
    run_script("reproduce_taafs.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "ani2" / "retrainings.jsonl").read_text() == before
    assert (tmp_path / "table.md").read_text() == table
