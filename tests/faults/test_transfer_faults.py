"""Faults injected into comparisons: what was trained is kept, and the rest gives the same numbers."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import full_disk
from torch.utils.data import DataLoader, Dataset, TensorDataset

from actsearch import cli, models
from actsearch.build import TaskBuilder
from actsearch.compare import Budget, Comparison, Retraining, compare, load_model
from actsearch.compare.records import FILE
from actsearch.data import ImageData
from actsearch.errors import ActsearchError, DataError, RunError, Stopped
from actsearch.export.source import to_source
from actsearch.genotype import Genotype
from actsearch.lock import locked
from actsearch.process import stoppable
from actsearch.report.comparison import markdown, write
from actsearch.report.page import comparison_page
from actsearch.reporting import write_report
from actsearch.tasks import Classification

ROOT = Path(__file__).parents[2]
CONTESTANTS = {"discovered": Genotype.of_op("tanh"), "relu": Genotype.of_op("relu")}
SEEDS = (0, 1)


@dataclass
class Build:
    """A builder of tasks that can be sent to a process."""

    lr: float = 0.05

    def __call__(self) -> Classification:
        return Classification(models.mlp(64, 10, hidden=(8,)), 10, lr=self.lr)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    torch.set_num_threads(1)
    return ImageData("digits", limit_train=64, limit_test=50, batch_size=32)


def run(directory: Path, data: Any, **options: Any) -> Comparison:
    chosen: dict[str, Any] = {
        "seeds": SEEDS,
        "budget": Budget(1),
        "directory": directory,
        "trainer": {"accelerator": "cpu"},
        **options,
    }
    build = chosen.pop("build", Build())
    return compare(build, data, chosen.pop("contestants", CONTESTANTS), **chosen)


def numbers(comparison: Comparison) -> dict[tuple[str, int], Mapping[str, float]]:
    return {(r.activation, r.seed): r.metrics for r in comparison.retrainings}


@pytest.fixture(scope="module")
def finished(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    directory = tmp_path_factory.mktemp("finished")
    return directory, run(directory, digits)


@pytest.fixture
def folder(finished: tuple[Path, Comparison], tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert isinstance(caught.value, ActsearchError)
    assert "\n" not in text
    assert len(text) < 700
    return text


# -- retrainings.jsonl ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.0, 0.05, 0.3, 0.5, 0.75, 0.999])
def test_what_a_kill_cut_off_is_trained_again_to_the_same_numbers(
    left: float, folder: Path, digits: ImageData, finished: tuple[Path, Comparison]
) -> None:
    file = folder / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole))])
    kept = whole[: int(left * len(whole))].count(b"\n")
    assert numbers(run(folder, digits)) == numbers(finished[1])
    lines = file.read_bytes().splitlines()
    assert lines[:kept] == whole.splitlines()[:kept], "what was whole is not touched"
    assert len(lines) == 1 + len(SEEDS) * len(CONTESTANTS)


def line(number: int, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Changes one line."""

    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        changed = change(json.loads(lines[number]))
        lines[number] = changed if isinstance(changed, str) else json.dumps(changed)
        path.write_text("\n".join(lines) + "\n")

    return damage


def with_(**values: Any) -> Callable[[Any], Any]:
    return lambda record: {**record, **values}


LINES: dict[str, Callable[[Path], object]] = {
    "half a line in the middle": line(2, lambda record: json.dumps(record)[:50]),
    "bytes that are no text": lambda path: path.write_bytes(path.read_bytes().replace(b"tanh", b"\xff\xfe")),
    "a bomb of brackets": line(1, lambda record: "[" * 100_000),
    "a list": line(1, lambda record: [record]),
    "a number for the metrics": line(1, with_(metrics=3)),
    "a word for a metric": line(1, with_(metrics={"test_acc": "high"})),
    "a word for a duration": line(1, with_(seconds="long")),
    "a list for the seed": line(1, with_(seed=[0])),
    "a number for the failure": line(1, with_(failure=1)),
    "a curve that is none": line(1, with_(curve={"train_loss": 3})),
    "true for a count": line(1, with_(jobs=True)),
    "an unknown key": line(1, with_(code="print(1)")),
    "a key that is missing": line(1, lambda record: {k: v for k, v in record.items() if k != "activation"}),
    "another function": line(1, with_(function="0" * 64)),
    "other conditions": line(0, with_(budget={"epochs": 9})),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1}) + b"\n"),
}


@pytest.mark.parametrize("name", LINES)
def test_results_that_are_damaged_are_one_line_and_kept(name: str, folder: Path, digits: ImageData) -> None:
    file = folder / FILE
    LINES[name](file)
    before = file.read_bytes()
    with pytest.raises(RunError, match=FILE) as caught:
        run(folder, digits)
    one_line(caught)
    assert file.read_bytes() == before


def test_a_damaged_line_can_be_deleted_as_the_error_says(
    folder: Path, digits: ImageData, finished: tuple[Path, Comparison]
) -> None:
    file = folder / FILE
    LINES["half a line in the middle"](file)
    with pytest.raises(RunError, match=r"damaged at line 3.*delete the line"):
        run(folder, digits)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    assert numbers(run(folder, digits)) == numbers(finished[1])


@pytest.mark.parametrize(
    "content", ["", "[", "[" * 100_000, "3", '{"metric": 3}', '{"rows": [{}]}', "\udcff"], ids=range(7)
)
def test_a_damaged_comparison_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RunError, match="is not a comparison") as caught:
        Comparison.load(tmp_path)
    one_line(caught)


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "skip"), [(FILE, 0), (FILE, 1), (FILE, 3), ("comparison.json", 0), ("comparison.csv", 0), (".lock", 0)]
)
def test_a_full_disk_is_one_line_and_what_was_trained_is_kept(
    name: str, skip: int, tmp_path: Path, digits: ImageData, finished: tuple[Path, Comparison]
) -> None:
    trained: list[Retraining] = []
    with full_disk(name, skip), pytest.raises(RunError) as caught:
        run(tmp_path, digits, report=trained.append)
    assert "No space left on device" in one_line(caught)
    before = (tmp_path / FILE).read_bytes() if (tmp_path / FILE).is_file() else b""
    assert before.count(b"\n") == (1 + len(trained) if before else 0)
    assert numbers(run(tmp_path, digits)) == numbers(finished[1])
    assert (tmp_path / FILE).read_bytes().startswith(before)


def test_a_device_that_is_full_is_one_line(
    tmp_path: Path, digits: ImageData, finished: tuple[Path, Comparison]
) -> None:
    def fill_up(result: Retraining) -> None:
        (tmp_path / FILE).rename(tmp_path / "kept")
        (tmp_path / FILE).symlink_to("/dev/full")

    with pytest.raises(RunError, match="No space left on device"):
        run(tmp_path, digits, report=fill_up)
    (tmp_path / FILE).unlink()
    (tmp_path / "kept").rename(tmp_path / FILE)
    assert numbers(run(tmp_path, digits)) == numbers(finished[1])


def test_a_report_that_cannot_be_written_is_one_line(folder: Path) -> None:
    comparison = Comparison.load(folder)
    for name in ("comparison.md", "box_plots.png"):
        with full_disk(name), pytest.raises(RunError, match="No space left on device"):
            write(comparison, folder)
    with full_disk("report.html"), pytest.raises(RunError, match="No space left on device"):
        write_report(folder)


# -- two at once, signals, processes -------------------------------------------------------------------------------


def test_a_folder_that_is_in_use_is_refused(folder: Path, digits: ImageData) -> None:
    before = (folder / FILE).read_bytes()
    with locked(folder), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        run(folder, digits)
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("after", [1, 3])
def test_sigterm_keeps_what_was_trained(
    after: int, tmp_path: Path, digits: ImageData, finished: tuple[Path, Comparison]
) -> None:
    trained: list[Retraining] = []

    def told(result: Retraining) -> None:
        trained.append(result)
        if len(trained) == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="go on") as caught, stoppable(lambda: "go on"):
        run(tmp_path, digits, report=told)
    assert caught.value.exit_code == 0
    assert len(trained) == after
    before = (tmp_path / FILE).read_bytes()
    assert before.count(b"\n") == 1 + after
    assert numbers(run(tmp_path, digits)) == numbers(finished[1])
    assert (tmp_path / FILE).read_bytes().startswith(before)


class Deadly(Dataset[Any]):
    """Its process is killed while it reads."""

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1, 8, 8), 0

    def __len__(self) -> int:
        return 64


# torch raises its error in a signal handler: what was being opened just then stays so until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_loads_data_and_dies_is_one_line(tmp_path: Path, digits: ImageData) -> None:
    class Data:
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Deadly(), batch_size=32, num_workers=1)

        def test_dataloader(self) -> Any:
            return digits.test_dataloader()

    with pytest.raises(DataError, match=r"data.num_workers") as caught:
        run(tmp_path, Data())
    one_line(caught)
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_is_not_finite_is_a_failure_in_the_table(value: float, tmp_path: Path) -> None:
    x = torch.full((32, 1, 8, 8), value)

    class Data:
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(x, torch.zeros(32, dtype=torch.long)), batch_size=16)

        test_dataloader = train_dataloader

    comparison = run(tmp_path, Data())
    assert all(r.failure for r in comparison.retrainings)
    assert "failed" in markdown(comparison)
    assert numbers(Comparison.load(tmp_path)) == numbers(comparison)


# -- what is loaded, and what is shown -----------------------------------------------------------------------------


def test_a_model_that_is_damaged_is_one_line(tmp_path: Path, digits: ImageData) -> None:
    digits.prepare_data()
    digits.setup("fit")
    build = TaskBuilder(digits.kind, digits.facts, "mlp", {"hidden": [8]}, {})
    run(
        tmp_path,
        digits,
        build=build,
        contestants={"discovered": CONTESTANTS["discovered"]},
        seeds=(0,),
        save_models=True,
    )
    (path,) = (tmp_path / "models").iterdir()
    whole = path.read_bytes()
    load_model(path)
    for damaged in (
        whole[:-1],
        whole[: len(whole) // 2],
        b"",
        whole[:-3000] + b"\x55" + whole[-2999:],
        pickle.dumps(1),
    ):
        path.write_bytes(damaged)
        with pytest.raises(RunError) as caught:
            load_model(path)
        one_line(caught)


NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>&"\''


def test_reports_escape_what_they_show(finished: tuple[Path, Comparison]) -> None:
    comparison = finished[1]
    renamed = {"discovered": "discovered", "relu": NASTY}
    nasty = replace(
        comparison,
        entries=tuple(replace(e, name=renamed[e.name], formula=NASTY) for e in comparison.entries),
        retrainings=tuple(
            replace(r, activation=renamed[r.activation], failure=NASTY if r.seed else "")
            for r in comparison.retrainings
        ),
        context={"data": {"name": NASTY}},
    )
    page = comparison_page(nasty, Path(NASTY), {"command": ["search", NASTY], NASTY: NASTY})
    assert page.count("<script") == 1, "our own"
    assert "onerror" not in page.replace("onerror=alert(1)&gt;", "")
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in markdown(nasty, NASTY).replace("\\<", "").replace("`", "")[:200]


QUOTES = [
    '"""\nimport os\nos.abort()\n"""',
    "'''\nboom()\n'''",
    '\\"""\nboom()',
    '""""\nboom()',
    "\\",
    '"',
    "\r\nboom()\r",
]


@pytest.mark.parametrize("nasty", QUOTES, ids=range(len(QUOTES)))
def test_exported_source_holds_no_code_of_the_genotypes_notes(nasty: str) -> None:
    plain = Genotype.of_op("tanh")
    noted = replace(plain, provenance={"run": nasty, nasty: nasty}, space={"name": nasty, "hash": nasty})

    def code(genotype: Genotype) -> list[str]:
        body = ast.parse(to_source(genotype)).body
        assert isinstance(body[0], ast.Expr), "the first statement is the docstring"
        return [ast.dump(node) for node in body[1:]]

    assert code(noted) == code(plain)


# -- real processes ------------------------------------------------------------------------------------------------

FEW = shlex.split(
    "--model.name mlp --model.options '{hidden: [8]}' --data.limit_train 200 --trainer.accelerator cpu --seeds 3 "
    "--epochs 2 --trainer.threads 1 --compare.activations '[relu, gelu]' --compare.random 0"
)


def start(cwd: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "actsearch", "transfer", "zoo:mish", "--config", "default", *FEW, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_results(file: Path, lines: int, process: subprocess.Popen[str]) -> None:
    while not file.is_file() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_transfer_that_is_told_to_end_goes_on_to_the_same_numbers(
    jobs: str, sent: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    whole = start(tmp_path / "whole")
    _, error = whole.communicate(timeout=400)
    assert whole.returncode == 0, error
    file = tmp_path / "runs" / "transfer" / "default" / FILE
    for lines in (2, 5):
        process = start(tmp_path, "--compare.jobs", jobs)
        wait_for_results(file, lines, process)
        process.send_signal(sent)
        _, error = process.communicate(timeout=240)
        assert "Traceback" not in error
        if sent == signal.SIGTERM:
            assert process.returncode == 0
            assert "give the same command again" in error
    last = start(tmp_path, "--compare.jobs", jobs)
    _, error = last.communicate(timeout=400)
    assert last.returncode == 0, error
    found = Comparison.load(file.parent)
    assert numbers(found) == numbers(Comparison.load(tmp_path / "whole" / "runs" / "transfer" / "default"))


@pytest.mark.slow
def test_two_transfers_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    first = start(tmp_path)
    wait_for_results(tmp_path / "runs" / "transfer" / "default" / FILE, 1, first)
    first.send_signal(signal.SIGSTOP)  # or it could be done before the second begins
    try:
        second = start(tmp_path)
        _, error = second.communicate(timeout=200)
    finally:
        first.send_signal(signal.SIGCONT)
        _, of_first = first.communicate(timeout=400)
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in error
    assert error.count("\n") == 1
    assert first.returncode == 0, of_first


def test_verbs_name_what_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "genotype.json").write_text("{")
    assert cli.main(["transfer", str(tmp_path / "genotype.json"), "--space", "tiny"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
