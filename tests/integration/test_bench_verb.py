"""The verb bench, as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from actsearch import benching, cli
from actsearch.bench import timing
from actsearch.bench.measure import Measurer

FAST = ["--quick", "--repeats", "2", "--threads", "1", "--device", "cpu", "--contestants", "gelu,table,winner"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST", 0.0)
    monkeypatch.setattr(benching.machine, "loudness", lambda: 0.5)


def found(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    return content


def test_bench_prints_and_saves_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = tmp_path / "performance.md"
    history.write_text("# Performance\n\nan older section\n", encoding="utf-8")
    arguments = ["bench", *FAST, "--workloads", "elementwise,resnet20", "--no-growth", "--whole"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out"), "--record", str(history)]) == 0
    text = capsys.readouterr().out
    assert "ResNet-8 (quick)" in text
    assert "A whole search over one retraining" in text
    assert "Memory bandwidth" in text
    assert "warning: other processes use 0.5 cores" in text

    results = found(tmp_path / "out")
    assert results["finished"]
    assert [g["name"] for g in results["groups"]] == ["elementwise", "resnet20"]
    assert all(row["ratio"]["median"] > 0 for g in results["groups"] for row in g["rows"])
    assert results["whole"][0]["ratios"]["relu"]["median"] > 0
    assert results["machine"]["torch"] == torch.__version__
    with open(tmp_path / "out" / "bench.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["contestant"] for line in lines} == {"relu", "gelu", "table", "winner", "copy"}
    assert (tmp_path / "out" / "bench.md").read_text(encoding="utf-8").startswith("# ")

    recorded = history.read_text(encoding="utf-8")
    assert recorded.startswith("# Performance\n\nan older section\n")
    assert recorded.count("\n## ") == 1
    assert "### element-wise" in recorded


def test_growth_is_measured_unless_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Measurer, "growth", lambda self, workload, contestants, group: asked.append(contestants))
    arguments = ["bench", *FAST, "--workloads", "elementwise", "--steps", "alpha", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--no-growth"]) == 0
    assert asked == [["table"]]
    rows = [(r["contestant"], r["step"]) for r in found(tmp_path)["groups"][0]["rows"]]
    assert rows == [("relu", "weight"), ("table", "alpha"), ("copy", "weight")]


def test_an_interrupted_bench_leaves_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Measurer.workload

    def interrupted(self: Measurer, workload: Any, *arguments: Any) -> None:
        if workload.name == "resnet20":
            raise KeyboardInterrupt
        whole(self, workload, *arguments)

    monkeypatch.setattr(Measurer, "workload", interrupted)
    out, history = tmp_path / "out", tmp_path / "performance.md"
    arguments = ["bench", *FAST, "--workloads", "elementwise,resnet20", "--out", str(out), "--record", str(history)]
    assert cli.main(arguments) == 130
    assert f"what was measured is in {out}" in capsys.readouterr().err
    results = found(out)
    assert not results["finished"]
    assert all(row["ratio"]["median"] > 0 for row in results["groups"][0]["rows"])
    assert "Interrupted" in (out / "bench.md").read_text(encoding="utf-8")
    assert "## " not in history.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contestants", "tabel"], "unknown contestant 'tabel'; did you mean 'table'?"),
        (["--workloads", "resnet"], "unknown workload 'resnet'; did you mean 'resnet20'?"),
        (["--steps", "beta"], "unknown step 'beta'"),
        (["--repeats", "0"], "a bench needs at least 1 repeat"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--space", "gras"], "unknown search space 'gras'; did you mean 'grafs'?"),
        (["--winner", "zoo:mihs"], "'mish'"),
        (["--record", "/dev/null/performance.md"], "cannot write"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--quick", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
