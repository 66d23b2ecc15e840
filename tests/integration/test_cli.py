"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from actsearch import cli, options
from actsearch.activation import load
from actsearch.config import SearchConfig, TransferConfig

ROOT = Path(__file__).parent.parent.parent
TINY = ["--space", "tiny", "--search.epochs", "3", "--trainer.accelerator", "cpu"]


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1
    return error


# -- help ----------------------------------------------------------------------------------------------------------


def test_help_does_not_import_what_takes_long() -> None:
    found = run_python("-X", "importtime", "-m", "actsearch", "--help")
    assert found.returncode == 0
    assert "search" in found.stdout
    modules = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert not modules & {"torch", "pytorch_lightning", "sympy", "matplotlib"}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: actsearch {verb}")
    assert "torch" in sys.modules or "--" in text


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["search", "--help"])
    text = capsys.readouterr().out
    assert [key for key in options.keys(SearchConfig) if f"--{key}" not in text] == []
    cli.main(["transfer", "--help"])
    text = capsys.readouterr().out
    assert [key for key in options.keys(TransferConfig) if f"--{key}" not in text] == []


# -- import orders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "import actsearch, sys; assert 'torch' not in sys.modules; assert {*actsearch.__all__} <= {*dir(actsearch)}",
        "import actsearch; actsearch.swap; actsearch.search",
        "import actsearch.api, actsearch; actsearch.swap; actsearch.search",
        "import actsearch.search.bilevel, actsearch.swap, actsearch",
        "from actsearch import swap, search; import actsearch",
        "from actsearch import *; import actsearch",
    ],
)
def test_search_and_swap_can_be_called_in_any_import_order(program: str) -> None:
    calls = """
import torch
report = actsearch.swap(torch.nn.Sequential(torch.nn.ReLU()), torch.nn.Tanh())
assert isinstance(report, actsearch.SwapReport)
try:
    actsearch.search(None)
except actsearch.ActsearchError as error:
    assert 'train_dataloader' in str(error)
"""
    found = run_python("-c", program + calls)
    assert found.returncode == 0, found.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import actsearch

    with pytest.raises(AttributeError, match="serach"):
        _ = actsearch.serach  # type: ignore[attr-defined]


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serach"], "'search'"),
        (["search", "--search.epoch", "3"], "--search.epochs"),
        (["search", "--config", "defualt"], "'default'"),
        (["search", "--config", "nowhere.yaml"], "unknown configuration file"),
        (["search", "--config"], "--config needs a value"),
        (["search", "--space", "graf"], "'grafs'"),
        (["search", "--data.name", "digit"], "'digits'"),
        (["search", "--model.name", "resnet9"], "'resnet8'"),
        (["search", "--model.options.widht", "9"], "'width'"),
        (["search", "--compare.activations", "[rellu]"], "'relu'"),
        (["search", "--compare.activations", "[add]"], "add"),
        (["search", "--search.relaxation", "dirichelt"], "'dirichlet'"),
        (["search", "--training.optimizer", "sdg"], "'sgd'"),
        (["search", "--search.epochs", "three"], "search.epochs must be of type int, not 'three'"),
        (["search", "--search.alpha_lr", "1" + 400 * "0"], "too large"),
        (["search", "--search.alpha_lr", ".nan"], "alpha_lr must be a positive finite number, not nan"),
        (["search", "--search.alpha_lr", "nan"], "search.alpha_lr"),
        (["search", "--training.lr", ".nan"], "above 0"),
        (["search", "--search.epochs", "2"], "must exceed shrink_start"),
        (["search", "--data.batch_size", "0"], "batch_size"),
        (["search", "--trainer.threads", "0"], "trainer.threads"),
        (["search", "--run.name", "../elsewhere"], "run.name"),
        (["search", "--resume", "nowhere"], "nowhere is not a run"),
        (["search", "--resume", "nowhere", "--search.epochs", "9"], "leave out --search.epochs"),
        (["spaces", "show", "tinny"], "'tiny'"),
        (["spaces", "shwo"], "invalid choice"),
        (["show", "nowhere.json"], "cannot read nowhere.json"),
        (["search", "--compare.parameters", "channel"], "needs compare.channel_axis"),
        (["search", "--compare.jobs", "0"], "compare.jobs must be at least 1"),
        (["search", "--model.name", "minigpt"], "model minigpt needs text (vocab_size, context)"),
        (["search", "--data.options.context", "9"], "context is for text; the data set digits holds images"),
        (["transfer"], "sources"),
        (["transfer", "--config", "default"], "sources"),
        (["transfer", "nowhere.json"], "cannot read nowhere.json"),
        (["transfer", "gelluu"], "'gelu'"),
        (["transfer", "gelu", "--config", "defualt"], "'default'"),
        (["transfer", "gelu", "--search.epochs", "3"], "--search.epochs"),
        (["transfer", "gelu"], "give --space NAME"),
        (["transfer", "gelu", "--seeds", "0"], "compare.seeds must be at least 1"),
        (["transfer", "gelu", "--epochs", "0"], "compare.epochs must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str],
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert hint in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("serach: {epochs: 3}", "'search'"),
        ("search: {epoch: 3}", "'search.epochs'"),
        ("search: 3", "section 'search' must hold keys and values"),
        ("search: {refine: {batchs: 3}}", "'search.refine.batches'"),
        ("search: [", "not valid YAML"),
        ("search: {alpha_lr: .nan}", "alpha_lr must be a positive finite number"),
    ],
)
def test_a_bad_configuration_file_is_one_line(
    content: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert cli.main(["search", "--config", str(file), "--run.root", str(tmp_path / "runs")]) == 2
    assert hint in one_line(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("{u1: {inputs: u2, candidates: [relu]}, u2: {inputs: u1, candidates: [relu]}}", "cycl"),
        ("{u1: {inputs: x, candidates: []}}", "'u1'"),
        ("{u1: {inputs: x, candidates: [rellu]}}", "'relu'"),
    ],
)
def test_a_bad_space_file_is_one_line(cell: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(f"cell: {cell}\n")
    assert cli.main(["search", "--space", str(file), "--run.root", str(tmp_path / "runs")]) == 2
    assert hint in one_line(capsys)
    assert not (tmp_path / "runs").exists()


def test_a_run_root_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("in the way")
    assert cli.main(["search", *TINY, "--run.root", str(tmp_path / "runs")]) == 2
    assert "cannot make the run folder" in one_line(capsys)
    assert (tmp_path / "runs").read_text() == "in the way"


def test_a_genotype_of_a_newer_version_asks_for_an_upgrade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps({"format": "actsearch.genotype", "version": 99}))
    assert cli.main(["show", str(file)]) == 2
    assert "upgrade actsearch" in one_line(capsys)


# -- configuration -------------------------------------------------------------------------------------------------


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["search", *arguments, "--print_config"]) == 0
    return capsys.readouterr().out


def test_printed_configuration_is_read_back_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _printed(capsys, "--search.epochs", "7", "--model.options.width", "4", "--compare.activations", "[tanh]")
    file = tmp_path / "printed.yaml"
    file.write_text(first)
    assert _printed(capsys, "--config", str(file)) == first
    data = yaml.safe_load(first)
    assert data["search"]["epochs"] == 7
    assert data["model"]["options"] == {"width": 4}
    assert data["compare"]["activations"] == ["tanh"]


def test_options_override_the_file_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    before = _printed(capsys, "--search.epochs", "7", "--config", "default")
    after = _printed(capsys, "--config", "default", "--search.epochs", "7")
    assert before == after
    assert yaml.safe_load(before)["search"]["epochs"] == 7


def test_a_named_configuration_does_not_inherit_from_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert yaml.safe_load(_printed(capsys, "--config", "resnet20_cifar10"))["search"]["alpha_lr"] == 6e-4


# -- a search ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of a tiny search with its comparison, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    short = ["--compare.seeds", "1", "--compare.activations", "[relu]", "--compare.random", "1"]
    found = run_python("-m", "actsearch", "search", *TINY, *short, "--compare.epochs", "1", cwd=folder)
    assert found.returncode == 0, found.stderr
    (run,) = (folder / "runs" / "tiny").iterdir()
    return run, found.stdout + found.stderr


def test_search_leaves_all_its_files(finished: tuple[Path, str]) -> None:
    run, _ = finished
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "space.yaml",
        "environment.json",
        "genotype.json",
        "genotypes.jsonl",
        "metrics.csv",
        "inputs.npy",
        "comparison.csv",
        "comparison.json",
        "figures/activation.png",
    } <= names
    assert any(name.startswith("checkpoints/epoch-") for name in names)
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert len((run / "genotypes.jsonl").read_text().splitlines()) == 3


def test_search_tells_what_it_did(finished: tuple[Path, str]) -> None:
    run, text = finished
    for part in (
        "7 activation sites",
        load(run).formula,
        "epoch 3/3",
        "discovered",
        "random 1",
        "genotype.json",
        "activation.png",
        "actsearch tensorboard runs/",
    ):
        assert part in text
    for noise in ("GPU available", "litlogger", "Tip:", "Trainer.fit", "Traceback"):
        assert noise not in text


def test_a_finished_search_resumes_to_the_same_function(finished: tuple[Path, str]) -> None:
    run, _ = finished
    before, compared = (run / "genotype.json").read_text(), (run / "comparison.csv").read_text()
    found = run_python("-m", "actsearch", "search", "--resume", str(run), "--progress", "quiet", cwd=run)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    assert (run / "genotype.json").read_text() == before
    assert (run / "comparison.csv").read_text() == compared


def test_a_saved_configuration_is_a_configuration(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert yaml.safe_load(_printed(capsys, "--config", str(run / "config.yaml"))) == saved


def test_show_reads_the_run(finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = finished
    assert cli.main(["show", str(run), "--png", str(tmp_path / "f.png")]) == 0
    assert load(run).formula in capsys.readouterr().out
    assert (tmp_path / "f.png").stat().st_size > 10_000


FEW = ["--seeds", "1", "--epochs", "1", "--compare.activations", "[relu, Hardswish]", "--compare.random", "0"]


def test_a_transfer_without_configuration_repeats_the_runs_comparison_with_other_seeds(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    assert cli.main(["transfer", str(run), *FEW]) == 0
    text = capsys.readouterr().out
    assert "comparing 3 activations in resnet8, 1 epochs each from scratch, seeds 1 to 1" in text
    folder = run / "transfer" / "own"
    for name in ("retrainings.jsonl", "comparison.json", "comparison.csv", "comparison.md", "report.html"):
        assert (folder / name).is_file()
    before = (folder / "retrainings.jsonl").read_text()
    assert cli.main(["transfer", str(run), *FEW]) == 0  # nothing is done twice
    assert (folder / "retrainings.jsonl").read_text() == before


def test_a_transfer_puts_the_function_into_another_model(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    options = [
        "--config",
        "default",
        "--model.name",
        "mlp",
        "--model.options",
        "{hidden: [8]}",
        "--trainer.threads",
        "1",
    ]
    out = tmp_path / "out"
    trained = ["--compare.parameters", "site", "--compare.gain", "activation", "--data.limit_train", "300"]
    assert cli.main(["transfer", str(run), *options, *FEW, *trained, "--out", str(out)]) == 0
    assert "in mlp" in capsys.readouterr().out
    table = (out / "comparison.md").read_text()
    assert "Hardswish" in table
    assert load(run).rescaled().formula.split(" ")[0] in table


def test_a_function_of_a_file_goes_with_the_space_that_it_names(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    monkeypatch.chdir(tmp_path)
    options = ["--model.name", "mlp", "--model.options", "{hidden: [8]}", "--data.limit_train", "300"]
    few = ["--seeds", "1", "--epochs", "1", "--compare.activations", "[relu]", "--compare.random", "1"]
    assert cli.main(["transfer", str(run / "genotype.json"), str(run), *options, *few]) == 0
    text = capsys.readouterr().out
    assert "random 1" in text
    assert run.name in text  # two functions are told apart by where they come from
    assert (tmp_path / "runs" / "transfer" / "default" / "comparison.json").is_file()


def test_spaces_are_listed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spaces"]) == 0
    text = capsys.readouterr().out
    assert "22,667,121" in text
    assert "tiny" in text
    assert cli.main(["spaces", "show", "tiny", "--png", str(tmp_path / "cell.png")]) == 0
    assert "b1" in capsys.readouterr().out
    assert (tmp_path / "cell.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_with_how_to_resume(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "actsearch", "search", *TINY, "--search.epochs", "200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "go on with: actsearch search --resume runs/tiny/" in error
    assert "Traceback" not in error
