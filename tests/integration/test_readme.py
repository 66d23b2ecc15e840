"""The README's commands and its Python example do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from actsearch import cli
from actsearch.config import SearchConfig
from actsearch.tune import Plan
from actsearch.tuning import Work

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
SEARCH = next(command for command in COMMANDS if "--space tiny" in command)


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert {"search", "test"} <= asked <= targets


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make test" in COMMANDS
    assert "make test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" ||", "\n||").replace(
        " \n", "\n"
    )


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if re.match(r"(python -m )?actsearch (search --[cs]|transfer )", c)]
)
def test_search_and_transfer_commands_of_the_readme_are_understood(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(command.partition("actsearch")[2])
    assert cli.main([*arguments, "--print_config"]) == 0
    assert "epochs" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("actsearch tune")])
def test_tune_commands_of_the_readme_name_shipped_plans(command: str) -> None:
    arguments = shlex.split(command)
    known = ("--config", "--trials", "--workers", "--storage")
    assert {argument for argument in arguments if argument.startswith("--")} <= set(known)
    name = arguments[arguments.index("--config") + 1] if "--config" in arguments else "default"
    assert Plan.load(name).trials > 1


def test_the_plan_of_the_readme_can_be_tuned() -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml" and "parameters:" in text]
    assert Work(Plan.from_dict(yaml.safe_load(text)), "readme").check()


def test_local_links_of_the_readme_exist() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        path, _, section = link.partition("#")
        assert (ROOT / path).exists()
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE) if section else []
        assert not section or section in [heading.lower().replace(" ", "-") for heading in headings]


def test_files_that_the_readme_lists_are_left_by_a_search() -> None:
    assert SearchConfig.folder in README


@pytest.mark.slow
def test_the_quick_bench_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [c for c in COMMANDS if c.startswith("actsearch bench --quick")]
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(command)[1:]) == 0
    (table,) = Path("runs", "bench").glob("*/bench.md")
    assert "table" in table.read_text(encoding="utf-8")


@pytest.mark.slow
def test_search_resume_and_show_of_the_readme(tmp_path: Path) -> None:
    def run(command: str) -> str:
        arguments = shlex.split(command)
        assert arguments[:3] == ["python", "-m", "actsearch"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        found = subprocess.run(
            [sys.executable, *arguments[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    run(SEARCH)
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    table = README.partition("| file |")[2].partition("\n\n")[0]
    for name in re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:])):
        assert any(path.startswith(name.rstrip("…")) for path in present), name
    resume = next(command for command in COMMANDS if "--resume" in command)
    run(f"python -m {resume.replace('runs/NAME/DATE', str(folder))}")
    assert "f(x)" in run(f"python -m actsearch show {folder}")
    for command in COMMANDS:
        if re.match(r"actsearch (export|zoo)", command):
            assert run(f"python -m {command.replace('runs/NAME/DATE', str(folder))}")
    assert {path.suffix for path in (folder / "export").iterdir()} >= {".py", ".onnx", ".pt2", ".tex", ".json"}


class _Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.slow
def test_python_example_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = next(text for kind, text in BLOCKS if kind == "python")
    x = torch.randn(64, 3)
    task = _Task()
    names = {
        "my_lightning_module": task,
        "my_model": task.model,
        "my_datamodule": DataLoader(TensorDataset(x, x.sum(1, keepdim=True).tanh()), batch_size=16, shuffle=True),
    }
    exec(example, names)
    assert "replaced 1 activation site" in capsys.readouterr().out


def test_example_of_slopes_and_curves_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (text for kind, text in BLOCKS if kind == "python" and "slope_recovery" in text)
    x = torch.randn(6, 3)
    adapted, curved = (nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1)) for _ in range(2))
    before = curved(x)
    names: dict[str, Any] = {
        "my_model": adapted,
        "my_other_model": curved,
        "x": x,
        "my_loss": lambda y: y.square().mean(),
    }
    exec(example, names)
    names["loss"].backward()
    assert "replaced 1 activation site" in capsys.readouterr().out
    slopes = dict(adapted.named_parameters())["1.a"]
    assert slopes.shape == (8,)
    assert slopes.grad is not None
    assert slopes.grad.abs().sum() > 0
    assert torch.allclose(curved(x), before, atol=1e-6)
    assert curved[1].coefficients.shape == (10,)
