"""The scripts that show how actsearch is used do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

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
