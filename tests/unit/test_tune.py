"""What a study tunes, where its trials are kept, and that none is lost or done twice; nothing is trained here."""

from __future__ import annotations

import csv
import importlib.util
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from actsearch.cell.relaxation import make_relaxation
from actsearch.config import SearchConfig
from actsearch.errors import ActsearchError, MissingPackageError, RunError, SettingsError, UnknownNameError
from actsearch.report.plots import pixels
from actsearch.report.tune_plots import draw_history, draw_importance
from actsearch.tune import Place, Plan, Range, Results, TakenOver, TrialQueue, open_storage
from actsearch.tune.lease import Watch
from actsearch.tune.queue import RETRIES, SLOT, Claim, make_pruner
from actsearch.tuning import Work

BEAT = 0.2
PLAN: dict[str, Any] = {
    "verb": "search",
    "config": "default",
    "parameters": {
        "search.alpha_lr": {"float": ["1e-3", 0.1], "log": True},
        "search.warm_epochs": {"int": [0, 3]},
        "search.relaxation": {"choice": ["dirichlet", "softmax"]},
    },
    "objective": {"metric": "loss/val"},
    "trials": 6,
    "heartbeat": BEAT,
}

RELAXATION, FLOOR = "search.relaxation", "search.relaxation_options.concentration_floor"
HOT, COLD = "search.relaxation_options.temperature", "search.relaxation_options.final_temperature"
# The first depends on the second, and the last on one that itself depends on another.
CONDITIONAL: dict[str, Any] = {
    FLOOR: {"float": [0.01, 0.5], "log": True, "when": {RELAXATION: "dirichlet"}},
    RELAXATION: {"choice": ["dirichlet", "gumbel", "softmax"]},
    HOT: {"int": [1, 2], "when": {RELAXATION: ["gumbel", "softmax"]}},
    COLD: {"float": [0.1, 0.5], "when": {HOT: [2], RELAXATION: ["gumbel"]}},
}


def plan(**changes: Any) -> Plan:
    return Plan.from_dict({**PLAN, **changes})


def never() -> bool:
    return False


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A journal, which is quick; SQLite too where the test asks for BOTH."""
    return Place.of(str(tmp_path / getattr(request, "param", "study.log")), tmp_path)


BOTH = pytest.mark.parametrize("place", ["study.log", "study.db"], indirect=True)


def join(place: Place, trials: int | None = None, **changes: Any) -> TrialQueue:
    """One worker's queue, with a connection of its own."""
    one = plan(**changes)
    return TrialQueue(open_storage(place, one.grace), "study", one, {"search": {"epochs": 9}}, 9, trials)


def take(queue: TrialQueue) -> Claim:
    return next(iter(queue.claims(never)))


def empty(queue: TrialQueue) -> list[int]:
    """Complete everything that this worker gets; the slots that it filled."""
    found = []
    for claim in queue.claims(never):
        with claim:
            claim.report(1.0, 1)
            claim.complete(float(claim.slot))
            found.append(claim.slot)
    return found


# -- ranges and plans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"float": [0.1, 1.0]},
        {"float": [0.1, 1.0], "log": True},
        {"float": [0.0, 1.0], "step": 0.25},
        {"int": [1, 64], "log": True},
        {"int": [2, 10], "step": 2},
        {"choice": ["a", 1, True, None]},
        {"float": [0.1, 1.0], "log": True, "when": {"other": ["a", None], "third": [1]}},
        {"choice": ["a", "b"], "when": {"other": [True]}},
    ],
    ids=str,
)
def test_a_range_is_read_and_written_the_same(data: dict[str, Any]) -> None:
    one = Range.parse("key", data)
    assert Range.parse("key", one.to_dict()) == one
    value = one.suggest(optuna.create_study().ask())
    assert value in one.choices if one.kind == "choice" else one.low <= value <= one.high  # type: ignore[operator]


def test_numbers_without_a_point_are_numbers() -> None:
    assert Range.parse("key", yaml.safe_load("{float: [1e-3, 1e-1]}")).ends == (1e-3, 1e-1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "a range is"),
        ({"flot": [1, 2]}, "a range is"),
        ({"float": [1, 2], "int": [1, 2]}, "a range is"),
        ({"float": [1, 2], "logs": True}, "did you mean 'log'"),
        ({"float": 1}, "takes a list"),
        ({"float": [1, 2, 3]}, "LOW, HIGH"),
        ({"float": [2, 1]}, "must be below"),
        ({"float": [1, "x"]}, "not a number"),
        ({"float": [1, float("inf")]}, "not a finite number"),
        ({"float": [0, 1], "log": True}, "above 0"),
        ({"float": [1, 2], "log": "yes"}, "true or false"),
        ({"float": [1, 2], "log": True, "step": 0.1}, "without log"),
        ({"int": [1, 2.5]}, "whole numbers"),
        ({"int": [True, 2]}, "not a finite number"),
        ({"choice": ["a"]}, "two or more"),
        ({"choice": ["a", ["b"]]}, "two or more"),
        ({"choice": ["a", "a"]}, "twice"),
        ({"choice": ["a", "b"], "log": True}, "neither"),
        ({"float": [1, 2], "when": 3}, "when takes other"),
        ({"float": [1, 2], "when": {}}, "when takes other"),
        ({"float": [1, 2], "when": {"other": []}}, "when other takes names"),
        ({"float": [1, 2], "when": {"other": [["a"]]}}, "when other takes names"),
        ({"when": {"other": ["a"]}}, "a range is"),
    ],
    ids=str,
)
def test_a_bad_range_is_told_in_one_line(data: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        Range.parse("search.alpha_lr", data)
    assert str(error.value).startswith("search.alpha_lr: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verb": "serch"}, "did you mean 'search'"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"pruner": "hyper"}, "unknown pruner"),
        ({"trails": 3}, "did you mean 'trials'"),
        ({"trials": 0}, "trials must be"),
        ({"heartbeat": 0}, "heartbeat must be"),
        ({"parameters": {}}, "nothing is tuned"),
        ({"parameters": [1]}, "must hold keys"),
        ({"objective": "loss"}, "objective must hold"),
        ({"objective": {"metric": "loss", "direction": "down"}}, "unknown direction"),
        ({"fixed": {"search.alpha_lr": 1}}, "both fixed and tuned"),
        ({"fixed": 3}, "fixed must hold"),
        ({"activation": "relu"}, "is for verb transfer"),
        ({"verb": "transfer", "validation": 1.0}, "validation must lie"),
        ({"parameters": {"a": {"int": [1, 2], "when": {"b": [1]}}}}, "unknown tuned parameter 'b'"),
        ({"parameters": {"a": {"int": [1, 2], "when": {"b": [1]}}, "b": {"float": [1, 2]}}}, "b is a float"),
        ({"parameters": {"a": {"int": [1, 2], "when": {"b": [3]}}, "b": {"int": [1, 2]}}}, "b never is 3"),
        ({"parameters": {"a": {"int": [1, 2], "when": {"b": ["x"]}}, "b": {"choice": ["y", "z"]}}}, "b never is 'x'"),
        ({"parameters": {"a": {"int": [1, 2], "when": {"b": [1]}}, "b": {"choice": [True, None]}}}, "b never is 1"),
        ({"parameters": {"a": {"int": [1, 2], "when": {"a": [1]}}}}, "a: when depends on itself"),
        (
            {
                "parameters": {
                    "a": {"int": [1, 2], "when": {"b": [1]}},
                    "b": {"int": [1, 2], "when": {"a": [1]}},
                    "c": {"int": [1, 2]},
                }
            },
            "when depends on itself, by way of a, b",
        ),
        ({"verb": "transfer", "parameters": {"space.clip.limit": {"int": [1, 2]}}}, "is for verb search"),
    ],
    ids=str,
)
def test_a_bad_plan_is_told_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        plan(**changes)
    assert "\n" not in str(error.value)


def test_a_plan_that_lacks_a_part_says_which(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in PLAN.items() if key != "objective"}))
    with pytest.raises(SettingsError, match=r"mine\.yaml: objective is missing"):
        Plan.load(file)


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"parameters": {"search.alpha_lrs": {"float": [1, 2]}}}, (), "did you mean 'search.alpha_lr'"),
        ({"fixed": {"serch.epochs": 3}}, (), "did you mean 'search.epochs'"),
        ({"parameters": {"search.alpha_lr": {"float": [-1, 1]}}}, (), "cannot be -1, an end of its range"),
        ({"parameters": {"search.relaxation": {"choice": ["dirichlet", "gumble"]}}}, (), "did you mean 'gumbel'"),
        ({"parameters": {"space.clip.limit": {"float": [-1, 1]}}}, (), "an end of its range"),
        ({}, ("--search.alpha_lr=1",), "is tuned by this study"),
        ({"config": "defalt"}, (), "did you mean 'default'"),
        (
            {"parameters": {RELAXATION: {"choice": ["dirichlet", "gumbel"]}, FLOOR: {"float": [0.1, 1]}}},
            (),
            "'gumbel' does not take the options .*tuned with `when: {search.relaxation: ",
        ),
        ({"parameters": {f"{FLOOR}s": {"float": [0.1, 1]}}}, (), "does not take the options"),
        (
            {"parameters": {**CONDITIONAL, FLOOR: {"float": [0.1, 2], "when": {RELAXATION: "dirichlet"}}}},
            (),
            "concentration_floor must lie between",
        ),
        (
            {
                "parameters": {
                    RELAXATION: {"choice": ["dirichlet", "softmax"]},
                    "search.shrink_start": {"int": [1, 99], "when": {RELAXATION: "softmax"}},
                }
            },
            (),
            "search.shrink_start cannot be 99",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_tuned_is_told_before_anything_is_run(
    changes: dict[str, Any], overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises((SettingsError, UnknownNameError), match=said):
        Work(plan(**changes), "study", overrides=overrides).check()


def test_a_trial_has_the_values_of_its_configuration_and_its_own() -> None:
    changes = {"fixed": {"search.epochs": 7, "model.options.width": 4, "space": "tiny"}}
    work = Work(plan(**changes), "study", overrides=("--data.batch_size=16",), threads=1)
    config = work.config({"search.alpha_lr": 0.05, "search.relaxation_options.concentration_floor": 0.2})
    assert isinstance(config, SearchConfig)
    assert (config.search.alpha_lr, config.search.epochs, config.data.batch_size) == (0.05, 7, 16)
    assert config.search.relaxation_options == {"concentration_floor": 0.2}
    assert config.model.options == {"width": 4}
    assert config.trainer.threads == 1
    assert work.space(config, {"space.clip.limit": 4.5}).clip.limit == 4.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "--trials"),
        ({"timeout": 0.0}, "--timeout"),
        ({"threads": 0}, "--threads"),
        ({"name": "a/b"}, "--name"),
    ],
    ids=str,
)
def test_bad_options_are_told_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Work(plan(), **{"name": "study", **options})


# -- storage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, "sqlite:///folder/study.db"),
        ("journal:shared/a", "shared/a"),
        ("a.log", "a.log"),
        ("a.db", "sqlite:///a.db"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("mysql+pymysql://me:secret@host/base", "mysql+pymysql://me:***@host/base"),
    ],
)
def test_storage_is_a_file_or_a_url(text: str | None, shown: str) -> None:
    assert str(Place.of(text, Path("folder"))) == shown


@pytest.mark.parametrize("text", ["study", "journal:", "postgresql:/host", "://"])
def test_another_storage_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--storage"):
        Place.of(text, Path("folder"))


def test_postgresql_takes_the_driver_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"psycopg2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in there else None)
    assert Place.of("postgresql://me:secret@host/base", Path()).url == "postgresql+psycopg2://me:secret@host/base"
    there.add("psycopg")
    assert str(Place.of("postgresql://me:secret@host/base", Path())) == "postgresql+psycopg://me:***@host/base"
    there.clear()
    with pytest.raises(MissingPackageError, match=r"pip install 'actsearch\[postgresql\]'"):
        Place.of("postgresql://me:secret@host/base", Path())


@pytest.mark.parametrize("url", ["oracle+nothing://host/base", "nothing://host/base"])
def test_a_database_without_a_driver_is_told_in_one_line(url: str) -> None:
    with pytest.raises(ActsearchError, match=r"driver|cannot open") as error:
        open_storage(Place.of(url, Path()), 60)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["study.db", "study.log"])
@pytest.mark.parametrize("content", [b"not a study\nat all\n", b"not a study", b'{"op_code": "x"}\n', b"\xff\xfe\x00"])
def test_a_file_that_is_no_study_is_told_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"study\.(db|log)") as error:
        open_storage(Place.of(str(file), tmp_path), 60)
    assert "\n" not in str(error.value)
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot open"):
        open_storage(Place.of(str(tmp_path / "file" / "study.log"), tmp_path), 60)


def test_a_journal_that_ends_in_the_middle_of_a_line_goes_on(tmp_path: Path) -> None:
    place = Place.of(str(tmp_path / "study.log"), tmp_path)
    claim = take(join(place))
    with claim:
        claim.complete(1.0)
    with open(tmp_path / "study.log", "ab") as file:
        file.write(b'{"op_code":8,"worker_id":"x","tri')
    queue = join(place)
    assert queue.n_finished == 1
    assert len(empty(queue)) == 5


# -- the queue -----------------------------------------------------------------------------------------------------


def test_watch_tells_what_stands_still_by_its_own_clock() -> None:
    now = [0.0]
    watch = Watch(10, lambda: now[0])
    assert not watch.is_still("a", 1)
    now[0] = 9.0
    assert not watch.is_still("a", 1)
    assert not watch.is_still("b", 1)
    now[0] = 11.0
    assert watch.is_still("a", 1)
    assert not watch.is_still("a", 2)
    assert not watch.is_still("b", 1)


def test_a_study_has_as_many_trials_as_were_asked_for(place: Place) -> None:
    queue = join(place)
    assert empty(queue) == list(range(6))
    assert empty(join(place)) == []
    trials = queue.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert [trial.value for trial in trials] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert queue.study.best_value == 0.0


def test_the_number_of_trials_can_be_raised_and_not_lowered(place: Place) -> None:
    empty(join(place, trials=2))
    assert empty(join(place)) == []
    assert empty(join(place, trials=4)) == [2, 3]
    with pytest.raises(SettingsError, match="has 4 trials already"):
        join(place, trials=3)


def test_what_is_drawn_depends_on_the_slot_and_not_on_the_worker(tmp_path: Path) -> None:
    drawn = []
    for name, restart in (("a.log", False), ("b.log", True)):
        place = Place.of(str(tmp_path / name), tmp_path)
        queue = join(place, sampler="random")
        for _ in range(6):
            with take(queue) as claim:
                drawn.append(claim.values)
                claim.complete(1.0)
            queue = join(place, sampler="random") if restart else queue
    assert drawn[:6] == drawn[6:]
    assert len({values["search.alpha_lr"] for values in drawn}) == 6


@BOTH
def test_no_trial_is_taken_twice_by_workers_that_hurry(place: Place) -> None:
    join(place, trials=8, heartbeat=5.0)  # in a hurry nobody may seem dead
    found: list[int] = []

    def work() -> None:
        found.extend(empty(join(place, heartbeat=5.0)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))


@BOTH
def test_a_trial_whose_worker_dies_is_failed_and_run_again_with_the_same_values(place: Place) -> None:
    dead = take(join(place))
    with dead:
        dead.report(3.0, 1)
    # From here on it gives no sign of life.
    queue = join(place)
    slots = empty(queue)
    assert sorted(slots) == list(range(6))
    lost = [trial for trial in queue.study.get_trials() if trial.state == TrialState.FAIL]
    assert [trial.number for trial in lost] == [dead.number]
    retry = next(t for t in queue.study.get_trials() if t.user_attrs.get("retry_of") == dead.number)
    assert retry.params == dead.values
    assert retry.user_attrs[SLOT] == dead.slot
    for late in (lambda: dead.complete(0.0), dead.prune, lambda: dead.fail("late"), lambda: dead.report(1.0, 2)):
        with pytest.raises(TakenOver):
            late()
    dead.give_back()
    assert queue.n_finished == 6
    assert Results.of(queue).summary() == "6 of 6 trials: 6 complete, 1 lost and run again"


def test_a_worker_that_is_slow_but_alive_keeps_its_trial(place: Place) -> None:
    queue = join(place, trials=1, heartbeat=0.5)
    with take(queue) as claim:
        other = join(place, heartbeat=0.5)
        end = threading.Event()
        taken: list[int] = []
        thread = threading.Thread(target=lambda: taken.extend(c.number for c in other.claims(end.is_set)))
        thread.start()
        end.wait(1.3 * other.plan.grace)
        end.set()
        thread.join()
        claim.complete(1.0)
    assert taken == []
    assert queue.n_finished == 1


def test_a_trial_that_is_given_back_is_run_by_another(place: Place) -> None:
    queue = join(place, trials=1)
    for _ in range(RETRIES + 2):
        with take(queue) as claim:
            claim.give_back()
    assert empty(join(place)) == [0]


def test_a_trial_that_kills_every_worker_counts_as_failed_in_the_end(place: Place) -> None:
    queue = join(place, trials=1)
    for _ in range(RETRIES + 1):
        take(queue)
    assert list(queue.claims(never)) == []
    (row,) = Results.of(queue).finished
    assert (row.state, row.note) == ("failed", "its worker died each time that it was tried")
    assert Results.of(queue).best is None


def test_values_outlive_a_worker_that_dies_before_it_draws_them(place: Place) -> None:
    queue = join(place, trials=1)
    with take(queue) as claim:
        values = claim.values
    take(queue)  # the retry: taken, and never begun
    with take(queue) as again:
        assert again.values == values
        again.complete(1.0)
    assert queue.n_finished == 1


def test_a_trial_that_fails_by_itself_is_not_run_again(place: Place) -> None:
    queue = join(place, trials=2)
    with take(queue) as claim:
        claim.fail("the loss is not finite")
    assert empty(queue) == [1]
    assert [row.state for row in Results.of(queue).rows] == ["failed", "complete"]


def test_of_two_trials_in_one_slot_the_second_is_never_run(place: Place) -> None:
    queue = join(place, trials=2)
    queue.study.enqueue_trial({}, user_attrs={SLOT: 0})
    queue.study.enqueue_trial({}, user_attrs={SLOT: 1})
    assert empty(queue) == [0, 1]
    assert list(queue.claims(never)) == []
    assert queue._claim(queue.slots()) is None
    assert [row.number for row in Results.of(queue).rows] == [0, 1]


def test_a_slot_whose_retry_was_never_put_in_is_filled(place: Place) -> None:
    queue = join(place, trials=1)
    with take(queue) as claim:
        values = claim.values
    queue.study.tell(claim.number, state=TrialState.FAIL)  # and its worker died
    with take(queue) as again:
        assert again.values == values
        again.complete(1.0)
    assert queue.n_finished == 1


def test_trials_of_somebody_else_are_left_alone(place: Place) -> None:
    queue = join(place, trials=1)
    queue.study.enqueue_trial({})
    assert empty(queue) == [0]
    assert len(Results.of(queue).rows) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"parameters": {**PLAN["parameters"], "search.alpha_lr": {"float": [0.1, 1.0]}}},
            r"range of search\.alpha_lr",
        ),
        ({"parameters": {"search.alpha_lr": PLAN["parameters"]["search.alpha_lr"]}}, "range of search"),
        ({"objective": {"metric": "loss/val", "direction": "maximize"}}, "objective"),
    ],
    ids=["range", "fewer", "direction"],
)
def test_a_study_that_was_begun_otherwise_is_not_joined(place: Place, changes: dict[str, Any], said: str) -> None:
    join(place)
    with pytest.raises(SettingsError, match=f"begun with another {said}") as error:
        join(place, **changes)
    assert "\n" not in str(error.value)


def test_a_study_with_other_settings_is_not_joined(place: Place) -> None:
    queue = join(place)
    with pytest.raises(SettingsError, match=r"another search\.epochs: 9, now 10"):
        TrialQueue(queue.storage, "study", plan(), {"search": {"epochs": 10}}, 10)
    other = TrialQueue(queue.storage, "other", plan(), {"search": {"epochs": 10}}, 10)
    assert other.size == 6


@pytest.mark.parametrize("name", ["hyperband", "median"])
def test_a_trial_that_falls_behind_is_pruned(name: str, tmp_path: Path) -> None:
    queue = join(Place.of("journal:" + str(tmp_path / name), tmp_path), trials=12, pruner=name)
    pruned = []
    for claim in queue.claims(never):
        with claim:
            try:
                for epoch in range(1, 10):
                    claim.report(float(claim.slot), epoch)
                claim.complete(float(claim.slot))
            except optuna.TrialPruned:
                claim.prune()
                pruned.append(epoch)
    assert pruned
    assert min(pruned) >= 3  # a quarter of nine epochs
    assert queue.n_finished == 12
    assert queue.study.best_value == 0.0


def test_without_a_pruner_nothing_is_pruned() -> None:
    assert isinstance(make_pruner("none", 5), optuna.pruners.NopPruner)


# -- ranges that exist only for some values of others --------------------------------------------------------------


def expected(values: dict[str, Any]) -> set[str]:
    """The parameters of CONDITIONAL that such a trial has."""
    relaxation = values[RELAXATION]
    own = {RELAXATION, FLOOR} if relaxation == "dirichlet" else {RELAXATION, HOT}
    return own | ({COLD} if relaxation == "gumbel" and values[HOT] == 2 else set())


@BOTH
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_range_with_a_condition_is_in_the_trials_that_meet_it_alone(place: Place, sampler: str) -> None:
    queue = join(place, trials=24, parameters=CONDITIONAL, sampler=sampler)
    seen = set()
    for claim in queue.claims(never):
        with claim:
            assert set(claim.values) == expected(claim.values)
            assert list(claim.values) == [key for key in CONDITIONAL if key in claim.values]
            seen.add(frozenset(claim.values))
            claim.complete(float(claim.slot))
    assert len(seen) == 3
    assert all(set(trial.params) == expected(trial.params) for trial in queue.study.get_trials())


def test_a_trial_with_conditions_whose_worker_dies_is_run_again_with_the_same_values(place: Place) -> None:
    dead = []
    for _ in range(6):
        claim = take(join(place, parameters=CONDITIONAL))
        with claim:
            dead.append((claim.slot, claim.values))
    queue = join(place, parameters=CONDITIONAL)
    again = []
    for claim in queue.claims(never):
        with claim:
            again.append((claim.slot, claim.values))
            claim.complete(1.0)
    assert sorted(again, key=lambda pair: pair[0]) == sorted(dead, key=lambda pair: pair[0])


def test_another_condition_is_another_study(place: Place) -> None:
    join(place, parameters=CONDITIONAL)
    changed = {**CONDITIONAL, FLOOR: {**CONDITIONAL[FLOOR], "when": {RELAXATION: ["dirichlet", "softmax"]}}}
    with pytest.raises(SettingsError, match=f"begun with another range of {FLOOR}"):
        join(place, parameters=changed)


def test_results_leave_blank_what_a_trial_does_not_have(place: Place, tmp_path: Path) -> None:
    queue = join(place, trials=16, parameters=CONDITIONAL, sampler="random")
    for claim in queue.claims(never):
        with claim:
            claim.complete(len(claim.values) + 0.01 * claim.slot)
    results = Results.of(queue)
    results.save(tmp_path, {"space": "tiny"})
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    for row, trial in zip(rows, results.rows, strict=True):
        assert {key for key in CONDITIONAL if row[key]} == expected(dict(trial.values))
    assert set(results.importance) <= set(CONDITIONAL)
    assert RELAXATION in results.importance
    text = (tmp_path / "study.md").read_text()
    assert "| – |" in text
    assert f"`{HOT}` is tuned only where {RELAXATION} is gumbel or softmax" in text
    assert f"`{COLD}` is tuned only where {HOT} is 2 and {RELAXATION} is gumbel" in text
    best = json.loads((tmp_path / "study.json").read_text())["best"]
    assert set(best["values"]) == expected(best["values"])
    assert pixels(draw_importance(results)).std() > 5
    # A panel whose parameter no complete trial has is empty.
    without = tuple(row for row in results.rows if COLD not in row.values)
    assert pixels(draw_importance(replace(results, rows=without))).std() > 5


def test_the_configuration_of_a_trial_has_the_options_of_its_relaxation_alone() -> None:
    work = Work(Plan.load("relaxation"), "study")
    work.check()
    for relaxation in ("dirichlet", "gumbel", "softmax"):
        values = work.plan.suggest(optuna.trial.FixedTrial(EVERYTHING | {RELAXATION: relaxation}))
        config = work.config(values)
        assert isinstance(config, SearchConfig)
        make_relaxation(config.search.relaxation, **config.search.relaxation_options)
        assert (config.search.anchor > 0) == (relaxation == "dirichlet")


EVERYTHING: dict[str, Any] = {
    FLOOR: 0.1,
    HOT: 1.0,
    COLD: 0.1,
    "search.anchor": 0.01,
    "search.alpha_lr": 0.1,
    "search.warm_epochs": 1,
    "search.shrink_start": 2,
    "space.clip.limit": 5.0,
}


# -- results -------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Results:
    queue = join(Place.of("journal:" + str(tmp_path / "study"), tmp_path), trials=8)
    for claim in queue.claims(never):
        with claim:
            claim.report(1.0, 1)
            if claim.slot == 2:
                claim.fail("a | b")
            elif claim.slot == 5:
                claim.prune()
            else:
                claim.note(formula="x*tanh(x)")
                claim.complete(abs(claim.values["search.alpha_lr"] - 0.02))
    return Results.of(queue)


def test_results_are_written_as_csv_json_and_markdown(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path, {"space": "tiny"})
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows].count("complete") == 6
    assert rows[2]["note"] == "a | b"
    data = json.loads((tmp_path / "study.json").read_text())
    assert results.best is not None
    assert data["best"]["number"] == results.best.number
    assert data["best"]["value"] == min(row["value"] for row in data["rows"] if row["state"] == "complete")
    assert set(data["importance"]) == set(PLAN["parameters"])
    assert sum(data["importance"].values()) == pytest.approx(1)
    text = (tmp_path / "study.md").read_text()
    assert "8 of 8 trials: 6 complete, 1 pruned, 1 failed" in text
    assert "a \\| b" in text
    best = (tmp_path / "best.yaml").read_text()
    assert best.startswith(f"# Best of study study: trial {results.best.number}")
    assert yaml.safe_load(best) == {"space": "tiny"}


def test_the_best_until_then_never_gets_worse(results: Results) -> None:
    values = [value for _, value in results.best_so_far()]
    assert values == sorted(values, reverse=True)
    assert results.best is not None
    assert values[-1] == results.best.value


def test_figures_of_a_study_are_drawn(results: Results) -> None:
    for figure in (draw_history(results), draw_importance(results)):
        image = pixels(figure)
        assert image.std() > 5
    few = Results(results.name, results.plan, 1, (), {})
    assert pixels(draw_history(few)).shape == pixels(draw_importance(few)).shape
