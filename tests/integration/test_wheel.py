"""The package as it is installed: built, installed into a fresh environment, and used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ACTSEARCH_DATA")}
    found = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel, and with the dependencies that are installed here already."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Nothing is downloaded: the dependencies are those of the environment that runs the tests.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    home = _run(installed, "-c", "import actsearch; print(actsearch.__file__)", cwd=tmp_path)
    assert str(installed.parent.parent) in home


def test_named_files_travel_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    names = "from actsearch.files import named_files; print(sorted(named_files('{}')))"
    for folder in ("search_spaces", "configs/search", "configs/transfer"):
        shipped = sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))
        assert _run(installed, "-c", names.format(folder), cwd=tmp_path).strip() == str(shipped)
    zoo = sorted(path.stem for path in (ROOT / "actsearch" / "zoo").glob("*.json"))
    assert _run(installed, "-c", "from actsearch import zoo; print(sorted(zoo.names()))", cwd=tmp_path).strip() == str(
        zoo
    )


def test_kernels_travel_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
from actsearch.cell import piecewise
from actsearch.ops import tabulated
print(all(library.kernels is not None for library in (piecewise.library, tabulated.library)))
"""
    assert _run(installed, "-W", "error", "-c", code, cwd=tmp_path).strip() == "True"


def test_a_search_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    command = installed.parent / "actsearch"
    short = ["--space", "tiny", "--search.epochs", "3", "--compare.seeds", "1", "--compare.epochs", "1"]
    text = _run(command, "search", "--config", "default", *short, cwd=tmp_path)
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    assert (run / "genotype.json").is_file()
    assert (run / "report.html").read_text().endswith("</html>\n"), "its templates travel with the wheel"
    assert "discovered" in text
    assert "f(x)" in _run(command, "show", run, cwd=tmp_path)
