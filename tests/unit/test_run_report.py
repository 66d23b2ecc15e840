"""A run read back as plain data, and its page: whole, killed, damaged, hostile."""

from __future__ import annotations

import builtins
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import actsearch
from actsearch import cli
from actsearch.cell.mixed import MixedCell
from actsearch.compare import Budget, Comparison, Retraining
from actsearch.compare.comparison import Entry
from actsearch.config import SearchConfig
from actsearch.errors import GenotypeError, MissingPackageError, RunError
from actsearch.genotype import Genotype
from actsearch.lock import locked
from actsearch.record import RunRecord, read_run
from actsearch.report.page import comparison_page, run_page
from actsearch.report.page.cautions import of_run, straight
from actsearch.report.page.chart import common_spans, number, round_numbers, signed
from actsearch.report.page.formula import mathml
from actsearch.reporting import write_report
from actsearch.run import RunDirectory
from actsearch.search.monitor import Snapshot, snapshot_cell
from actsearch.search.strategies.log import TrialRecord
from actsearch.space import SearchSpace

EPOCHS = 4
NASTY = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&"\''


def recorded(root: Path, cells: tuple[str, ...] = ("network",), epochs: int = EPOCHS, sharing: str = "network") -> Path:
    """A run directory as a search of EPOCHS epochs leaves it after `epochs` of them, from cells whose α drift."""
    space = SearchSpace.from_dict({**SearchSpace.load("tiny").to_dict(), "sharing": sharing})
    config = SearchConfig()
    config.search.epochs, config.compare.seeds = EPOCHS, 2
    run = RunDirectory.begin(space, config.to_dict(), root, "tiny", None)
    generator = torch.Generator().manual_seed(0)
    mixed = {name: MixedCell(space, seed=k) for k, name in enumerate(cells)}
    for epoch in range(1, epochs + 1):
        sites = {name: 3 * torch.randn(512, generator=generator) for name in cells}
        for cell in mixed.values():
            with torch.no_grad():
                for alpha in cell.alpha.values():
                    alpha += torch.randn(alpha.shape, generator=generator)
            cell.drop_weakest()
            cell.drop_weakest()
        losses = {"train": 1 / epoch, "arch": 1.1 / epoch, "val": 1.2 / epoch}
        run.record(
            Snapshot(
                epoch=epoch,
                epochs=EPOCHS,
                step=10 * epoch,
                phase="shrinking",
                cells={name: snapshot_cell(cell, sites[name]) for name, cell in mixed.items()},
                losses=losses,
                metrics={f"loss/{name}": loss for name, loss in losses.items()},
                learning_rates={"weights": 0.1},
                skipped=0,
                seconds=1.5 * epoch,
                pre_activations=sites,
            )
        )
    return run.path


def finish(path: Path, genotype: Genotype | None = None, name: str | None = None) -> None:
    """What the end of a search adds."""
    chosen = genotype or Genotype.of_op("silu")
    chosen.save(path / ("genotype.json" if name is None else f"genotype.{name}.json"))


def made(values: dict[str, list[float]]) -> Comparison:
    """A comparison with these accuracies by seed."""
    kinds = {"discovered": "discovered", "random 1": "random", "random 2": "random"}
    n = len(next(iter(values.values())))
    results = [
        Retraining(name, seed, {"test_acc": v, "test_loss": 1 - v}, curve={"train_loss": [1.0, 0.5]}, seconds=2.0,
                   step_seconds=0.01) for name, of in values.items() for seed, v in enumerate(of)
    ]  # fmt: skip
    entries = tuple(Entry(name, f"{name}(x)", kinds.get(name, "standard"), 4.0) for name in values)
    losses = {"discovered": 0.1, "random 1": 0.3, "random 2": 0.5}
    return Comparison(
        "test_acc", True, tuple(range(n)), Budget(2), entries, tuple(results), ("discovered",), {}, losses
    )


BETTER = {
    "discovered": [0.95, 0.951, 0.952],
    "relu": [0.90, 0.902, 0.901],
    "gelu": [0.91, 0.911, 0.913],
    "silu": [0.92, 0.921, 0.922],
    "random 1": [0.5, 0.501, 0.503],
    "random 2": [0.949, 0.953, 0.951],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = recorded(tmp_path_factory.mktemp("whole"))
    finish(path)
    RunDirectory(path).write_json("search.json", {"strategy": "gradient", "steps": 40, "budget": 40, "seconds": 3.0})
    made(BETTER).save(path)
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After two epochs, within the third line."""
    path = recorded(tmp_path_factory.mktemp("killed"), epochs=3)
    lines = (path / "genotypes.jsonl").read_text().splitlines()
    (path / "genotypes.jsonl").write_text("\n".join([*lines[:2], lines[2][:200]]))
    return path


# -- read_run ------------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_as_it_was_written(whole: Path) -> None:
    run = actsearch.read_run(whole)
    lines = [json.loads(line) for line in (whole / "genotypes.jsonl").read_text().splitlines()]
    cell = run.cells["network"]
    assert run.epochs.tolist() == [1, 2, 3, 4]
    assert run.phases == ("shrinking",) * EPOCHS
    for slot, ops in cell.candidates.items():
        for k, line in enumerate(lines):
            told = line["cells"]["network"]["probabilities"][slot]
            assert dict(zip(ops, cell.probabilities[slot][k], strict=True)) == told
    assert cell.genotypes[-1] == Genotype.from_dict(lines[-1]["cells"]["network"]["genotype"])
    assert run.losses["val"].tolist() == [1.2, 0.6, 1.2 / 3, 0.3]
    assert run.metrics["seconds"].tolist() == [1.5, 3.0, 4.5, 6.0]
    assert "phase" not in run.metrics
    assert run.genotype == Genotype.of_op("silu") == cell.final
    assert run.config["model"]["name"] == "resnet8"
    assert run.space is not None
    assert run.space.name == "tiny"
    assert run.inputs is not None
    assert (run.inputs.shape, run.inputs.dtype) == ((512,), np.float32)
    assert run.comparison is not None
    assert run.comparison.to_dict() == made(BETTER).to_dict()
    assert (run.finished, run.progress, run.resume, run.busy, run.notes) == (True, "finished", "", False, ())


def test_survivors_entropy_and_lead_follow_from_the_probabilities(whole: Path) -> None:
    cell = read_run(whole).cells["network"]
    assert sum(n[-1] for n in cell.survivors.values()) == SearchSpace.load("tiny").n_candidates - 2 * EPOCHS
    for slot, p in cell.probabilities.items():
        alive = p[-1][p[-1] > 0]
        assert cell.entropy[slot][-1] == pytest.approx(-np.sum(alive * np.log(alive)))
        assert cell.margin[slot][-1] == pytest.approx(sorted(alive)[-1] - sorted(alive)[-2])


def test_tables_are_data_frames(whole: Path) -> None:
    run = read_run(whole)
    assert run.frame()["loss/val"].tolist() == run.losses["val"].tolist()
    long = run.frame("probabilities")
    assert list(long.columns) == ["epoch", "cell", "slot", "candidate", "probability"]
    sums = long.groupby(["epoch", "slot"])["probability"].sum()
    assert np.allclose(sums, 1)
    assert len(run.frame("retrainings")) == 18
    assert run.frame("trials").empty
    with pytest.raises(RunError, match="unknown table 'metric'; did you mean 'metrics'"):
        run.frame("metric")  # type: ignore[arg-type]


def test_without_pandas_a_frame_is_one_line_and_arrays_are_there(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    run = read_run(whole)
    with pytest.raises(MissingPackageError, match="pandas"):
        run.frame()
    assert len(run.metrics["seconds"]) == EPOCHS


def test_a_killed_run_gives_what_it_had_and_says_how_far_it_came(killed: Path) -> None:
    before = {path.name: path.read_bytes() for path in killed.iterdir() if path.is_file()}
    run = read_run(killed)
    assert run.epochs.tolist() == [1, 2]
    assert run.progress == "the search stands after epoch 2 of 4"
    assert run.resume == f"actsearch search --resume {killed}"
    assert (run.finished, run.searched, run.comparison, run.found) == (False, False, None, {})
    assert run.notes == ("genotypes.jsonl: 1 line is damaged or cut off, and left out",)
    assert run.inputs is not None, "inputs are kept every epoch"
    with pytest.raises(GenotypeError, match="0 final genotypes"):
        _ = run.genotype
    assert {path.name: path.read_bytes() for path in killed.iterdir() if path.is_file()} == before, "nothing is changed"


def test_a_run_killed_in_its_comparison_counts_the_retrainings(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    finish(path)
    done = {"activation": "relu", "seed": 0, "metrics": {"test_acc": 0.9}, "failure": "", "curve": {}, "seconds": 1.0}
    done |= {"step_seconds": None, "peak_memory": None, "added_parameters": 0}
    lines = [{"budget": {}}, {"function": "relu", **done}, {"function": "relu", "activation": 7}]
    (path / "retrainings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    run = read_run(path)
    assert [r.activation for r in run.retrainings] == ["relu"]
    assert run.progress == "the search ended; 1 of 12 retrainings are done"
    assert len(run.notes) == 2
    page = run_page(run)
    assert "1 of 12 retrainings" in page
    assert "its comparison is not complete" in page


def test_a_run_that_is_being_written_is_told(whole: Path, tmp_path: Path) -> None:
    path = recorded(tmp_path, epochs=2)
    with locked(path):
        run = read_run(path)
        assert run.busy
        assert of_run(run, None)[0].title == "This run is still being written"
    assert not read_run(path).busy


def test_several_cells_have_their_genotypes_each(tmp_path: Path) -> None:
    path = recorded(tmp_path, ("a/1", "a/2"), sharing="site")
    finish(path, name="a/1")
    assert not read_run(path).searched, "one is missing"
    finish(path, Genotype.of_op("tanh"), name="a/2")
    run = read_run(path)
    assert [g.formula for g in run.found.values()] == ["silu(x)", "tanh(x)"]
    assert run.finished, "of several functions there is no comparison"
    page = run_page(run)
    assert page.count('class="moves"') == 2
    assert "Not compared" in page


@pytest.mark.parametrize("strategy", ["random", "tpe", "genetic"])
def test_other_strategies_leave_their_trials(strategy: str, tmp_path: Path) -> None:
    path = recorded(tmp_path, epochs=0)
    config = yaml.safe_load((path / "config.yaml").read_text().removesuffix("...\n"))
    RunDirectory(path).write_config({**config, "strategy": strategy})
    trials = [
        TrialRecord(k, {"u1": "relu"}, f"relu(x) + {k}", {10: loss}, 10, k == 1, 0.5, {})
        for k, loss in enumerate([0.5, 0.7, 0.3, math.inf])
    ]
    lines = [{"strategy": strategy}, *(t.to_dict() for t in trials), {"number": 9}]
    (path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(path)
    assert run.strategy == strategy
    assert run.trials == tuple(trials)
    assert run.progress == "the search stands after 4 trials"
    assert run.frame("trials")["loss"].tolist()[:3] == [0.5, 0.7, 0.3]
    assert run.notes == ("trials.jsonl: 1 line is damaged or cut off, and left out",)
    page = run_page(run)
    assert f"{strategy} search" in page
    assert "relu(x) + 2" in page
    finish(path)
    assert "The function that was found" in run_page(read_run(path))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"{", b"null\n", b'{"epoch": 1}\n', b"a: &a [*a]\n"])
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "space.yaml", "environment.json", "search.json", "genotypes.jsonl", "metrics.csv", "inputs.npy",
     "genotype.json", "comparison.json"],
)  # fmt: skip
def test_a_damaged_file_is_left_out_with_a_note_and_the_page_is_made(
    name: str, content: bytes, whole: Path, tmp_path: Path
) -> None:
    path = copied(whole, tmp_path)
    (path / name).write_bytes(content)
    run = read_run(path)
    assert all("\n" not in note for note in run.notes)
    is_table, is_json = name in ("genotypes.jsonl", "metrics.csv"), name in ("environment.json", "search.json")
    if not is_table and not (is_json and b"epoch" in content):
        assert any(name in note for note in run.notes), run.notes
    assert run_page(run).endswith("</html>\n")


def copied(run: Path, to: Path) -> Path:
    for path in run.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["retrainings"].pop(),
        lambda data: data["seeds"].clear(),
        lambda data: data.update(metric="test_other"),
        lambda data: data["rows"].append(data["rows"][0] | {"name": "lost"}),
        lambda data: data["retrainings"][0]["metrics"].update(test_acc="much"),
    ],
    ids=["retraining", "seeds", "metric", "row", "word"],
)
def test_a_comparison_that_lacks_something_is_left_out(
    change: Callable[[Any], object], whole: Path, tmp_path: Path
) -> None:
    path = copied(whole, tmp_path)
    data = json.loads((path / "comparison.json").read_text())
    change(data)
    (path / "comparison.json").write_text(json.dumps(data))
    run = read_run(path)
    assert run.comparison is None
    assert len(run.notes) == 1
    assert "is not a comparison" in run.notes[0]
    assert run_page(run).endswith("</html>\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line["cells"]["network"]["probabilities"].update(u1=7),
        lambda line: line["cells"]["network"]["probabilities"]["u1"].update(relu="much"),
        lambda line: line["cells"]["network"].update(genotype={"format": "other"}),
        lambda line: line["cells"]["network"].update(clip_hits=[1]),
        lambda line: line.update(losses=None, phase=None, skipped="x"),
        lambda line: line.update(epoch=1),
        lambda line: line["cells"].update(other={"probabilities": {}}),
        lambda line: line["cells"]["network"].pop("clip_hits"),
    ],
    ids=["slot", "number", "genotype", "clips", "losses", "twice", "cell", "older"],
)
def test_a_line_that_holds_nonsense_spoils_no_page(
    change: Callable[[Any], object], whole: Path, tmp_path: Path
) -> None:
    path = copied(whole, tmp_path)
    lines = [json.loads(line) for line in (path / "genotypes.jsonl").read_text().splitlines()]
    change(lines[1])
    (path / "genotypes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(path)
    assert run.epochs[-1] == EPOCHS
    assert run_page(run).endswith("</html>\n")


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="is not a run"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="is not a run"):
        read_run(tmp_path / "nowhere")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "neither a run nor a finished comparison" in capsys.readouterr().err


# -- the page ------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Tags in order, those that are open, attributes, and the text within each kind of tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_asks_for_nothing(whole: Path) -> None:
    page = run_page(read_run(whole))
    reader = Reader(page)
    assert reader.open == []
    loaded = [a[key] for _, a in reader.tags for key in ("src", "href", "srcset", "data", "action") if key in a]
    assert all(source.startswith(("#", "data:")) for source in loaded)
    assert "url(" not in page
    assert "@import" not in page
    assert not [a for _, a in reader.tags if "style" in a or any(name.startswith("on") for name in a)]
    (policy,) = (a["content"] for a in reader.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_every_drawing_has_a_text_alternative(whole: Path) -> None:
    drawings = Reader(run_page(read_run(whole))).of("svg")
    outer = [a for a in drawings if "role" in a or a.get("aria-hidden") != "true"]
    charts = [a for a in outer if a.get("role") == "img"]
    assert len(charts) > 15
    assert all(len(a["aria-label"]) > 10 for a in charts)
    # What is neither is the inner frame that cuts lines at the axes, within one that is.
    assert all("x" in a for a in outer if a.get("role") != "img")


def test_the_page_shows_the_numbers_of_the_run(whole: Path) -> None:
    reader = Reader(run_page(read_run(whole)))
    everything = " ".join(reader.text["body"])
    assert "resnet8 on digits" in reader.text["h1"]
    assert "silu(x)" in everything
    assert "95.10 ± 0.10 %" in everything
    assert "against relu" in everything
    assert "+5.00 points" in everything
    assert "against random 2, the best of 2" in everything
    assert made(BETTER).summary() in everything
    assert "Not better than random" in everything
    assert "of the 2 random functions" in everything
    data = json.loads(next(text for text in reader.text["script"] if text.startswith("{")))
    assert [stage["label"] for stage in data["stages"]] == [*(f"epoch {k} of 4" for k in range(1, 5)), "at the end"]
    assert len(data["cells"][0]["y"]) == len(data["cells"][0]["formulas"]) == 5
    assert {len(y) for y in data["cells"][0]["y"]} == {len(data["x"])}
    assert data["cells"][0]["formulas"][-1] == "silu(x)"
    assert "not finished" not in everything


def test_the_page_of_a_killed_run_says_so_on_top(killed: Path) -> None:
    reader = Reader(run_page(read_run(killed)))
    first = next(text for text in reader.text["li"] if "not finished" in text)
    assert "after epoch 2 of 4" in first
    assert f"actsearch search --resume {killed}" in first
    assert "Nothing was retrained yet" in reader.text["body"][0]
    assert "not finished" in reader.text["header"][0]


def test_a_run_killed_before_its_first_epoch_has_a_page(tmp_path: Path) -> None:
    page = run_page(read_run(recorded(tmp_path, epochs=0)))
    assert "The run has no function yet" in page
    assert "after epoch 0 of 4" in page


def test_one_epoch_is_drawn(tmp_path: Path) -> None:
    assert "epoch 1 of 4" in run_page(read_run(recorded(tmp_path, epochs=1)))


def test_hostile_names_are_shown_and_not_obeyed(whole: Path, tmp_path: Path) -> None:
    path = copied(whole, tmp_path)
    config = {"model": {"name": NASTY}, "data": {"name": NASTY, NASTY: NASTY}, NASTY: [NASTY], "strategy": NASTY}
    RunDirectory(path).write_config(config)
    space = SearchSpace.load("tiny").to_dict()
    RunDirectory(path).write_space({**space, "name": NASTY, "description": NASTY})
    RunDirectory(path).write_json(
        "environment.json", {"command": ["search", NASTY], NASTY: NASTY, "packages": {NASTY: 1}}
    )
    RunDirectory(path).write_json("search.json", {"losses": {NASTY: 1.0}, "steps": 3, "seconds": 1})
    lines = [json.loads(line) for line in (path / "genotypes.jsonl").read_text().splitlines()]
    for line in lines:
        line["phase"] = NASTY
        cell = line["cells"]["network"]
        cell["probabilities"][NASTY] = {NASTY: 1.0, "relu": 0.0}
        cell["clip_hits"] = {NASTY: 0.5}
    (path / "genotypes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made({**BETTER, NASTY: [0.1, 0.2, 0.3]}).save(path)
    page = run_page(read_run(path))
    reader = Reader(page)
    assert reader.open == []
    assert len(reader.of("script")) == 2
    assert reader.of("img") == []
    assert f"{NASTY} on {NASTY}" in reader.text["h1"]
    assert NASTY in json.loads(next(t for t in reader.text["script"] if t.startswith("{")))["stages"][0]["phase"]


def test_a_comparison_has_a_page_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(BETTER).save(tmp_path)
    RunDirectory(tmp_path).write_json("environment.json", {"command": ["transfer", "zoo:mish", "--seeds", "3"]})
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "a b.html")]) == 0
    assert capsys.readouterr().out == f"report  {tmp_path / 'a b.html'}\n"
    reader = Reader((tmp_path / "a b.html").read_text())
    assert any("actsearch transfer zoo:mish --seeds 3" in text for text in reader.text["code"])
    assert not (tmp_path / "report.html").exists()
    strategies = {"strategy": "tpe", "seed": 1, "loss": None, "steps": 9, "budget": 9, "seconds": None, "formula": "x"}
    RunDirectory(tmp_path).write_json("strategies.json", {"searches": [strategies]})
    assert "not finite" in write_report(tmp_path).read_text()


def test_a_comparison_in_which_everything_failed_has_a_page(tmp_path: Path) -> None:
    comparison = made(BETTER)
    failed = tuple(replace(r, metrics={}, failure=f"loss was {NASTY}", curve={}) for r in comparison.retrainings)
    page = comparison_page(replace(comparison, retrainings=failed), tmp_path, {})
    assert "Failed retrainings" in page
    assert "every seed failed" in page
    assert Reader(page).open == []


def test_a_page_is_opened_where_there_is_a_browser(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(asked.append(url)))
    assert cli.main(["report", str(whole), "--open"]) == 0
    assert asked == [(whole / "report.html").as_uri()]
    assert "no browser" in capsys.readouterr().out


def test_report_is_a_public_reading(whole: Path) -> None:
    assert isinstance(actsearch.read_run(str(whole)), RunRecord)
    assert actsearch.read_run is read_run


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("genotype", "words"),
    [
        (Genotype.of_op("identity"), "the identity"),
        (Genotype.of_op("neg"), "a straight line of slope −1"),
        (Genotype.of_op("relu"), ""),
        (Genotype.of_op("tanh"), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else value.formula,
)
def test_a_collapse_is_told_by_the_curve(genotype: Genotype, words: str) -> None:
    assert straight(genotype, None) == words


def test_cautions_of_a_search(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    finish(path, Genotype.of_op("identity"))
    lines = [json.loads(line) for line in (path / "genotypes.jsonl").read_text().splitlines()]
    last = lines[-1]
    last["losses"] |= {"arch": 0.1, "val": 0.5}
    last["skipped"] = 3
    slot = last["cells"]["network"]["probabilities"]["u1"]
    for op in slot:
        slot[op] = 0.0
    slot |= {"relu": 0.505, "tanh": 0.495}
    (path / "genotypes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made({**BETTER, "discovered": [0.9, 0.9, 0.9]}).save(path)
    found = {one.title: one for one in of_run(read_run(path), None)}
    assert "the identity" in found["Collapse"].text
    assert found["Collapse"].level == "serious"
    assert "u1" in found["Undecided slots"].text
    assert "0.5 where the mixture had 0.1" in found["Discretisation gap"].text
    assert found["Skipped steps"].text.startswith("3 steps were")
    assert "3 seeds show large differences only" in found["Few seeds"].text
    assert list(found) == sorted(found, key=lambda title: found[title].level != "serious")


def test_a_good_comparison_of_five_seeds_has_no_caution(whole: Path) -> None:
    good = {**BETTER, "random 2": [0.6, 0.602, 0.601], "silu": [0.8, 0.801, 0.803]}
    good = {name: [*values, values[0] + 0.0005, values[1] - 0.0003] for name, values in good.items()}
    run = read_run(whole)
    titles = [one.title for one in of_run(replace(run, comparison=made(good)), None)]
    assert "Few seeds" not in titles
    assert "Not better than random" not in titles


def test_numbers_of_axes() -> None:
    assert round_numbers(-1.3, 2.1, 6) == [-1, 0, 1, 2]
    assert round_numbers(0.012, 0.031, 5) == pytest.approx([0.015, 0.02, 0.025, 0.03])
    assert round_numbers(1, 1, 5) == [1]
    assert number(-0.5) == "−0.5"
    assert number(math.inf) == "∞"
    assert signed("x-axis [-1.5, 2] -3") == "x-axis [−1.5, 2] −3"


def test_one_that_did_not_learn_does_not_set_the_axis() -> None:
    low, high = common_spans([(97, 98), (97.5, 98.5), (96.8, 98), (10, 20)])
    assert (low > 90, high < 100) == (True, True)
    low, high = common_spans([(1, 2), (3, 4)])
    assert low < 1 < 4 < high


@pytest.mark.parametrize("name", ["mish", "golu", "reference_gpt", "leaky_relu", "snake"])
def test_formulas_are_mathml(name: str) -> None:
    text = str(mathml(actsearch.load(f"zoo:{name}").genotype))
    assert text.startswith("<math")
    assert text.endswith("</math>")
    assert not re.search(r"\\[a-z]", text), "no LaTeX is left"
