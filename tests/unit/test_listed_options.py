"""Every option that a verb's help lists does something; what a verb does not use is neither listed nor taken."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from actsearch import cli, options
from actsearch.config import SearchConfig, TransferConfig

PACKAGE = Path(__file__).parents[2] / "actsearch"


def listed(verb: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    assert cli.main([verb, "--help"]) == 0
    return set(re.findall(r"--([\w.-]+)", capsys.readouterr().out))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_of_a_verb_is_read(verb: str) -> None:
    """Of those that it adds to the keys of a configuration: by attribute, by item, or before parsing."""
    tree = ast.parse(inspect.getsource(cli.VERBS[verb]))
    added, read = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            read.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            name = node.args[0]
            assert isinstance(name, ast.Constant)
            added.add(str(name.value))
    # `data.root` is read as given.data.root; an option that is taken out before parsing is named a second time.
    source = inspect.getsource(cli.VERBS[verb])
    for name in added:
        parts = name.removeprefix("--").replace("-", "_").split(".")
        before = source.count(f'"{name}"') > 1 or f'"{name}"' in inspect.getsource(cli._resumed)
        assert set(parts) <= read or before, f"{verb} does not read {name}"


@pytest.mark.parametrize("cls", [SearchConfig, TransferConfig])
def test_every_setting_is_read_somewhere(cls: type) -> None:
    source = "\n".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py") if p.name != "config.py")
    for key in options.keys(cls):
        name = key.rpartition(".")[2]
        assert re.search(rf"\.{name}\b|[\"']{name}[\"']|\b{name}: |\b{name}=", source), f"nobody reads {key}"


def test_what_compare_strategies_does_not_use_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    known = set(options.keys(SearchConfig))
    unused = {key for key in known if options._is_of(key, cli.NOT_COMPARED)}
    assert {"strategy", "search.seed", "run.root", "compare.seeds"} <= unused
    found = listed("compare-strategies", capsys)
    assert found & known == known - unused
    assert listed("search", capsys) >= known
    assert listed("transfer", capsys) >= set(options.keys(TransferConfig))


@pytest.mark.parametrize("option", ["--strategy=tpe", "--run.name=a", "--search.seed=3", "--compare.seeds=3"])
def test_what_compare_strategies_does_not_use_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([option], option.split("=")):
        assert cli.main(["compare-strategies", *arguments]) == 2
        error = capsys.readouterr().err
        assert error == f"actsearch: {option.partition('=')[0]} has no part in this verb; leave it out\n"


def test_a_file_of_a_search_may_hold_what_compare_strategies_does_not_use(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("strategy: tpe\nsearch: {seed: 3}\nrun: {name: mine}\n")
    parser = options.make_parser("")
    options.add_config(parser, SearchConfig, cli.NOT_COMPARED)
    config, _ = options.read_config(parser, [f"--config={file}"], SearchConfig, unused=cli.NOT_COMPARED)
    assert config.search.seed == 3


def test_tune_lists_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed("tune", capsys) == {
        *("help", "config", "trials", "timeout", "workers", "storage", "name", "threads", "progress"),
        *("KEY", "data.root"),  # in the usage
    }
