"""The commands of docs/clusters.md are understood, and what it promises of them holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from actsearch import cli
from actsearch.tune import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)]
LINES = [line for block in BLOCKS for line in block.splitlines() if "actsearch" in line and not line.startswith("#")]
SET = {"$SLURM_NTASKS_PER_NODE": "4", "$SLURM_NNODES": "1", "$SLURM_JOB_NAME-$SLURM_JOB_ID": "search-7"}


def arguments(line: str) -> list[str]:
    """What a line gives to actsearch, with the variables that SLURM sets."""
    words = shlex.split(line, comments=True)
    return [SET.get(word, word) for word in words[words.index("actsearch") + 1 :]]


def test_there_are_commands_of_every_kind() -> None:
    verbs = [arguments(line)[0] for line in LINES]
    assert {verb: verbs.count(verb) for verb in verbs} == {"search": 4, "transfer": 1, "tune": 2}


@pytest.mark.parametrize("line", [line for line in LINES if arguments(line)[0] != "tune"])
def test_searches_and_transfers_are_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments(line), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    if "srun" in line:
        assert config["run"]["name"] == "search-7"
        assert (config["trainer"]["devices"], config["trainer"]["num_nodes"]) == (4, 1)
    if "transfer" in line:
        assert config["compare"]["launcher"] == "submitit"
        assert config["compare"]["submit"]["slurm_partition"] == "gpu"


@pytest.mark.parametrize("line", [line for line in LINES if arguments(line)[0] == "tune"])
def test_studies_name_a_shipped_plan(line: str) -> None:
    given = arguments(line)
    assert Plan.load(given[given.index("--config") + 1]).trials > 0
    assert given[given.index("--storage") + 1].startswith(("journal:", "postgresql://"))


def test_the_job_of_slurm_asks_for_what_the_search_handles() -> None:
    (job,) = [block for block in BLOCKS if "#SBATCH" in block]
    options = dict(re.findall(r"--([\w-]+)(?:=(\S+))?", " ".join(re.findall(r"^#SBATCH (.*)$", job, re.MULTILINE))))
    assert options["signal"].startswith("USR1@")
    assert "requeue" in options
    assert "ntasks-per-node" in options
    assert "--resume auto" in job
