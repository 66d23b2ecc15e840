"""The scripts that show how actsearch is used do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_a_search_on_an_own_model_and_own_data_takes_forty_lines(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "own_model.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:actsearch", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr
    (run,) = (tmp_path / "runs" / "swish").iterdir()
    assert (run / "genotype.json").is_file()
    assert len((tmp_path / "comparison" / "comparison.csv").read_text().splitlines()) == 1 + 6 * 5
    assert len(re.findall(r"^discovered - .*95 % CI", found.stdout, re.MULTILINE)) == 5
    assert "replaced 2 activation site(s)" in found.stdout
