"""Strategies on the command line, as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from actsearch import cli
from actsearch.activation import load

FAST = ["--space", "tiny", "--model.name", "mlp", "--model.options", "{hidden: [8]}", "--trainer.accelerator", "cpu"]
FAST += ["--trainer.threads", "1", "--search.epochs", "3", "--compare.epochs", "1", "--compare.activations", "[relu]"]
FAST += ["--data.limit_train", "300"]


def error(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("actsearch: ")
    assert text.count("\n") == 1
    return text


def search(root: Path, *more: str) -> Path:
    arguments = ["search", *FAST, "--compare.seeds", "1", "--compare.random", "4", "--run.root", str(root), *more]
    assert cli.main(arguments) == 0
    (run,) = (root / "tiny").iterdir()
    return run


def test_a_random_search_leaves_what_a_gradient_search_does_and_resumes_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = search(tmp_path, "--strategy", "random")
    text = capsys.readouterr().out
    assert "random search in space tiny" in text
    assert "found: f(x) = " in text
    for name in ("genotype.json", "config.yaml", "space.yaml", "environment.json", "inputs.npy", "trials.jsonl"):
        assert (run / name).is_file(), name
    for name in ("comparison.md", "report.html", "comparison.json", "retrainings.jsonl", "figures/activation.png"):
        assert (run / name).is_file(), name
    facts = json.loads((run / "search.json").read_text())
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()[1:]]
    assert facts["steps"] == sum(trial["steps"] for trial in trials) <= facts["budget"]
    assert facts["strategy"] == "random"
    assert facts["seconds"] > 0
    assert set(facts["losses"]) == {"discovered", *(f"random {k}" for k in range(1, 5))}
    assert (
        "Rank correlation of the search's loss with the retrained metric: Spearman"
        in (run / "comparison.md").read_text()
    )

    # As after a kill within the third trial.
    genotype = (run / "genotype.json").read_text()
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    (run / "genotype.json").unlink()
    assert cli.main(["search", "--resume", str(run)]) == 0
    assert (run / "genotype.json").read_text() == genotype
    again = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()[1:]]
    for record in (*trials, *again):
        del record["seconds"]
    assert again == trials
    capsys.readouterr()
    assert cli.main(["show", str(run)]) == 0
    assert load(run).formula in capsys.readouterr().out
    assert cli.main(["search", "--resume", str(run), "--strategy", "tpe"]) == 2
    assert "leave out --strategy" in error(capsys)


def test_a_gradient_search_tells_its_steps_and_the_losses_of_random_functions(tmp_path: Path) -> None:
    run = search(tmp_path)
    facts = json.loads((run / "search.json").read_text())
    assert facts["strategy"] == "gradient"
    # 225 examples of 64 make 4 batches an epoch; α has none after the last drop unless β is left, which may be.
    assert 12 < facts["steps"] <= facts["budget"] == 24
    assert set(facts["losses"]) == {"discovered", *(f"random {k}" for k in range(1, 5))}
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["losses"] == facts["losses"]
    assert comparison["rank_correlation"]["n"] == 5


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["search", "--strategy", "tpee"], "'tpe'"),
        (["search", "--trials.rungs", "0"], "trials.rungs"),
        (["search", "--trials.rung", "2"], "--trials.rungs"),
        (["search", *FAST, "--strategy", "tpe", "--trainer.devices", "2"], "one device"),
        (["compare-strategies", "--strategies", "gradient,radnom"], "'random'"),
        (["compare-strategies", "--strategies", "gradient"], "two strategies or more"),
        (["compare-strategies", "--strategies", "tpe,tpe"], "each named once"),
        (["compare-strategies", "--seeds", "0"], "--seeds must be at least 1"),
        (["compare-strategy"], "'compare-strategies'"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert hint in error(capsys)


@pytest.mark.slow
def test_strategies_are_compared_on_digits_and_go_on_after_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["compare-strategies", *FAST, "--compare.random", "1", "--seeds", "2", "--out", str(out)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    for name in ("strategies.md", "strategies.csv", "strategies.json", "comparison.md", "report.html"):
        assert (out / name).is_file(), name
    table = (out / "strategies.md").read_text()
    for strategy in ("gradient", "random", "tpe", "genetic"):
        assert f"| {strategy} search | 2 |" in table
        assert f"seed 1  {strategy} search: " in text
    assert "Rank correlation" in table
    rows = list(csv.DictReader((out / "strategies.csv").read_text().splitlines()))
    assert [(row["strategy"], row["seed"]) for row in rows[:5]] == [
        *((s, "0") for s in ("gradient", "random", "tpe", "genetic")),
        ("gradient", "1"),
    ]
    assert all(int(row["steps"]) <= int(row["budget"]) for row in rows)
    assert len({row["budget"] for row in rows}) == 1
    found = json.loads((out / "strategies.json").read_text())
    assert {test["reference"] for test in found["tests"]} == {"gradient search"}
    assert [test["other"] for test in found["tests"]] == [
        *(f"{s} search" for s in ("random", "tpe", "genetic")),
        "relu",
        "random 1",
    ]
    assert len({row["test_acc"] for row in rows}) > 1

    # A kill within the last search, and before its retraining: what is there stays, and the same comes out.
    (run,) = (out / "searches" / "genetic-1").iterdir()
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join(lines[:3]))
    (run / "search.json").unlink()
    (out / "retrainings" / "seed-1" / "retrainings.jsonl").unlink()
    untouched = out / "retrainings" / "seed-0" / "retrainings.jsonl"
    before = untouched.read_text()
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("found before") == 7
    assert untouched.read_text() == before
    again = list(csv.DictReader((out / "strategies.csv").read_text().splitlines()))
    assert again[-1].pop("seconds") == ""  # nobody timed the first part
    rows[-1].pop("seconds")
    assert again == rows
    assert cli.main([*command, "--search.alpha_lr", "0.5"]) == 2
    assert "other conditions (search); use a new folder" in error(capsys)
