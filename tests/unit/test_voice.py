"""How a verb speaks, and how it hears of work under way."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from actsearch import cli, work
from actsearch.report import voice as voices
from actsearch.report.voice import EVENTS, Voice
from actsearch.work import under_way

FAST = ["--space", "tiny", "--model.name", "mlp", "--model.options", "{hidden: [8]}", "--trainer.accelerator", "cpu"]
FAST += ["--trainer.threads", "1", "--compare.epochs", "1", "--compare.activations", "[relu]", "--compare.seeds", "1"]
FAST += ["--data.limit_train", "300", "--compare.random", "1"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that time.monotonic tells; the first element can be moved."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def in_a_file(mode: work.Mode = "auto") -> tuple[Voice, io.StringIO]:
    stream = io.StringIO()
    return Voice(mode, Console(file=stream, width=100)), stream


def in_a_terminal(encoding: str = "utf-8", width: int = 80) -> tuple[Voice, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Voice("auto", Console(file=file, width=width, force_terminal=True, force_interactive=True)), raw


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one in found:
        assert set(one) == {"event", "seconds", *EVENTS[one["event"]]}, one
    return found


# -- work ----------------------------------------------------------------------------------------------------------


def test_work_is_silent_without_a_listener_and_knows_how_long_it_takes(clock: list[float]) -> None:
    with under_way("counting", 10, "things") as counting:
        assert counting.seconds_left is None
        clock[0] += 4
        counting.advance(2)
        assert counting.seconds_left == pytest.approx(16)
        counting.at(10)
        assert counting.seconds_left == 0


def test_the_last_listener_alone_hears_of_work_and_of_its_end_after_an_error() -> None:
    heard: list[str] = []

    class Ear:
        def __init__(self, name: str) -> None:
            self.name = name

        def opened(self, one: work.Work) -> None:
            heard.append(f"{self.name} {one.title} opened")

        def moved(self, one: work.Work) -> None:
            heard.append(f"{self.name} {one.title} {one.done:g}")

        def closed(self, one: work.Work) -> None:
            heard.append(f"{self.name} {one.title} closed")

    def interrupted() -> None:
        with under_way("inner") as inner:
            inner.advance()
            raise KeyboardInterrupt

    with work.heard_by(Ear("first")):
        with work.heard_by(Ear("second")), pytest.raises(KeyboardInterrupt):
            interrupted()
        with under_way("outer"):
            pass
    assert heard == ["second inner opened", "second inner 1", "second inner closed", "first outer opened",
                     "first outer closed"]  # fmt: skip


# -- modes ---------------------------------------------------------------------------------------------------------


def test_without_a_terminal_work_is_told_of_after_a_while_and_ever_more_rarely(clock: list[float]) -> None:
    voice, stream = in_a_file()
    with work.heard_by(voice), under_way("making frames", 400, "frames") as making:
        for _ in range(200):
            clock[0] += 1
            making.advance()
    told = stream.getvalue().splitlines()
    assert told[0] == "  making frames: 10/400 frames, 6 min 30 s left"
    assert [int(line.split("/")[0].split()[-1]) for line in told] == [10, 30, 70, 150]
    assert "\x1b" not in stream.getvalue()


def test_work_is_not_told_of_while_other_lines_come(clock: list[float]) -> None:
    voice, stream = in_a_file()
    with work.heard_by(voice), under_way("comparison", 9) as comparison:
        for k in range(9):
            clock[0] += 9
            voice.say(f"result {k}")
            comparison.advance()
    assert stream.getvalue().splitlines() == [f"result {k}" for k in range(9)]


def test_in_a_terminal_works_are_rows_that_vanish_and_words_stand_above(clock: list[float]) -> None:
    voice, raw = in_a_terminal()
    with work.heard_by(voice), under_way("comparison", 3, "retrainings") as outer:
        with under_way("retraining relu, seed 0", 2, "epochs") as inner:
            clock[0] += 3
            inner.at(0.5)
            outer.advance()
        voice.say("1/3 relu")
        assert voice._live is not None
    text = raw.getvalue().decode()
    assert "retraining relu, seed 0" in text
    assert "epoch 1/2 · 9 s left" in text
    assert "1/3 retrainings" in text
    assert "1/3 relu" in text
    assert voice._live is None
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back


def test_a_terminal_without_unicode_gets_plain_signs(clock: list[float]) -> None:
    voice, raw = in_a_terminal("ascii")
    with work.heard_by(voice), under_way("γ → β", 2, "epochs") as one:
        clock[0] += 1
        one.at(1, "test")
        voice.say("0.5 → 0.4 · ∞")
    text = raw.getvalue().decode("ascii")
    assert "0.5 -> 0.4 | inf" in text
    assert "epoch 2/2 | test" in text


def test_no_row_is_wider_than_the_terminal() -> None:
    import re

    voice, raw = in_a_terminal(width=60)
    with work.heard_by(voice), under_way("a title that is much too long for this terminal, or any " * 2, 9) as one:
        one.at(3, "and a detail that is long as well, so long that it cannot fit")
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.getvalue().decode()).splitlines():
        assert len(line) <= 60


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    voice, raw = in_a_terminal()
    with work.heard_by(voice), under_way("counting", 5) as one:
        one.at(2)
    text = raw.getvalue().decode()
    assert "counting" in text
    assert "\x1b[36m" not in text
    assert "\x1b[38" not in text


def test_plain_has_no_escape_codes_even_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    voice = Voice()
    table = Table("name")
    table.add_row("[bold]relu[/]")
    with voice.speaking("plain"), under_way("counting", 5) as one:
        assert not voice.is_live
        one.at(2)
        voice.say("found: [not markup]")
        voice.show(table)
    text = capsys.readouterr().out
    assert "found: [not markup]" in text
    assert "\x1b" not in text


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    voice = Voice()
    with voice.speaking("quiet"), under_way("counting", 5) as one:
        clock[0] += 1000
        one.at(2)
        voice.say("found")
        voice.tell("message", "found", text="found")
        voice.show(Table("name"))
    assert capsys.readouterr() == ("", "")
    assert voice.mode == "auto"


def test_json_lines_have_the_documented_keys_and_nothing_else_is_on_standard_output(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    voice = Voice()
    with voice.speaking("json"), under_way("making frames", 4, "frames") as making:
        print("a library's own words")
        voice.say("\nwarning: x → ∞\n")
        voice.say("")
        voice.show(Table("name"))
        voice.tell("study", "for people", summary="", value=math.nan, values={"a": (1, math.inf)}, directory=Path("x"))
        clock[0] += 6
        making.advance()
        making.advance()
    assert sys.stdout is not sys.stderr
    out = capsys.readouterr()
    assert out.err == "a library's own words\n"
    told = [json.loads(line) for line in out.out.splitlines()]
    assert [one["event"] for one in told] == ["message", "study", "progress"]
    assert told[0]["text"] == "warning: x → ∞"
    assert (told[1]["value"], told[1]["values"], told[1]["directory"]) == (None, {"a": [1, None]}, "x")
    assert (told[2]["done"], told[2]["total"], told[2]["seconds_left"]) == (1, 4, pytest.approx(18))
    assert all(set(one) == {"event", "seconds", *EVENTS[one["event"]]} for one in told)


def test_another_rank_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    voice = Voice()
    for mode in ("plain", "json"):
        with voice.speaking(mode), under_way("counting", 2) as one:  # type: ignore[arg-type]
            one.advance()
            voice.say("found")
            voice.tell("message", "found", text="found")
    assert capsys.readouterr().out == ""


def test_a_voice_can_be_sent_to_another_process() -> None:
    voice = Voice("plain")
    voice.say("")
    assert pickle.loads(pickle.dumps(voice)).mode == "plain"


def test_every_event_is_described() -> None:
    for event, facts in EVENTS.items():
        assert facts, event
        assert all(facts.values()), event
    assert "json" in (voices.__doc__ or "")


# -- the verbs -----------------------------------------------------------------------------------------------------


def test_a_search_in_json_tells_all_that_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FAST, "--search.epochs", "4", "--run.root", str(tmp_path), "--progress", "json"]
    assert cli.main(["search", *options]) == 0
    told = lines(capsys)
    events = [one["event"] for one in told]
    assert events[:2] == ["search_started", "phase"]
    assert events.count("epoch") == 4
    assert events.count("retrained") == 3
    for event in ("shrunk", "refined", "found", "comparison_started", "comparison"):
        assert event in events
    assert events[-1] == "paths"
    epoch = next(one for one in told if one["event"] == "epoch")
    assert set(epoch["losses"]) == {"train", "arch", "val"}
    assert set(epoch["leading"]["network"]) == {"u1", "u2", "b1"}
    found = next(one for one in told if one["event"] == "found")
    assert json.loads(Path(found["genotype"]).read_text())
    dropped = [op for one in told if one["event"] == "shrunk" for ops in one["dropped"].values() for op in ops]
    assert len(dropped) == 17 - 3  # all candidates of the space but one a slot
    run = told[-1]["paths"]["run"]

    assert cli.main(["transfer", run, "--seeds", "1", "--epochs", "1", "--progress", "json"]) == 0
    told = lines(capsys)
    assert told[0]["event"] == "comparison_started"
    assert {one["activation"] for one in told if one["event"] == "retrained"} == {"discovered", "relu", "random 1"}
    assert [one["event"] for one in told][-2:] == ["comparison", "paths"]


def test_a_search_by_trials_in_json_tells_every_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FAST, "--search.epochs", "3", "--run.root", str(tmp_path), "--progress", "json"]
    assert cli.main(["search", *options, "--strategy", "random", "--compare.enabled", "false"]) == 0
    told = lines(capsys)
    trials = [one for one in told if one["event"] == "trial"]
    assert [one["number"] for one in trials] == list(range(len(trials)))
    assert trials[-1]["steps_done"] <= trials[-1]["budget"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "title"),
    [
        ("gradient", "local search"),
        ("gradient", "measuring functions"),
        ("gradient", "retraining relu"),
        ("random", "random search"),
        ("random", "measuring other functions"),
    ],
)
def test_ctrl_c_within_any_work_of_a_search_says_how_to_go_on_and_loses_nothing(
    strategy: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met: list[str] = []

    def interrupt(voice: Voice, one: work.Work) -> None:
        met.append(one.title)
        if one.title.startswith(title) and one.done > 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Voice, "moved", interrupt)
    # Of five functions a correlation is told, for which trials measure those that they did not find.
    options = [*FAST, "--search.epochs", "3", "--run.root", str(tmp_path), "--compare.random", "4"]
    assert cli.main(["search", *options, "--strategy", strategy]) == 130
    (run,) = (tmp_path / "tiny").iterdir()
    error = capsys.readouterr().err
    assert error.endswith(f"go on with: actsearch search --resume {run}\n")
    assert [line for line in error.splitlines() if line.startswith("actsearch: ")] == [error.splitlines()[-1]]
    assert met[-1].startswith(title)
    monkeypatch.undo()
    assert cli.main(["search", "--resume", str(run)]) == 0
    assert len(json.loads((run / "comparison.json").read_text())["rows"]) == 6


def test_an_unknown_mode_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "--progress", "quite"]) == 2
    assert capsys.readouterr().err == "actsearch: unknown value of progress 'quite'; did you mean 'quiet'?\n"
