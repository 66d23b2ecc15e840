"""The verb md from its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actsearch.cli import main
from actsearch.compare import saved
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField, sum_by_frame

ase = pytest.importorskip("ase")
pytest.importorskip("vesin")


class Spring(ForceField):
    """A harmonic bond, or nothing that is a number."""

    def __init__(self, strength: float, length: float = 1.0) -> None:
        super().__init__((1, 8), 6.0)
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))
        self.length = length

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        pairs = 0.25 * self.strength * (vectors.norm(dim=1) - self.length) ** 2
        return sum_by_frame(pairs.new_zeros(len(batch.frame)).index_add(0, batch.centre, pairs), batch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Here are two models, one that fails, one that is none, and structures."""
    models: dict[str, nn.Module] = {
        "soft.pt": Spring(5.0),
        "stiff.pt": Spring(20.0),
        "wrong.pt": Spring(1.0, 2.5),
        "broken.pt": Spring(float("nan")),
        "image.pt": nn.Linear(1, 1),
    }
    monkeypatch.setattr(saved, "load_model", lambda path: models[Path(path).name])
    monkeypatch.chdir(tmp_path)
    ase.Atoms("OH", [[0, 0, 0], [1.05, 0, 0]]).write("bond.xyz")
    ase.Atoms("OC", [[0, 0, 0], [1.05, 0, 0]]).write("carbon.xyz")
    return tmp_path


def test_md_compares_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["md", "soft.pt", "stiff.pt", "bond.xyz", "--time-steps", "0.5,1", "--steps=40", "--out", "found"]
    assert main([*arguments, "--temperature", "200", "--seed", "3", "--double"]) == 0
    found = json.loads((folder / "found" / "md.json").read_text())
    assert list(found["models"]) == ["soft", "stiff"]
    assert [run["steps"] for run in found["models"]["stiff"]["runs"]] == [80, 40]
    assert found["settings"]["temperature"] == 200
    assert (folder / "found" / "md.png").is_file()
    assert (folder / "found" / "stiff" / "trajectory.extxyz").is_file()
    printed = capsys.readouterr().out
    for word in ("soft", "stiff", "0.5 fs", "drift", "±", "found"):
        assert word in printed


@pytest.mark.parametrize(("arguments", "message"), [
    (["soft.pt"], "say `md MODEL STRUCTURE`"),
    (["soft.pt", "nowhere.xyz"], "nowhere.xyz is neither a file nor one of the data sets"),
    (["soft.pt", "carbon.xyz"], "knows elements [1, 8], not [6]"),
    (["image.pt", "bond.xyz"], "image.pt holds a Linear, which is no force field"),
    (["broken.pt", "bond.xyz", "--out=o"], "NaN or infinite after 0 ps; its last frame is in o/failed.extxyz"),
    (["soft.pt", "soft.pt", "bond.xyz"], "the same model is given twice"),
    (["soft.pt", "bond.xyz", "--time-steps=a"], "--time-steps takes numbers"),
    (["soft.pt", "bond.xyz", "--time=1", "--steps=50"], "not both"),
])  # fmt: skip
def test_what_cannot_be_simulated_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[Any], message: str
) -> None:
    assert main(["md", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_structure_that_falls_apart_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, hot in (("soft", False), ("wrong", True)):
        assert main(["md", f"{model}.pt", "bond.xyz", "--time-steps", "0.1", "--steps=40", "--out", model]) == 0
        assert ("does not hold this structure together" in capsys.readouterr().out.replace("\n", " ")) == hot
        (run,) = json.loads((folder / model / "md.json").read_text())["models"][model]["runs"]
        assert (run["temperature_last"] > 900) == hot
