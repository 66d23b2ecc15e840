"""Faults injected into studies: each ends in the same trials as without, or in one line that says what to do."""

from __future__ import annotations

import csv
import datetime
import json
import os
import random
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import optuna
import pytest
import torch
import yaml
from faulty import full_disk, thinned
from postgresql_server import PASSWORD, Server
from studies import PLAN, STORAGES, TRIALS, Objective, at, no_training, one_line, outcome, quick, run

from actsearch import cli, tuning
from actsearch.errors import ActsearchError, DataError, RunError, SettingsError, Stopped, TaskError
from actsearch.files import write_text
from actsearch.run import RunDirectory
from actsearch.tune import Results
from actsearch.tune import storage as storage_module
from actsearch.tune.queue import Claim
from actsearch.tuning import Work


@pytest.fixture(autouse=True)
def patch(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with no_training(tmp_path) as patch:
        yield patch


@pytest.fixture
def objective(patch: pytest.MonkeyPatch) -> Callable[[Objective], None]:
    """Sets what trials do."""
    return lambda new: patch.setattr(tuning, "_objective", new)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Any, float]]:
    """A study that nothing disturbed."""
    with no_training(tmp_path_factory.mktemp("reference")):
        found = outcome(run())
    assert len(found) == TRIALS
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with studies, in SQLite and in a journal, of which two trials are done and one was told to end."""
    folder = tmp_path_factory.mktemp("begun")

    def interrupt() -> None:
        raise KeyboardInterrupt

    for name in STORAGES:
        with no_training(folder) as patch:
            patch.setattr(tuning, "_objective", at(2, interrupt))
            with pytest.raises(Stopped):
                run(name)
        shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture
def started(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    for name in STORAGES:
        shutil.copy(begun / name, tmp_path / name)
    return tmp_path


def said_in_one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("name", STORAGES)
def test_a_study_that_was_interrupted_goes_on_to_the_same_trials(
    name: str, started: Path, reference: dict[int, Any]
) -> None:
    results = run(name)
    assert outcome(results) == reference
    assert [row.state for row in results.rows].count("lost") == 1


# -- a disk that is full, or read-only ------------------------------------------------------------------------------

WRITTEN = ["trials.csv", "study.json", "study.md", "best.yaml", "history.png", "importance.png", "study.id"]


@pytest.mark.parametrize("name", thinned(WRITTEN))
def test_a_full_disk_at_the_results_is_one_line_and_no_trial_is_lost(
    name: str, reference: dict[int, Any], patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(tuning, "save", lambda figure, path: write_text(path, "a picture"))
    with full_disk(name), pytest.raises(RunError) as caught:
        run()
    assert "No space left on device" in one_line(caught)
    results = run()
    assert outcome(results) == reference
    assert len(results.rows) == TRIALS
    assert all(path.stat().st_size for path in Path("runs/tune/study").rglob("*") if path.is_file())


def test_a_full_disk_at_the_space_of_the_best_trial_is_one_line() -> None:
    parameters = {**PLAN["parameters"], "space.clip.limit": {"float": [3.0, 30.0]}}
    with full_disk("best_space.yaml"), pytest.raises(RunError, match="No space left on device"):
        run(parameters=parameters)
    assert len(run(parameters=parameters).rows) == TRIALS


@pytest.mark.parametrize("skip", thinned([0, 1, 4, 8, 20, 40]))
def test_a_full_disk_at_the_journal_is_one_line_and_no_trial_is_lost(skip: int, reference: dict[int, Any]) -> None:
    with full_disk("study.log", skip, whole=True), pytest.raises(RunError) as caught:
        run("study.log")
    assert "No space left on device" in one_line(caught)
    assert outcome(run("study.log", heartbeat=0.1)) == reference


@contextmanager
def limited(path: Path, more: int) -> Iterator[None]:
    """Within it, no file may grow beyond the size of `path` and so many bytes more: a full disk takes half a line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("more", thinned([0, 1, 40, 700]))
def test_a_journal_that_cannot_grow_is_left_whole(more: int, started: Path, reference: dict[int, Any]) -> None:
    path = started / "study.log"
    before = path.read_bytes()
    with limited(path, more), pytest.raises(RunError) as caught:
        run("study.log")
    assert "File too large" in one_line(caught)
    content = path.read_bytes()
    assert content.startswith(before)
    assert content.endswith(b"\n")
    assert outcome(run("study.log", heartbeat=0.1)) == reference


@pytest.mark.parametrize("more", thinned([5_000, 50_000]))
def test_a_database_that_cannot_grow_is_one_line_and_no_trial_is_lost(
    more: int, started: Path, reference: dict[int, Any]
) -> None:
    path = started / "study.db"
    with limited(Path(os.devnull), more), pytest.raises(RunError) as caught:  # the log beside it begins empty
        run("study.db")
    assert "storage" in one_line(caught)
    assert path.is_file()
    assert outcome(run("study.db", heartbeat=0.1)) == reference


def test_a_disk_that_is_full_for_a_moment_is_not_noticed(
    objective: Callable[[Objective], None], reference: dict[int, Any], patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(storage_module, "OUTAGE", 3)
    full = full_disk("study.log", whole=True)

    def fill() -> None:
        full.__enter__()
        threading.Timer(0.3, lambda: full.__exit__(None, None, None)).start()

    objective(at(1, fill))
    results = run("study.log")
    assert outcome(results) == reference
    assert {row.state for row in results.rows} == {"complete"}


@contextmanager
def unprivileged() -> Iterator[None]:
    """Within it, root has no more rights than others."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def shared(patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which others may read and write, as the present one."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        patch.chdir(folder)
        yield Path(folder)
        patch.chdir("/")


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_is_read_only_is_one_line(
    name: str, shared: Path, started: Path, reference: dict[int, Any]
) -> None:
    shutil.copy(started / name, shared / name)
    (shared / name).chmod(0o444)
    shared.chmod(0o555)
    with unprivileged(), pytest.raises(RunError, match="storage") as caught:
        run(name)
    one_line(caught)
    shared.chmod(0o777)
    (shared / name).chmod(0o666)
    assert outcome(run(name)) == reference


def test_a_folder_of_results_that_is_read_only_is_one_line(shared: Path, reference: dict[int, Any]) -> None:
    (shared / "storage").mkdir(mode=0o777)
    (shared / "storage").chmod(0o777)
    (shared / "runs").mkdir(mode=0o555)
    with unprivileged(), pytest.raises(RunError, match="cannot write runs") as caught:
        run("storage/study.db")
    one_line(caught)
    (shared / "runs").chmod(0o777)
    assert outcome(run("storage/study.db")) == reference


# -- damaged storages ----------------------------------------------------------------------------------------------


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(seed: int, count: int = 300) -> Callable[[Path], object]:
    """Bytes anywhere."""

    def damage(path: Path) -> None:
        rng = random.Random(seed)
        data = bytearray(path.read_bytes())
        for _ in range(count):
            data[rng.randrange(100, len(data))] = rng.randrange(256)
        path.write_bytes(data)

    return damage


def sql(*statements: str) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


DATABASES: dict[str, Callable[[Path], object]] = {
    "cut to a tenth": cut(0.1),
    "cut in half": cut(0.5),
    "last page lost": cut(0.98),
    "zeros, as after a power cut": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "text": lambda path: path.write_text("this is no study\n" * 100),
    "bytes changed 1": flipped(1),
    "bytes changed 2": flipped(2),
    "bytes changed 3": flipped(3, 3000),
    "a newer version of Optuna": sql("UPDATE version_info SET schema_version = 99"),
    "an unknown version of its tables": sql("UPDATE alembic_version SET version_num = 'v99.0.0.a'"),
    "a table that is missing": sql("DROP TABLE trial_user_attributes", "DROP TABLE trial_values"),
    "a plan that is no JSON": sql("UPDATE study_user_attributes SET value_json = '{' WHERE key = 'plan'"),
    "a plan that is a number": sql("UPDATE study_user_attributes SET value_json = '3' WHERE key = 'plan'"),
    "attributes that are no JSON": sql("UPDATE trial_user_attributes SET value_json = '{'"),
    "an unknown state": sql("UPDATE trials SET state = 'LOST'"),
    "distributions that are none": sql("UPDATE trial_params SET distribution_json = '[]'"),
    "another study's name": sql("UPDATE studies SET study_name = 'other'"),
}


@pytest.mark.parametrize("name", thinned(DATABASES))
def test_a_database_that_is_damaged_is_one_line_or_goes_on(name: str, started: Path, reference: dict[int, Any]) -> None:
    DATABASES[name](started / "study.db")
    try:
        found = outcome(run("study.db", heartbeat=0.1))
    except ActsearchError as error:
        text = str(error)
        assert "\n" not in text
        assert "stud" in text
        assert len(text) < 900
        assert (started / "study.db").is_file()
    else:
        assert found == reference


def lines(change: Callable[[list[bytes]], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        content = path.read_bytes().splitlines(keepends=True)
        change(content)
        path.write_bytes(b"".join(content))

    return damage


def replaced(number: int, line: bytes) -> Callable[[Path], object]:
    return lines(lambda content: content.__setitem__(number, line + b"\n"))


def edited(number: int, **values: Any) -> Callable[[Path], object]:
    def change(content: list[bytes]) -> None:
        content[number] = json.dumps({**json.loads(content[number]), **values}).encode() + b"\n"

    return lines(change)


JOURNALS: dict[str, Callable[[Path], object]] = {
    "cut in the middle of a line": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "half a line more": lambda path: path.write_bytes(path.read_bytes() + b'{"op_code":8,"worker'),
    "a line that is no JSON": replaced(12, b"{"),
    "a bomb of brackets": replaced(12, b"[" * 100_000),
    "a line that is a list": replaced(12, b"[]"),
    "a line that is a number": replaced(12, b"3"),
    "a line that is null": replaced(12, b"null"),
    "bytes that are no text": replaced(12, b"\xff\xfe\x00"),
    "an operation that is none": edited(12, op_code=99),
    "an operation that is a word": edited(12, op_code="x"),
    "a trial that is none": edited(-3, trial_id=99),
    "a trial that is a word": edited(-3, trial_id="x"),
    "a line lost at the start": lines(lambda content: content.pop(0)),
    "a line lost in the middle": lines(lambda content: content.pop(9)),
    "lines in another order": lines(lambda content: content.reverse()),
    "zeros, as after a power cut": lambda path: path.write_bytes(path.read_bytes()[:-200] + b"\0" * 200),
}


@pytest.mark.parametrize("name", thinned(JOURNALS))
def test_a_journal_that_is_damaged_is_one_line_or_goes_on(name: str, started: Path, reference: dict[int, Any]) -> None:
    path = started / "study.log"
    JOURNALS[name](path)
    before = path.read_bytes()
    try:
        found = outcome(run("study.log", heartbeat=0.1))
    except ActsearchError as error:
        text = str(error)
        assert "\n" not in text
        assert "study" in text
        assert len(text) < 900
        whole = before[: before.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(whole), "what was there is kept"
    else:
        assert found == reference


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_is_deleted_in_the_middle_of_a_trial_is_one_line(
    name: str, objective: Callable[[Objective], None], tmp_path: Path
) -> None:
    def delete() -> None:
        for path in tmp_path.glob(f"{name}*"):
            path.rename(tmp_path / f"away{path.name}")

    def objective_(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
        delete()
        claim._queue.storage.remove_session()
        if hasattr(claim._queue.storage, "engine"):
            claim._queue.storage.engine.dispose()  # a connection that stays open does not notice
        return quick(work, claim)

    objective(objective_)
    with pytest.raises(RunError, match="storage") as caught:
        run(name)
    one_line(caught)


# -- the files beside it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\xff\xfe["], ids=["empty", "no text"])
@pytest.mark.parametrize("name", thinned(["study.json", "trials.csv", "study.md", "best.yaml"]))
def test_results_that_are_damaged_are_written_again(name: str, content: bytes) -> None:
    run()
    path = Path("runs/tune/study") / name
    whole = path.read_bytes()
    path.write_bytes(content)
    run()
    assert path.read_bytes() == whole


PLANS: dict[str, Callable[[str], str]] = {
    "cut in half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "a number": lambda text: "3",
    "code": lambda text: text + "\nx: !!python/object/apply:os.abort []\n",
    "a number for the verb": lambda text: text.replace("verb: search", "verb: 3"),
    "a number as a key": lambda text: text.replace("fixed:", "fixed:\n  3: 4"),
    "null as a key": lambda text: text.replace("fixed:", "fixed:\n  null: 4"),
    "a list for the parameters": lambda text: text.replace("parameters:\n", "parameters: []\nother:\n"),
    "no parameters": lambda text: text.replace("parameters:\n", "parameters:\nother:\n"),
    "a range of thousands of digits": lambda text: text.replace("0.1", "1" + "0" * 400),
    "trials of a hundred digits": lambda text: text.replace("trials: 4", "trials: -" + "9" * 100),
    "a section for a setting": lambda text: text.replace("space: tiny", "space: {a: 1}"),
    "null for a setting": lambda text: text.replace("search.epochs: 4", "search.epochs: null"),
    "binary": lambda text: "\0\1\2",
}


@pytest.mark.parametrize("name", thinned(PLANS))
def test_a_plan_that_is_damaged_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(PLANS[name](yaml.safe_dump(PLAN, sort_keys=False)), encoding="utf-8")
    assert cli.main(["tune", "--config", "mine.yaml"]) == 2
    said_in_one_line(capsys)
    assert not Path("runs/tune/mine/study.db").exists()


# -- another study -------------------------------------------------------------------------------------------------

OTHERS: dict[str, dict[str, Any]] = {
    "another range": {"parameters": {**PLAN["parameters"], "search.warm_epochs": {"int": [0, 2]}}},
    "one parameter more": {"parameters": {**PLAN["parameters"], "search.shrink_start": {"int": [1, 2]}}},
    "one parameter less": {"parameters": {"search.warm_epochs": {"int": [0, 3]}}},
    "another metric": {"objective": {"metric": "loss/train"}},
    "another direction": {"objective": {"metric": "loss/val", "direction": "maximize"}},
    "another setting": {"fixed": {**PLAN["fixed"], "search.epochs": 5}},
}


@pytest.mark.parametrize("name", thinned(OTHERS))
def test_another_plan_in_the_same_folder_is_one_line_and_changes_nothing(name: str, reference: dict[int, Any]) -> None:
    run()
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.*") if path.suffix not in (".db", ".png")}
    with pytest.raises(SettingsError, match="begun with another") as caught:
        run(**OTHERS[name])
    one_line(caught)
    # Nor does a storage of its own let it overwrite the results of the first.
    with pytest.raises(RunError, match="holds the results of another study"):
        run("other.db", **OTHERS[name])
    assert before == {path: path.read_bytes() for path in before}
    assert outcome(run()) == reference


def test_the_same_plan_with_another_storage_does_not_overwrite_what_is_there() -> None:
    run()
    before = Path("runs/tune/study/study.json").read_bytes()
    with pytest.raises(RunError, match="give this one another --name") as caught:
        run("other.log")
    one_line(caught)
    Path("runs/tune/study/study.db").rename("mislaid.db")
    with pytest.raises(RunError, match="holds the results of another study"):
        run()
    assert Path("runs/tune/study/study.json").read_bytes() == before
    assert len(run("mislaid.db").rows) == TRIALS


def test_a_folder_whose_owner_died_before_it_said_so_is_taken() -> None:
    Path("runs/tune/study").mkdir(parents=True)
    Path("runs/tune/study/study.id").write_text("")
    run()
    assert len(run().rows) == TRIALS


# -- what a trial does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", thinned([float("nan"), float("inf"), -float("inf")]))
def test_a_value_that_is_not_finite_fails_the_trial_alone(
    value: float, objective: Callable[[Objective], None], reference: dict[int, Any]
) -> None:
    objective(lambda work, claim: (value, {}) if claim.slot == 1 else quick(work, claim))
    results = run()
    assert [row.state for row in results.rows] == ["complete", "failed", "complete", "complete"]
    assert f"loss/val is {value:g}" in results.rows[1].note
    found = outcome(results)
    assert {slot: found[slot] for slot in (0, 2, 3)} == {slot: reference[slot] for slot in (0, 2, 3)}
    json.loads(Path("runs/tune/study/study.json").read_text(), parse_constant=pytest.fail)


FAULTS = [
    RuntimeError("shapes\ndo not match"),
    KeyError("missing"),
    ZeroDivisionError("division"),
    MemoryError(),
    RecursionError("too deep"),
]


@pytest.mark.parametrize("fault", thinned(FAULTS, [type(fault).__name__ for fault in FAULTS]))
def test_what_a_trial_raises_is_kept_and_the_trial_is_tried_again(
    fault: Exception,
    objective: Callable[[Objective], None],
    reference: dict[int, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise fault

    objective(at(1, fail))
    results = run()
    assert outcome(results) == reference
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "broken off" in line]
    assert type(fault).__name__ in said
    assert "Traceback" in Path("runs/tune/study/trials/0001/traceback.txt").read_text()


def test_a_trial_that_always_raises_fails_and_the_others_are_done(
    objective: Callable[[Objective], None], reference: dict[int, Any]
) -> None:
    def one(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
        if claim.slot == 1:
            raise RuntimeError("it does not fit")
        return quick(work, claim)

    objective(one)
    results = run()
    assert [row.note for row in results.rows if row.state == "failed"] == ["RuntimeError: it does not fit"]
    assert {slot for slot, (_, value) in outcome(results).items() if value == reference[slot][1]} == {0, 2, 3}


def test_a_study_of_which_every_trial_raises_ends_in_one_line(
    objective: Callable[[Objective], None], reference: dict[int, Any]
) -> None:
    def fail(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
        raise RuntimeError("it does not fit")

    objective(fail)
    with pytest.raises(RunError, match="one trial after the other is broken off") as caught:
        run()
    assert "it does not fit" in one_line(caught)
    objective(quick)
    assert outcome(run()) == reference


@pytest.mark.parametrize(
    "fault",
    [DataError("no data"), OSError(28, "No space left on device"), RunError("no folder")],
    ids=["data", "disk", "folder"],
)
def test_what_no_value_can_mend_ends_the_worker_and_the_trial_waits(
    fault: Exception, objective: Callable[[Objective], None], reference: dict[int, Any]
) -> None:
    def fail() -> None:
        raise fault

    objective(at(1, fail))
    with pytest.raises((DataError, RunError), match=str(fault.args[-1])):
        run()
    objective(quick)
    results = run()
    assert outcome(results) == reference
    assert [row.state for row in results.rows].count("lost") == 1


def test_a_study_of_which_every_trial_fails_is_one_line(objective: Callable[[Objective], None]) -> None:
    def fail(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    objective(fail)
    with pytest.raises(TaskError, match="no trial was completed; trial 0 failed: CUDA out of memory") as caught:
        run()
    one_line(caught)


# -- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-24, 24], ids=str)
@pytest.mark.parametrize("name", thinned(STORAGES))
def test_a_clock_that_jumps_in_the_middle_of_a_trial_changes_nothing(
    name: str,
    hours: int,
    objective: Callable[[Objective], None],
    reference: dict[int, Any],
    patch: pytest.MonkeyPatch,
) -> None:
    def jump() -> None:
        now, clock = datetime.datetime.now, time.time

        class Jumped(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return now(tz) + datetime.timedelta(hours=hours)

        patch.setattr(time, "time", lambda: clock() + 3600 * hours)
        for module in (optuna.storages._rdb.storage, optuna.storages.journal._storage, optuna.trial._trial):
            if hasattr(module, "datetime"):
                patch.setattr(module, "datetime", Jumped)

    objective(at(1, jump))
    results = run(name)
    assert outcome(results) == reference
    assert {row.state for row in results.rows} == {"complete"}
    rows = list(csv.DictReader(Path("runs/tune/study/trials.csv").read_text().splitlines()))
    seconds = rows[1]["seconds"]
    assert seconds == "" if hours < 0 else float(seconds) > 3600


# -- passwords -----------------------------------------------------------------------------------------------------

SECRET = "hunter2"
URLS = {
    "a server that is not there": f"postgresql://me:{SECRET}@127.0.0.1:1/base",
    "in the query": f"postgresql://127.0.0.1:1/base?user=me&password={SECRET}",
    "with signs that are not encoded": f"postgresql://me:{SECRET}/@{SECRET}@127.0.0.1:1/base",
    "a port that is none": f"postgresql://me:{SECRET}@127.0.0.1:port/base",
    "no host": f"postgresql:/me:{SECRET}@base",
    "no dialect": f"me:{SECRET}@127.0.0.1/base",
    "an unknown dialect": f"nothing://me:{SECRET}@127.0.0.1/base",
    "a driver that is missing": f"oracle+nothing://me:{SECRET}@127.0.0.1/base",
}


@pytest.mark.parametrize("name", URLS)
def test_a_password_is_not_printed_when_a_server_cannot_be_reached(
    name: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(storage_module, "ATTEMPTS", 1)
    assert cli.main(["tune", "--storage", URLS[name]]) == 2
    assert SECRET not in said_in_one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", URLS["a server that is not there"]],
        ["tune", f"--storages={URLS['in the query']}"],
        [URLS["no dialect"]],
    ],
    ids=["no option", "a wrong option", "no verb"],
)
def test_a_password_is_not_printed_when_it_is_typed_at_the_wrong_place(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert SECRET not in said_in_one_line(capsys)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """The command line of a study on that storage, as a shell gives it."""

    def main(storage: str) -> int:
        Path("mine.yaml").write_text(yaml.safe_dump(PLAN))
        monkeypatch.setattr("sys.argv", ["actsearch", "tune", "--config", "mine.yaml", "--storage", storage])
        return cli.main()

    return main


# -- a server ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("postgresql", [True], ids=["with a password"], indirect=True)
def test_a_password_is_in_no_file_and_no_output(
    postgresql: Server,
    objective: Callable[[Objective], None],
    typed: Callable[[str], int],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    patch: pytest.MonkeyPatch,
) -> None:
    def with_files(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
        RunDirectory(work.directory / "trials" / f"{claim.number:04d}").write_environment()
        return quick(work, claim)

    patch.setattr(storage_module, "ATTEMPTS", 1)
    for wrong in ("wrong", PASSWORD[::-1]):
        assert typed(postgresql.url(wrong)) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert "password authentication failed" in error
        assert wrong not in error.replace("study", "")
    objective(with_files)
    assert typed(postgresql.url(PASSWORD)) == 0
    said = "".join(capfd.readouterr())
    assert f"{TRIALS} of {TRIALS} trials" in said
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "mine.yaml"]
    assert {"study.json", "best.yaml", "environment.json"} <= {path.name for path in files}
    assert all(PASSWORD.encode() not in path.read_bytes() for path in files)
    assert "tuner:***@" in said
    assert PASSWORD not in said


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_is_away_for_a_moment_is_waited_for(
    mode: str,
    postgresql: Server,
    objective: Callable[[Objective], None],
    reference: dict[int, Any],
    patch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def restart() -> None:
        postgresql.stop(mode)
        threading.Timer(1.5, postgresql.start).start()

    patch.setattr(storage_module, "OUTAGE", 6)
    objective(at(1, restart))
    results = run(postgresql.url(), heartbeat=5.0)
    assert outcome(results) == reference
    assert {row.state for row in results.rows} == {"complete"}
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_stops_in_the_middle_of_a_trial_is_one_line_and_the_study_goes_on(
    mode: str,
    postgresql: Server,
    objective: Callable[[Objective], None],
    reference: dict[int, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    objective(at(1, lambda: postgresql.stop(mode)))
    with pytest.raises(RunError, match="storage cannot be reached") as caught:
        run(postgresql.url())
    one_line(caught)
    assert "Traceback" not in "".join(capfd.readouterr())
    postgresql.start()
    results = run(postgresql.url())
    assert outcome(results) == reference
    assert [row.state for row in results.rows].count("lost") == 1


@pytest.mark.slow
def test_a_server_that_is_stopped_before_the_results_are_written_is_one_line(
    postgresql: Server, objective: Callable[[Objective], None], reference: dict[int, Any], patch: pytest.MonkeyPatch
) -> None:
    whole = Results.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Results], queue: Any) -> Results:
        postgresql.stop()
        return whole(cls, queue)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(Results, "of", classmethod(of))
        with pytest.raises(RunError, match="storage cannot be reached") as caught:
            run(postgresql.url())
    one_line(caught)
    postgresql.start()
    assert outcome(run(postgresql.url())) == reference
