"""Commands: what to type to get a run again, to go on with it, and to carry its function away."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actsearch.record import RunRecord

VERBS = ("search", "transfer", "compare-strategies", "tune")


@dataclass(frozen=True)
class Command:
    """A command with what it is for."""

    purpose: str
    text: str


def of_run(record: RunRecord) -> list[Command]:
    """Of a run; those that need what is not there are left out."""
    path = str(record.path)
    found = [Command("Go on with this run", _command("search", "--resume", path))] if not record.finished else []
    if called := as_called(record.environment):
        found.append(Command("As it was started", called))
    if "data" in record.config and "model" in record.config:
        files = [f"--config={record.path / 'config.yaml'}", f"--space={record.path / 'space.yaml'}"]
        found.append(Command("Search again with all the settings on file", _command("search", *files)))
    if record.found:
        if "data" in record.config:
            found.append(
                Command("Retrain and compare again, with new seeds", _command("transfer", path, "--seeds", "5"))
            )
        if len(record.found) == 1:
            found += [
                Command(
                    "Try it on another model and data",
                    _command("transfer", path, "--config", "vit_tiny_small", "--seeds", "5"),
                ),
                Command(
                    "Write it as Python, NumPy, ONNX, torch.export, sympy, LaTeX",
                    _command("export", path, "--to", "all"),
                ),
                Command("Formula, limits and other facts in the terminal", _command("show", path)),
                Command("Use it in Python", f"import actsearch\nactivation = actsearch.load({path!r})"),
            ]
    if record.strategy == "gradient" and record.cells:
        found.append(Command("Everything over time in TensorBoard", _command("tensorboard", path)))
    found.append(Command("Make this page again", _command("report", path)))
    found.append(
        Command("Read the run for figures of your own", f"import actsearch\nrun = actsearch.read_run({path!r})")
    )
    return found


def of_comparison(path: Path, environment: dict[str, Any]) -> list[Command]:
    """Of a folder with a comparison."""
    called = as_called(environment)
    found = [Command("The same again; what is done is kept", called)] if called else []
    return [*found, Command("Make this page again", _command("report", str(path)))]


def as_called(environment: Any) -> str:
    """The command line of the process that wrote it; empty if it was none of ours."""
    words = environment.get("command") if isinstance(environment, dict) else None
    if not isinstance(words, list) or not words or words[0] not in VERBS:
        return ""
    return _command(*map(str, words))


def _command(*words: str) -> str:
    return shlex.join(["actsearch", *words])
