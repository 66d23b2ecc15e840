"""The scripts that show how actsearch is used do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def run_script(name: str, *arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_planted_functions_that_are_on_disk_are_not_searched_again(tmp_path: Path) -> None:
    record = {
        "teacher": "silu", "formula": "silu(x)", "setting": "a", "seed": 0, "found": "gelu(x)", "distance": 0.25,
        "before_refine": "x", "distance_before_refine": 0.5, "seconds": 7.0, "random_found": "x",
        "random_distance": 0.75, "random_tried": 9,
    }  # fmt: skip
    (tmp_path / "planted.jsonl").write_text(json.dumps(record) + "\n")
    text = run_script(
        "planted.py", "--teacher", "silu", "--seeds", "1", "--setting", "a", "--out", str(tmp_path), cwd=tmp_path
    )
    assert "silu (a), seed 0: gelu(x)  distance 0.250 in 7 s; random search 0.750 (9 tried)" in text
    assert text.splitlines()[-1].startswith("| silu | a | 0.250 | 0.250 | 0.500 | 0.750 | 7 |")


@pytest.mark.slow
def test_a_search_on_an_own_model_and_own_data_takes_forty_lines(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "own_model.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    text = run_script("own_model.py", cwd=tmp_path)
    (run,) = (tmp_path / "runs" / "swish").iterdir()
    assert (run / "genotype.json").is_file()
    assert len((tmp_path / "comparison" / "comparison.csv").read_text().splitlines()) == 1 + 6 * 5
    assert len(re.findall(r"^discovered - .*95 % CI", text, re.MULTILINE)) == 5
    assert "replaced 2 activation site(s)" in text


@pytest.mark.slow
def test_adaptive_slopes_on_images_start_alike_are_kept_on_disk_and_skip_what_is_missing(tmp_path: Path) -> None:
    arguments = ["--sets", "[digits, npz]", "--without_recovery", "[digits]", "--images", "128", "--test_images", "64"]
    arguments += ["--faster", "[digits]"]
    arguments += ["--steps", "3", "--seeds", "2", "--root", str(tmp_path), "--out", str(tmp_path), "--threads", "1"]
    text = run_script("reproduce_laaf_images.py", *arguments, cwd=tmp_path)
    assert "skipped npz: " in text
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 2 * (1 + 6 + 6 + 2)
    for record in records:
        (fixed,) = [r for r in records if r["scope"] is None and (r["seed"], r["lr"]) == (record["seed"], 0.01)]
        # The same weights and the same batches, whatever the slopes.
        assert record["losses"][0] == pytest.approx(fixed["losses"][0], abs=2e-5)
        assert len(record["losses"]) == 3
        assert len(record["scales"]) == (3 if record["scope"] else 0)
        if record["recovery"]:  # it drives slopes up
            assert all(scale > 1 for scale in record["scales"])
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in text
    assert (
        len(
            re.findall(r"^\| (?:fixed(?:, lr 0.0[25])?|(?:GAAF|[LN]-LAAF)(?: \+ S)?, n = [12]) \|", table, re.MULTILINE)
        )
        == 15
    )
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    run_script("reproduce_laaf_images.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "runs.jsonl").read_text().splitlines() == lines


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_adaptive_slopes_on_burgers_start_alike_are_kept_on_disk_and_may_run_side_by_side(tmp_path: Path) -> None:
    arguments = ["--iterations", "3", "--n_residual", "50", "--n_data", "12", "--seeds", "2", "--jobs", "2"]
    arguments += ["--weights", "[1, 0.1]", "--slopes_by", "[adam, sgd]", "--out", str(tmp_path)]
    text = run_script("reproduce_laaf_burgers.py", *arguments, cwd=tmp_path)
    records = _records(tmp_path)
    assert len(records) == 2 * (4 + 2 * 4)
    for seed in (0, 1):
        # The same points and weights, whatever the slopes.
        starts = [r["curve"][0]["loss"] for r in records if r["seed"] == seed]
        assert starts == pytest.approx([starts[0]] * 12, rel=1e-5)
    for record in records:
        assert 0 < record["l2"] < 2
        assert len(record["scales"]) == (0 if record["method"] == "standard" else 6)
    recovered = {(r["weight"], r["slopes_by"]): r["scales"][0] for r in records if r["method"] == "L-LAAF + S"}
    assert recovered[1.0, "sgd"] > recovered[0.1, "sgd"]  # it drives slopes up by its weight
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in text
    assert len(re.findall(r"^\| (?:standard|GAAF|[LN]-LAAF)(?: \+ S: weight [^|]*)? \|", table, re.MULTILINE)) == 12
    assert "| 0.0769 |" in table
    run_script("reproduce_laaf_burgers.py", *arguments, cwd=tmp_path)
    assert _records(tmp_path) == records


@pytest.mark.slow
def test_adaptive_slopes_on_a_function_start_alike_and_are_drawn(tmp_path: Path) -> None:
    arguments = ["--snapshots", "[2, 60]", "--points", "40", "--seeds", "2", "--out", str(tmp_path)]
    text = run_script("reproduce_laaf_function.py", *arguments, cwd=tmp_path)
    records = _records(tmp_path)
    assert [r["method"] for r in records[:6]] == ["standard", "GAAF", "L-LAAF", "N-LAAF", "L-LAAF + S", "N-LAAF + S"]
    assert len(records) == 2 * 6
    for record in records:
        (standard,) = [r for r in records if r["method"] == "standard" and r["seed"] == record["seed"]]
        assert record["losses"][0] == pytest.approx(standard["losses"][0], rel=1e-3)
        assert record["losses"][-1] < record["losses"][0]
        assert list(record["snapshots"]) == ["2", "60"]
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in text
    assert len(table.splitlines()) == 2 + 6
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    run_script("reproduce_laaf_function.py", *arguments, cwd=tmp_path)
    assert _records(tmp_path) == records
