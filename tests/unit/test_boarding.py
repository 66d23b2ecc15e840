"""The verb tensorboard: what it refuses in one line, its doors, and a server that ends."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actsearch import boarding, cli
from actsearch.report.tensorboard import SCORES, log_scores

CONFIG = {"space": "tiny", "strategy": "gradient", "search": {"seed": 1, "alpha_lr": 0.02}, "model": {"name": "mlp"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    log_scores(tmp_path / "runs" / "one", {"test": 97.5}, CONFIG, "## results")
    return tmp_path / "runs" / "one"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that someone else listens at."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        one.listen()
        yield one.getsockname()[1]


def test_what_cannot_be_shown_is_one_line(
    run: Path, taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, hint in (
        ([str(tmp_path / "none")], "is no folder; give a run"),
        ([str(tmp_path / "empty")], "holds no events of a search"),
        ([str(run), "--port", "70000"], "--port must be from 1 to 65535"),
        ([str(run), "--port", str(taken)], "already in use; give another --port"),
        ([str(run), "--host", "999.1.1.1", "--port", "16006"], "cannot listen at 999.1.1.1"),
    ):
        assert cli.main(["tensorboard", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("actsearch: ")
        assert hint in error
        assert error.count("\n") == 1


def test_tensorboard_serves_the_scores_and_its_doors_and_ends(run: Path) -> None:
    def fetch(path: str) -> str:
        with urllib.request.urlopen(address.rstrip("/") + path, timeout=20) as answer:
            return answer.read().decode()

    with boarding.serving(run.parent, None, "localhost") as address:
        assert json.loads(fetch("/data/runs")) == ["one"]
        for name, page in boarding.addresses(address).items():
            door = fetch(page.removeprefix(address.rstrip("/")))
            assert json.dumps(next(to for shown, to in boarding.PAGES.values() if shown == name)) in door
        scalars: dict[str, Any] = json.loads(fetch("/data/plugin/scalars/tags"))
        assert set(scalars["one"]) == {"score/test"}
    with pytest.raises(OSError, match=r"refused|reset|timed out"):
        fetch("/data/runs")
    assert "tensorflow" not in sys.modules


def test_scores_and_hyperparameters_are_in_one_run_and_the_same_for_all(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    log_scores(run, {"search_loss": 0.25, "test": float("nan")}, CONFIG)
    events = EventAccumulator(str(run))
    events.Reload()
    assert events.Scalars("score/test")[0].value == 97.5
    assert events.Scalars("score/search_loss")[0].value == 0.25
    content = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["space"].string_value == "tiny"
    assert start.hparams["search.alpha_lr"].number_value == 0.02
    assert "data.name" not in start.hparams
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [metric.name.tag for metric in experiment.metric_infos] == [f"score/{name}" for name in SCORES]
    assert {"space", "data.name", "search.seed"} <= {info.name for info in experiment.hparam_infos}
    assert [path for path in run.rglob("*") if path.is_dir()] == []
