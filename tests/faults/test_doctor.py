"""doctor says what is wrong and what to do, ends with 1 for an error, and survives what it looks at."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from actsearch import _torchvision, cli, doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do on this machine decides no test."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**13, 0, 10**13))
    monkeypatch.delenv("ACTSEARCH_DATA", raising=False)


def verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["doctor", "--no-compile", *arguments])
    found = capsys.readouterr()
    assert found.err == ""
    return code, found.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code, out = verb(capsys, "--json", *arguments)
    content = json.loads(out)
    assert content["ok"] == (code == 0)
    return code, {check["check"]: check for check in content["checks"]}


def test_this_installation_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = as_json(capsys, "--run.root", str(tmp_path / "runs"), "--data.root", str(tmp_path))
    assert code == 0, checks
    asked = {r.name for r in doctor.requirements() if r.marker is None}
    assert asked | {"python", "imports", "torchvision", "cpu", "data", "runs", "disk", "[onnx]"} <= set(checks)
    assert checks["torch"]["found"] == metadata.version("torch")
    assert list(tmp_path.iterdir()) == [], "nothing is left, and runs is not made"


def test_what_people_read_has_a_line_for_each_and_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = verb(capsys, "--run.root", str(tmp_path), "--data.root", str(tmp_path / "nowhere"))
    assert code == 1
    assert "error" in text
    assert f"{tmp_path}/nowhere is not there" in " ".join(text.split())
    assert "give another by --data.root" in text
    assert "1 error, " in text
    assert "Traceback" not in text


def test_requirements_are_those_of_the_project_and_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    of_checkout = {r.name for r in doctor.requirements()}
    assert {"torch", "torchvision", "pytorch-lightning", "onnx", "torchani"} <= of_checkout
    monkeypatch.setattr(doctor, "_PROJECT", Path("nowhere"))
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.6", "onnx>=1.17; extra == 'onnx'"])
    assert [r.name for r in doctor.requirements()] == ["torch", "onnx"]
    assert [f.check for f in doctor.packages()] == ["torch", *(f"[{extra}]" for extra in doctor.EXTRAS)]


def levels(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], *asked: str) -> list[tuple[str, str, str]]:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "requirements", lambda: [Requirement(text) for text in asked])
    return [(f.check, f.level, f.advice) for f in doctor.packages()]


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.6.6", "ok"), ("2.7.0", "ok"), ("2.6.3", "error"), ("2.6.6+cpu", "ok"), ("2.7.0.dev3", "ok")],
)
def test_a_version_is_held_against_what_is_asked(version: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = levels(monkeypatch, {"pytorch-lightning": version}, "pytorch-lightning>=2.6.6")
    advice = "" if level == "ok" else "pip install 'pytorch-lightning>=2.6.6'"
    assert found[0] == ("pytorch-lightning", level, advice)


def test_packages_that_are_missing_are_errors_and_optional_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("torch>=2.6", "onnx>=1.17; extra == 'onnx'", "onnxruntime>=1.20; extra == 'onnx'")
    assert [level for _, level, _ in levels(monkeypatch, {}, *asked)] == ["error", *("ok" for _ in doctor.EXTRAS)]
    half = levels(monkeypatch, {"torch": "2.6", "onnx": "1.20"}, *asked)
    assert half[1][:2] == ("[onnx]", "warning")
    old = levels(monkeypatch, {"torch": "2.6", "onnx": "1.0", "onnxruntime": "1.20"}, *asked)
    assert old[1] == ("[onnx]", "warning", "pip install 'actsearch[onnx]'")


def test_a_package_that_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def broken(name: str, *more: Any) -> Any:
        if name == "pytorch_lightning":
            raise RuntimeError("operator torchvision::nms\ndoes not exist")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", broken)
    code, checks = as_json(capsys)
    assert code == 1
    assert checks["import pytorch_lightning"]["found"] == "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    ("torch", "torchvision", "shim", "level", "hint"),
    [
        ("2.13.0", "0.28.0", None, "ok", ""),
        ("2.6.0+cpu", "0.21.0+cpu", None, "ok", ""),
        ("2.13.0", "0.26.0", None, "warning", "torchvision==0.28.*"),
        ("2.13.0", "0.28.0", object(), "warning", "from the same index"),
    ],
    ids=["a pair", "an older pair", "not of one release", "built for CUDA"],
)
def test_torchvision_that_does_not_go_with_torch_is_told(
    torch: str, torchvision: str, shim: Any, level: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", {"torch": torch, "torchvision": torchvision}.__getitem__)
    monkeypatch.setattr(_torchvision, "_library", shim)
    (found,) = doctor.torchvision_pair()
    assert found.level == level
    assert hint in found.advice


def test_more_threads_than_cores_and_a_busy_machine_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    (found,) = doctor.processors()
    assert (found.level, "--trainer.threads" in found.advice) == ("warning", True)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "getloadavg", lambda: (999.0, 0.0, 0.0))
    (found,) = doctor.processors()
    assert (found.level, "take" in found.advice or "longer" in found.advice) == ("warning", True)


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    (found,) = doctor.accelerators()
    assert found.level == "warning"
    assert "driver" in found.advice


def fake_run(code: int, stderr: str) -> Any:
    def run(command: Any, **options: Any) -> Any:
        if code == -1:
            raise subprocess.TimeoutExpired(command, 1)
        assert os.path.isdir(options["env"]["TORCHINDUCTOR_CACHE_DIR"]), "nothing comes from an earlier compilation"
        return subprocess.CompletedProcess(command, code, "3.0", stderr)

    return run


@pytest.mark.parametrize(
    ("code", "stderr", "level", "found"),
    [
        (0, "", "ok", "works"),
        (
            1,
            "Traceback\nInvalidCxxCompiler: No working C++ compiler found\n\n",
            "warning",
            "No working C++ compiler found",
        ),
        (1, "x.cpp:1: fatal error: Python.h: No such file\nnote", "warning", "Python.h: No such file"),
        (1, "", "warning", "without a word"),
        (-1, "", "warning", "longer than"),
    ],
    ids=["works", "no compiler", "no headers", "silent", "for ever"],
)
def test_a_compiler_that_does_not_work_is_told(
    code: int, stderr: str, level: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_run(code, stderr))
    (line,), (ours,) = doctor.compiler(), doctor.kernels()
    assert line.level == ours.level == level
    assert found in line.found
    assert level == "ok" or found in ours.found
    assert ("python3-dev" in line.advice) == (level != "ok")


def test_data_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    (found,) = doctor.data(tmp_path)
    assert (found.level, "mnist" in found.found) == ("ok", True)
    (found,) = doctor.data(tmp_path / "nowhere")
    assert found.level == "error"
    monkeypatch.setenv("ACTSEARCH_DATA", str(tmp_path / "nowhere"))
    (found,) = doctor.data(None)
    assert (found.level, "ACTSEARCH_DATA" in found.found) == ("error", True)

    def refused(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    (found,) = doctor.data(tmp_path)
    assert (found.level, "Permission denied" in found.found) == ("error", True)


@pytest.mark.parametrize(("free", "level"), [(1e12, "ok"), (1e9, "warning"), (1e6, "error")])
def test_little_disk_is_told(free: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**12, 0, free))
    found = {f.check: f.level for f in doctor.disk(tmp_path / "runs")}
    assert found == {"runs": "ok", "disk": level, "temporary files": level}


def test_a_folder_for_runs_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    (found,) = doctor.disk(tmp_path / "runs")
    assert (found.level, "--run.root" in found.advice) == ("error", True)


def test_a_check_that_fails_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def accelerators() -> Any:
        raise RuntimeError("CUDA driver\ninitialization failed")

    monkeypatch.setattr(doctor, "accelerators", accelerators)
    code, checks = as_json(capsys, "--run.root", str(tmp_path))
    assert code == 1
    assert checks["accelerators"]["found"] == "RuntimeError: CUDA driver initialization failed"
    assert {"cpu", "runs"} <= set(checks)


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--data-root", "x"]) == 2
    assert "--data.root" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_as_a_command(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "actsearch", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    for check in ("compiler", "kernels"):
        assert checks[check]["level"] == "ok", checks[check]
    assert done.stderr == ""
