"""Every command that the README and the pages of the site show is run, shortened by further options and nothing else.

`test_readme` runs some of them as they stand, `test_tour` the tour with its outputs. Those of docs/clusters.md need
several machines: `test_cluster_commands` sees that they are understood, `test_clusters` and `test_submitted` run what
can be run on one.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from actsearch import cli

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = "runs/NAME/DATE"
# Their commands make tables that take hours; the scripts and verbs in them have tests of their own.
MEASURED = {"results.md", "performance.md"}
ELSEWHERE = {"tour.md", "clusters.md"}


def shown() -> list[str]:
    """The commands in the bash blocks of all pages, each once."""
    found: dict[str, None] = {}
    for page in PAGES:
        if page.name in MEASURED | ELSEWHERE:
            continue
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            found.update(dict.fromkeys(filter(None, (line.partition("#")[0].strip() for line in block.splitlines()))))
    return list(found)


COMMANDS = shown()
# One is run as it stands in `test_readme`; the other serves until it is ended, in `test_boarding` and a browser.
RUN_ELSEWHERE = ("actsearch bench --quick", "actsearch tensorboard")
ACTSEARCH = [c for c in COMMANDS if re.match(r"(python -m )?actsearch ", c) and not c.startswith(RUN_ELSEWHERE)]
IMAGES = ["--data.limit_train", "192", "--data.limit_test", "64"]
FRAMES = ["--data.limit_train", "8", "--data.limit_test", "2"]
COPPER = ["--data.options", "{frames: 16, cutoff: 4.0}"]
# The run that they carry over is not one of the smooth spaces here.
ETHANOL = [*FRAMES, "--compare.force", "true"]
WATER = [*FRAMES, "--space", "taafs", "--search.epoch_batches", "1", "--search.validation_batches", "1"]
WATER += ["--compare.epoch_batches", "1", "--compare.activations", "[own]"]
POINTS = ["--data.options", "{n_residual: 40, n_data: 10}", "--compare.activations", "[tanh]", "--space", "taafs"]
COMPARE = ["--compare.epochs", "1", "--compare.random", "1", "--compare.jobs", "1"]
SEARCH = ["--search.epochs", "3", "--search.warm_epochs", "1", "--search.shrink_start", "2"]
SEARCH += ["--search.refine.evaluations", "5", *COMPARE]
SHORT = {
    "search": [*SEARCH, "--compare.seeds", "1"],
    "compare-strategies": [*SEARCH, "--seeds", "1"],
    "transfer": ["--seeds", "1", *COMPARE],
    "tune": ["--trials", "1", "--workers", "1"],
    "bench": ["--quick", "--repeats", "1", "--budget", "2"],
    "md": ["--steps", "30", "--time-steps", "1"],
}


def shortened(command: str) -> list[str]:
    """The arguments of a command with what makes it a matter of seconds."""
    arguments = shlex.split(command.partition("actsearch ")[2])
    verb = arguments[0]
    if verb not in SHORT or "--help" in arguments or "--resume" in arguments:
        return arguments
    arguments = [*arguments, *SHORT[verb]]
    if verb in ("search", "compare-strategies", "transfer", "tune"):
        kinds = {"copper": [*COPPER, *FRAMES], "water": WATER, "ethanol": ETHANOL, "burgers": POINTS}
        arguments += next((options for name, options in kinds.items() if name in command), IMAGES)
    return arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run in it, of the default search."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*shortened("actsearch search"), "--run.name", "first"]) == 0
    return folder


def run(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    (first,) = Path("runs", "first").iterdir()
    return cli.main([str(first) if argument == RUN else argument for argument in arguments])


def test_all_commands_are_known_here() -> None:
    others = [c for c in COMMANDS if c not in ACTSEARCH and not c.startswith(RUN_ELSEWHERE)]
    assert {c.split()[0] for c in others} <= {"make", "pip"}
    assert {shlex.split(c.partition("actsearch ")[2])[0] for c in ACTSEARCH} <= set(cli.VERBS)
    assert len(ACTSEARCH) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("command", ACTSEARCH)
def test_the_command_runs(
    command: str, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shortened(command)
    if "DIR" in arguments:
        root = request.getfixturevalue("data_root") / "forcefield"
        arguments = [str(root) if argument == "DIR" else argument for argument in arguments]
    if "fashion" in command or "vit_tiny_small" in command:
        arguments += ["--data.root", str(request.getfixturevalue("data_root") / "vision")]
    if arguments[0] == "md" and not Path(place, arguments[1]).is_file():  # what the command before it leaves
        made = next(c for c in ACTSEARCH if "--adapt" in c and "save_models" in c)
        assert run(shortened(made), place, monkeypatch) == 0
    arguments = [a.replace("journal:/shared", f"journal:{place}/shared") for a in arguments]
    assert run(arguments, place, monkeypatch) == 0


def test_make_search_is_the_search_without_options() -> None:
    """Which `place` has run."""
    assert "make search" in COMMANDS
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nsearch:")[2].splitlines()[1]
    assert recipe.strip() == "$(PYTHON) -m actsearch search $(ARGS)"
