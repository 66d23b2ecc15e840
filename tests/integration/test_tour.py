"""The tour of the site: its commands run in order, in one folder, and print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- varies -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
VARIES = "<!-- varies -->"  # what follows holds numbers, dates or functions that are not the same everywhere
MARK = "== next ="


def steps() -> list[tuple[str, str, bool]]:
    """Each command with the output that is shown for it, and whether that varies."""
    found: list[tuple[str, str, bool]] = []
    blocks = BLOCK.findall(TOUR)
    for (_, kind, text), (varies, shown_as, output) in zip(blocks, [*blocks[1:], ("", "", "")], strict=True):
        if kind == "bash":
            followed = shown_as in ("text", "python") and output != "" and not output.startswith("import actsearch")
            found.append((text, output if followed else "", bool(varies)))
    return found


def words(line: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "DATE", " ".join(line.split()))


def test_the_tour_shows_an_output_for_every_command() -> None:
    assert len(steps()) >= 7
    for command, output, _ in steps():
        assert output, command


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_commands_of_the_tour_print_what_it_shows(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "actsearch"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m actsearch "$@"\n')
    tool.chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    script = "set -e\n" + f"\necho '{MARK}'\n".join(command for command, _, _ in steps())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=380
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{MARK}\n")
    for (command, shown, varies), output in zip(steps(), printed, strict=True):
        present = [words(line) for line in output.splitlines()]
        if varies:
            present = [line.split(" ")[0] for line in present]
        for line in map(words, shown.splitlines()):
            if line in ("", "…"):
                continue
            expected = line.split(" ")[0] if varies else line
            assert expected in present, f"{command}: {line}"
