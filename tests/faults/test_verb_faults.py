"""Faults injected into the verbs that look, carry away, measure and compare: one line, and what was there is kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest
import torch
from faulty import full_disk, thinned
from torch import nn

from actsearch import carrying, cli, competing
from actsearch.activation import Activation
from actsearch.compare import saved
from actsearch.genotype import Genotype


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Genotype.of_op("tanh").save(tmp_path / "tanh.json")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line in which such a command ends."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1, error
    return error


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Within it these cannot be written, even by root, who is somebody else."""
    user = os.geteuid()
    for folder in folders:
        folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for folder in folders:
            folder.chmod(0o755)


# -- export and zoo ------------------------------------------------------------------------------------------------

DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut in half": b'{"format": "actsearch.genotype", "version": 1, "no',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "brackets": b"[" * 100_000,
    "a pickle": b"\x80\x04\x95",
    "another format": b'{"format": "other"}',
}


@pytest.mark.parametrize("name", thinned(DAMAGED))
@pytest.mark.parametrize("verb", ["export", "show", "transfer"])
def test_a_damaged_genotype_is_one_line(verb: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tanh.json").write_bytes(DAMAGED[name])
    assert "tanh.json" in fails(capsys, verb, "tanh.json")
    assert sorted(os.listdir()) == ["tanh.json"]


@pytest.mark.parametrize("form", thinned(["source", "numpy", "json", "sympy", "latex", "torch"]))
def test_an_export_to_a_full_disk_is_one_line_and_nothing_is_left(
    form: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    with full_disk(carrying.FORMS[form].ending):
        said = fails(capsys, "export", "tanh.json", "--to", form, "--out", "there")
    assert "No space left on device" in said
    assert list(Path("there").iterdir()) == []
    assert cli.main(["export", "tanh.json", "--to", form, "--out", "there"]) == 0


def test_an_export_that_fails_in_the_middle_keeps_what_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "tanh.json", "--to", "source,latex,json", "--out", "there"]) == 0
    before = {path: path.read_bytes() for path in Path("there").iterdir()}
    with full_disk(".tex"):
        fails(capsys, "export", "zoo:mish", "--name", "Tanh", "--to", "source,latex,json", "--out", "there", "--force")
    assert {path: path.read_bytes() for path in Path("there").iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "tanh.json", "--to", "source"],
        ["export", "tanh.json", "--to", "source", "--out", "new/folder"],
        ["show", "tanh.json"],
        ["zoo", "use", "gelu"],
        ["zoo", "show", "gelu", "--png", "gelu.png"],
        ["spaces", "show", "tiny", "--png", "tiny.png"],
    ],
    ids=" ".join,
)
def test_a_folder_that_is_read_only_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0  # what root alone may read, such as modules, is read then
    with tempfile.TemporaryDirectory() as name:
        Genotype.of_op("tanh").save(Path(name, "tanh.json"))
        monkeypatch.chdir(name)
        with read_only(Path(name)):
            assert "cannot" in fails(capsys, *arguments)
        assert os.listdir() == ["tanh.json"]
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "tanh.json", "--out", "file/there"],
        ["export", "tanh.json", "--to", "source,json", "--out", "file"],
        ["show", "tanh.json", "--png", "file/there.png"],
        ["zoo", "use", "gelu", "--out", "file/there.json"],
        ["zoo", "show", "gelu", "--png", "file/there.png"],
        ["spaces", "show", "tiny", "--png", "file/there.png"],
        ["bench", "--quick", "--out", "file/there"],
        ["bench", "--quick", "--record", "file/there.md"],
    ],
    ids=" ".join,
)
def test_a_file_where_a_folder_should_be_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("of somebody")
    fails(capsys, *arguments)
    assert Path("file").read_text() == "of somebody"


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "tanh.json", "--to", "source", "--name", "taken", "--force"],
        ["show", "tanh.json", "--png", "taken.py"],
        ["bench", "--quick", "--record", "taken.py"],
    ],
    ids=" ".join,
)
def test_a_folder_where_a_file_should_be_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken.py").mkdir()
    Path("taken.py", "kept").write_text("of somebody")
    fails(capsys, *arguments)
    assert Path("taken.py", "kept").read_text() == "of somebody"


def test_a_run_whose_recorded_inputs_are_damaged_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    shutil.copy("tanh.json", "run/genotype.json")
    Path("run/inputs.npy").write_bytes(b"\x93NUMPY\x01")
    for verb in ("show", "export"):
        assert "inputs.npy cannot be read" in fails(capsys, verb, "run")


@pytest.mark.parametrize(
    "content", thinned([b"", b"[1", b"slots: 3", b"\xff\xfe", b"cell: {u1: 3}"], map(str, range(5)))
)
def test_a_damaged_space_is_one_line(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_bytes(content)
    fails(capsys, "spaces", "show", "space.yaml", "--png", "space.png")
    fails(capsys, "compare-strategies", "--space", "space.yaml")
    fails(capsys, "bench", "--quick", "--space", "space.yaml")
    assert not Path("space.png").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["show", "tanh.json"], "tanh.png"),
        (["zoo", "use", "gelu"], "gelu.json"),
        (["zoo", "show", "gelu", "--png", "drawn.png"], "drawn.png"),
        (["spaces", "show", "tiny", "--png", "drawn.png"], "drawn.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_picture_or_a_file_on_a_full_disk_is_one_line(
    arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(name):
        assert "No space left on device" in fails(capsys, *arguments)
    assert os.listdir() == ["tanh.json"]
    assert cli.main(arguments) == 0
    assert Path(name).stat().st_size > 0


# -- bench ---------------------------------------------------------------------------------------------------------

BENCH = ["bench", "--quick", "--workloads", "elementwise", "--contestants", "relu,silu", "--steps", "weight"]
BENCH += ["--repeats", "2", "--budget", "1", "--no-growth", "--out", "there"]


@pytest.mark.parametrize(
    ("name", "skip"), thinned([("bench.json", 3), ("bench.json", 0), ("bench.csv", 1), ("bench.md", 2)])
)
def test_a_bench_on_a_full_disk_is_one_line_and_keeps_what_was_measured(
    name: str, skip: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(name, skip):
        assert "No space left on device" in fails(capsys, *BENCH)
    if skip:
        before = json.loads(Path("there/bench.json").read_text())
        assert before["finished"] is False
    assert cli.main(BENCH) == 0
    assert json.loads(Path("there/bench.json").read_text())["finished"] is True


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_bench_that_is_told_to_end_says_where_its_results_are(
    sent: signal.Signals, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from actsearch import benching

    def told(*arguments: Any) -> None:
        os.kill(os.getpid(), sent)

    monkeypatch.setattr(benching, "_measure", told)
    assert cli.main(BENCH) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "what was measured is in there" in error
    assert json.loads(Path("there/bench.json").read_text())["finished"] is False


def test_a_bench_does_not_touch_a_history_that_it_cannot_add_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("history.md").write_text("# measured before\n")
    with full_disk("history.md", skip=1):
        assert "No space left on device" in fails(capsys, *BENCH, "--record", "history.md")
    assert Path("history.md").read_text() == "# measured before\n"
    assert json.loads(Path("there/bench.json").read_text())["finished"] is True


# -- md ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bond(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that simulates two atoms."""
    ase = pytest.importorskip("ase")
    pytest.importorskip("vesin")
    from actsearch.forcefield.potential import ForceField, sum_by_frame

    class Spring(ForceField):
        def __init__(self) -> None:
            super().__init__((1, 8), 6.0)
            self.strength = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

        def interaction(self, batch: Any, vectors: torch.Tensor) -> torch.Tensor:
            pairs = 0.25 * self.strength * (vectors.norm(dim=1) - 1) ** 2
            return sum_by_frame(pairs.new_zeros(len(batch.frame)).index_add(0, batch.centre, pairs), batch)

    monkeypatch.setattr(saved, "load_model", lambda path: Spring())
    ase.Atoms("OH", [[0, 0, 0], [1.05, 0, 0]]).write("bond.xyz")
    return ["md", "spring.pt", "bond.xyz", "--time-steps", "1", "--steps", "40", "--out", "there"]


@pytest.mark.parametrize("name", thinned(["md.json", "md.png", "trajectory.extxyz"]))
def test_md_on_a_full_disk_is_one_line(name: str, bond: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk(name):
        assert "No space left on device" in fails(capsys, *bond)
    assert cli.main(bond) == 0
    assert Path("there", name).stat().st_size > 0


@pytest.mark.parametrize(
    "content", [b"", b"2\n\nO 0 0 0\nH x", b"\xff\xfe\x00", b"-3\n", b"2\n\nO 0 0 nan\nH 1 0 0\n"], ids=range(5)
)
def test_md_of_a_damaged_structure_is_one_line(
    content: bytes, bond: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bond.xyz").write_bytes(content)
    fails(capsys, *bond)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95", b"x" * 5000], ids=range(4))
def test_md_with_a_damaged_model_is_one_line(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ase")
    Path("model.pt").write_bytes(content)
    Path("bond.xyz").write_text("2\n\nO 0 0 0\nH 1 0 0\n")
    assert "model.pt" in fails(capsys, "md", "model.pt", "bond.xyz")


# -- compare-strategies --------------------------------------------------------------------------------------------

COMPARE = ["compare-strategies", "--strategies", "gradient,random", "--seeds", "1", "--out", "out"]
COMPARE += ["--space", "tiny", "--model.name", "mlp", "--model.options", "{hidden: [8]}", "--trainer.accelerator"]
COMPARE += ["cpu", "--trainer.threads", "1", "--search.epochs", "3", "--search.refine.evaluations", "6"]
COMPARE += ["--compare.epochs", "1", "--compare.activations", "[relu]", "--compare.random", "0"]
COMPARE += ["--data.limit_train", "200", "--data.limit_test", "50"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of strategies that is done."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(COMPARE) == 0
    return folder / "out"


@pytest.fixture
def out(compared: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(compared, tmp_path / "out"))


def numbers(out: Path) -> list[Any]:
    """What was found, without the seconds."""
    found = json.loads((out / "strategies.json").read_text())
    searches = [{key: value for key, value in one.items() if key != "seconds"} for one in found["searches"]]
    return [searches, found["tests"], [(row["name"], row["mean"]) for row in found["rows"]]]


def only(out: Path, pattern: str) -> Path:
    (path,) = out.glob(pattern)
    return path


GONE: dict[str, Callable[[Path], object]] = {
    "the tables": lambda out: [p.unlink() for p in out.iterdir() if p.is_file() and p.name != competing.CONDITIONS],
    "the summary of a search": lambda out: only(out, "searches/gradient-0/*/search.json").unlink(),
    "the genotype of a search": lambda out: only(out, "searches/gradient-0/*/genotype.json").unlink(),
    "the summary of trials": lambda out: only(out, "searches/random-0/*/search.json").unlink(),
    "the end of the trials": lambda out: [
        only(out, "searches/random-0/*/search.json").unlink(),
        cut(only(out, "searches/random-0/*/trials.jsonl"), 0.4),
    ],
    "the last epoch": lambda out: [
        only(out, "searches/gradient-0/*/search.json").unlink(),
        sorted(only(out, "searches/gradient-0/*/checkpoints").iterdir())[-1].unlink(),
    ],
    "a whole search": lambda out: shutil.rmtree(out / "searches" / "random-0"),
    "a search that had just begun": lambda out: [
        shutil.rmtree(only(out, "searches/gradient-0/*/checkpoints")),
        only(out, "searches/gradient-0/*/search.json").unlink(),
    ],
    "the end of the retrainings": lambda out: cut(only(out, "retrainings/seed-0/retrainings.jsonl"), 0.6),
    "all retrainings": lambda out: shutil.rmtree(out / "retrainings"),
}


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.slow
@pytest.mark.parametrize("name", GONE)
def test_what_a_kill_took_is_done_again_to_the_same_numbers(name: str, out: Path, compared: Path) -> None:
    GONE[name](out)
    assert cli.main(COMPARE) == 0
    assert numbers(out) == numbers(compared)


BROKEN: dict[str, tuple[str, bytes]] = {
    "conditions that are no JSON": ("conditions.json", b"{"),
    "conditions that are a list": ("conditions.json", b"[]"),
    "conditions that are no text": ("conditions.json", b"\xff\xfe"),
    "a summary that is no JSON": ("searches/gradient-0/*/search.json", b"{"),
    "a summary that is a number": ("searches/gradient-0/*/search.json", b"3"),
    "a summary of nothing": ("searches/random-0/*/search.json", b"{}"),
    "a summary that is no text": ("searches/random-0/*/search.json", b"\xff\xfe"),
    "a bomb of brackets": ("searches/random-0/*/search.json", b"[" * 100_000),
    "a genotype that is none": ("searches/gradient-0/*/genotype.json", b"{}"),
    "retrainings that are none": ("retrainings/seed-0/retrainings.jsonl", b"{}\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_is_one_line_and_kept(name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern, content = BROKEN[name]
    path = only(out, pattern)
    path.write_bytes(content)
    before = (out / "strategies.json").read_bytes()
    said = fails(capsys, *COMPARE)
    assert Path(pattern).name in said or "out holds searches under other conditions" in said
    assert path.read_bytes() == content
    assert (out / "strategies.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["strategies.md", "strategies.csv", "strategies.json", "comparison.md", "report.html"])
def test_tables_on_a_full_disk_are_one_line_and_the_searches_are_kept(
    name: str, out: Path, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / name).unlink()
    with full_disk(name):
        assert "No space left on device" in fails(capsys, *COMPARE)
    assert cli.main(COMPARE) == 0
    assert numbers(out) == numbers(compared)
    assert capsys.readouterr().out.count("found before") == 2


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("strategy", ["gradient", "random"])
def test_strategies_that_are_told_to_end_go_on_to_the_same_numbers(
    strategy: str,
    sent: signal.Signals,
    code: int,
    out: Path,
    compared: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(out / "searches" / f"{strategy}-0")
    calls: list[int] = []
    forward = Activation.forward if strategy == "random" else torch.nn.Linear.forward
    owner: Any = Activation if strategy == "random" else torch.nn.Linear

    def told(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 20:
            os.kill(os.getpid(), sent)
        return forward(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "forward", told)
        capsys.readouterr()
        assert cli.main(COMPARE) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "give the same command again" in error
    assert cli.main(COMPARE) == 0
    assert numbers(out) == numbers(compared)
