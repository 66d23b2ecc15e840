"""Faults injected into searches: each ends in the same bits, or in one line that says what to do; nothing is lost."""

from __future__ import annotations

import datetime
import errno
import gc
import io
import json
import os
import pickle
import random
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actsearch._torchvision

import pytest
import pytorch_lightning as pl
import torch
import yaml
from faulty import EPOCHS, Small, Stop, assert_same_bits, full_disk, loader, only_run, search, state, tensors, thinned
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import actsearch
from actsearch import cli
from actsearch.errors import ActsearchError, DataError, GenotypeError, NonFiniteError, RunError, Stopped
from actsearch.genotype import Genotype
from actsearch.lock import locked
from actsearch.ops import registry
from actsearch.process import stoppable
from actsearch.report.tensorboard import TensorBoardObserver
from actsearch.run import RunDirectory
from actsearch.search.checkpoint import checkpoints, latest_checkpoint


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing disturbed."""
    torch.set_num_threads(1)
    return search(tmp_path_factory.mktemp("reference")).run_dir


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that ended in its third epoch, after its records and before its checkpoint."""
    root = tmp_path_factory.mktemp("killed")

    def stop(snapshot: Any) -> None:
        if snapshot.epoch == EPOCHS:
            raise Stop

    with pytest.raises(Stop):
        search(root, observers=[stop])
    return only_run(root)


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(killed, tmp_path / "faults" / killed.name))


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert isinstance(caught.value, ActsearchError)
    assert "\n" not in text
    assert len(text) < 700
    return text


def newest(run: Path) -> Path:
    return checkpoints(run / "checkpoints")[-1]


def test_a_killed_search_resumes_to_the_same_bits(run: Path, reference: Path) -> None:
    search(run.parent.parent, run)
    assert_same_bits(run, reference)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(seed: int) -> Callable[[Path], None]:
    """One bit in each of three members of the archive."""

    def damage(path: Path) -> None:
        rng = random.Random(seed)
        data = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.file_size >= 16]
        for member in rng.sample(members, 3):
            start = member.header_offset + 30 + len(member.filename)
            start += int.from_bytes(data[member.header_offset + 28 : member.header_offset + 30], "little")
            data[start + rng.randrange(member.file_size)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    return damage


def anywhere(seed: int) -> Callable[[Path], None]:
    """Ten bytes, in headers and directories too."""

    def damage(path: Path) -> None:
        rng = random.Random(seed)
        data = bytearray(path.read_bytes())
        for _ in range(10):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)

    return damage


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("code was run",))


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A checkpoint that is whole, but tampered with."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return damage


def alpha_of(content: dict[str, Any]) -> str:
    return next(name for name in content["state_dict"] if ".alpha." in name)


def resize(content: dict[str, Any]) -> None:
    content["state_dict"][alpha_of(content)] = torch.zeros(3)


def rename(content: dict[str, Any]) -> None:
    content["state_dict"]["other"] = content["state_dict"].pop(alpha_of(content))


def other_epoch(content: dict[str, Any]) -> None:
    content["state_dict"]["epochs_done"] += 1


def other_setting(content: dict[str, Any]) -> None:
    content["actsearch"]["settings"]["alpha_lr"] = 0.06


def other_space(content: dict[str, Any]) -> None:
    content["actsearch"]["spaces"]["network"] = "0" * 64


def foreign(path: Path) -> None:
    """Of another Lightning module."""
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict(), "epoch": 3, "global_step": 9, "loops": {}}, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": cut(0),
    "cut to a tenth": cut(0.1),
    "cut in half": cut(0.5),
    "last bytes lost": cut(0.999),
    "zeros, as after a power cut": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "text": lambda path: path.write_text("this is no checkpoint"),
    "bits flipped 1": flipped(1),
    "bits flipped 2": flipped(2),
    "bits flipped 3": flipped(3),
    "bytes changed 1": anywhere(1),
    "bytes changed 2": anywhere(2),
    "bytes changed 3": anywhere(3),
    "a pickle that runs code": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "an archive that runs code": changed(lambda content: content.update(actsearch=Payload())),
    "a list": lambda path: torch.save([1, 2], path),
    "of another module": foreign,
    "without optimisers": changed(lambda content: content.pop("optimizer_states")),
    "without its loops": changed(lambda content: content.pop("loops")),
    "weights of another shape": changed(resize),
    "weights of another name": changed(rename),
    "weights that are no tensors": changed(lambda content: content["state_dict"].update({alpha_of(content): 3})),
    "one optimiser less": changed(lambda content: content["optimizer_states"].pop()),
    "renamed from another epoch": changed(other_epoch),
    "of other settings": changed(other_setting),
    "of another space": changed(other_space),
}


@pytest.mark.parametrize("name", thinned(DAMAGES))
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    name: str, run: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[name](newest(run))
    search(run.parent.parent, run)
    assert_same_bits(run, reference)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cut in half", "an archive that runs code", "of other settings", "of another module"])
def test_if_no_checkpoint_can_be_used_that_is_one_line_and_they_are_kept(name: str, run: Path) -> None:
    for path in checkpoints(run / "checkpoints"):
        DAMAGES[name](path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError) as caught:
        search(run.parent.parent, run)
    assert newest(run).name in one_line(caught)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def of_optimizer(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["momentum_buffer"] = torch.zeros(7)


def of_gradients(content: dict[str, Any]) -> None:
    content["actsearch"]["gradients"] = {alpha_of(content): torch.zeros(99)}


INSIDE: dict[str, Callable[[dict[str, Any]], object]] = {
    "an optimiser's state of another shape": of_optimizer,
    "a missing schedule": lambda content: content["lr_schedulers"].clear(),
    "an optimiser that is none": lambda content: content["optimizer_states"].__setitem__(0, {"state": 3}),
    "loops without a position": lambda content: content["loops"].update(fit_loop={}),
    "gradients of another shape": of_gradients,
    "sums that are none": lambda content: content["actsearch"].update(sums=3),
    "nothing of the search": lambda content: content["actsearch"].clear(),
}


@pytest.mark.parametrize("name", thinned(INSIDE))
def test_what_shows_only_when_it_is_restored_is_one_line(name: str, run: Path, reference: Path) -> None:
    changed(INSIDE[name])(newest(run))
    with pytest.raises(RunError) as caught:
        search(run.parent.parent, run)
    assert "start" in one_line(caught)
    newest(run).unlink()  # as it says
    search(run.parent.parent, run)
    assert_same_bits(run, reference)


def test_what_a_kill_left_half_written_is_removed(run: Path, reference: Path) -> None:
    (run / "checkpoints" / ".epoch-00003-step-000000015.ckpt.partial").write_bytes(b"PK")
    (run / "checkpoints" / "epoch-last.ckpt").write_bytes(b"not of ours, and not touched")
    search(run.parent.parent, run)
    (run / "checkpoints" / "epoch-last.ckpt").unlink()
    assert_same_bits(run, reference)


# -- the other files of a run --------------------------------------------------------------------------------------


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


RECORDS: dict[str, Callable[[Path], object]] = {
    "a last line cut": lambda run: cut(0.95)(run / "genotypes.jsonl"),
    "records cut in half": lambda run: halved(run / "genotypes.jsonl"),
    "records that are no text": lambda run: (run / "genotypes.jsonl").write_bytes(b"\xff\xfe\x00" * 40),
    "a bomb of brackets": lambda run: (run / "genotypes.jsonl").write_text("[" * 100_000),
    "lines of something else": lambda run: (run / "genotypes.jsonl").write_text('{"epoch": "1"}\n[]\n3\nnull\n{}\n'),
    "no records": lambda run: (run / "genotypes.jsonl").unlink(),
    "a table cut in half": lambda run: halved(run / "metrics.csv"),
    "a table that is no text": lambda run: (run / "metrics.csv").write_bytes(b"\xff\x00\n\xfe,,\n"),
    "no table": lambda run: (run / "metrics.csv").unlink(),
}


@pytest.mark.parametrize("name", thinned(RECORDS))
def test_damaged_records_do_not_keep_a_search_from_going_on(name: str, run: Path, reference: Path) -> None:
    RECORDS[name](run)
    search(run.parent.parent, run, observers=[TensorBoardObserver(run)] if name == "lines of something else" else [])
    assert (run / "genotype.json").is_file()
    assert all(torch.equal(a, b) for a, b in zip(*(state(r)["state_dict"].values() for r in (run, reference))))  # noqa: B905
    assert RunDirectory(run).history()[-1] == RunDirectory(reference).history()[-1]
    assert (run / "metrics.csv").read_text(errors="replace").splitlines()[-1].startswith("3,")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.995])
@pytest.mark.parametrize("file", ["config.yaml", "space.yaml"])
def test_a_file_that_was_cut_is_not_taken_for_the_whole(
    file: str, share: float, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(share)(run / file)
    assert cli.main(["search", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("actsearch: ")
    assert error.count("\n") == 1
    assert f"{file} was cut off" in error


TAMPERED: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "an unknown section": ("config.yaml", lambda config: config.update(serach={}), "serach"),
    "a section that is a number": ("config.yaml", lambda config: config.update(search=3), "must hold keys"),
    "a setting that is empty": (
        "config.yaml",
        lambda config: config["search"].update(epochs=None),
        "must not be empty",
    ),
    "a setting of another kind": ("config.yaml", lambda config: config["search"].update(epochs=[]), "search.epochs"),
    "another setting": ("config.yaml", lambda config: config["search"].update(alpha_lr=0.06), "other settings"),
    "an operation that is none": (
        "space.yaml",
        lambda space: space["cell"]["u2"]["candidates"].append("rellu"),
        "relu",
    ),
    "another operation": ("space.yaml", lambda s: s["cell"]["u2"]["candidates"].__setitem__(0, "square"), "spaces"),
    "one operation less": ("space.yaml", lambda space: space["cell"]["u2"]["candidates"].pop(), "spaces"),
    "no cell": ("space.yaml", lambda space: space.pop("cell"), "needs a `cell`"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_file_that_was_tampered_with_is_refused(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, change, hint = TAMPERED[name]
    content = yaml.safe_load((run / file).read_text())
    change(content)
    (run / file).write_text(yaml.safe_dump(content) + "...\n")
    shape = ["--progress", "quiet", "--trainer.accelerator", "cpu"]
    assert cli.main(["search", "--resume", str(run), *shape]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("file", ["config.yaml", "space.yaml"])
def test_code_in_a_file_of_a_run_is_not_run(file: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / file).write_text("a: !!python/object/apply:print ['code was run']\n...\n")
    assert cli.main(["search", "--resume", str(run)]) == 2
    found = capsys.readouterr()
    assert "code was run" not in found.out
    assert found.err.count("\n") == 1


def test_a_class_in_a_configuration_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {tmp_path / 'made'}", "shell": True}}
    for nested in (program, yaml.safe_dump(program), [program]):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"model": {"name": "mlp", "options": {"hidden": nested}}}))
        assert cli.main(["search", "--config", str(config), "--run.root", str(tmp_path)]) == 2
        assert "of the wrong kind" in capsys.readouterr().err
    time.sleep(0.1)
    assert not (tmp_path / "made").exists()


def genotype(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


GENOTYPES: dict[str, Callable[[Path], object]] = {
    "cut in half": cut(0.5),
    "empty": cut(0),
    "bytes changed": lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "a bomb of brackets": lambda path: path.write_text("[" * 100_000),
    "of something else": lambda path: path.write_text('{"format": "other"}'),
    "an operation that is none": genotype(lambda g: g["slots"]["u1"].update(op="__import__('os').getcwd()")),
    "a slot that is missing": genotype(lambda g: g["slots"].pop("u1")),
    "a cycle": genotype(lambda g: g["slots"]["u1"].update(inputs=["b1"])),
    "a limit that is a list": genotype(lambda g: g["clip"].update(limit=[])),
    "a scale that is huge": genotype(lambda g: g.update(scale=1e300)),
    "parameters too many": genotype(lambda g: g["slots"]["u1"].update(parameters={"beta": 1.0})),
}


@pytest.mark.parametrize("name", GENOTYPES)
def test_a_damaged_genotype_is_one_line(
    name: str, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "genotype.json"
    file.write_bytes((reference / "genotype.json").read_bytes())
    GENOTYPES[name](file)
    with pytest.raises(GenotypeError) as caught:
        actsearch.load(file)
    one_line(caught)
    assert cli.main(["show", str(file)]) == 2
    found = capsys.readouterr()
    assert found.err.count("\n") == 1
    assert "code was run" not in found.out


# -- a full disk ---------------------------------------------------------------------------------------------------

# A file, and how often it is written before the disk is full.
WRITES = [
    ("config.yaml", 0), ("space.yaml", 0), ("environment.json", 0), (".lock", 0), ("genotypes.jsonl", 0),
    ("genotypes.jsonl", 1), ("metrics.csv", 0), ("metrics.csv", 2), ("checkpoints", 0), (".ckpt.partial", 0),
    (".ckpt.partial", 1), ("epoch-00001-", 1), ("epoch-00003-", 1), ("tfevents", 0), ("genotype.json", 0),
    ("inputs.npy", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "skip"), thinned(WRITES, [f"{name}, {skip} before" for name, skip in WRITES]))
def test_a_full_disk_is_one_line_and_with_space_again_it_goes_on(
    name: str, skip: int, tmp_path: Path, reference: Path
) -> None:
    def observers() -> list[Any]:
        return [TensorBoardObserver(tmp_path / "events")] if name == "tfevents" else []

    with full_disk(name, skip), pytest.raises(RunError) as caught:
        search(tmp_path, observers=observers())
    assert "No space left on device" in one_line(caught)
    run = only_run(tmp_path)
    done = checkpoints(run / "checkpoints")
    if done:
        assert latest_checkpoint(run / "checkpoints") == done[-1]
        search(tmp_path, run, observers=observers())
    else:
        shutil.rmtree(run)
        search(tmp_path, observers=observers())
    assert_same_bits(only_run(tmp_path), reference)


@pytest.mark.parametrize("file", ["genotypes.jsonl", "metrics.csv"])
def test_a_device_that_is_full_is_one_line(file: str, tmp_path: Path, reference: Path) -> None:
    def fill_up(snapshot: Any) -> None:
        if snapshot.epoch == 1:
            path = only_run(tmp_path) / file
            path.rename(tmp_path / "kept")
            path.symlink_to("/dev/full")

    with pytest.raises(RunError, match=f"cannot write .*{file}: No space left on device"):
        search(tmp_path, observers=[fill_up])
    run = only_run(tmp_path)
    (run / file).unlink()
    (tmp_path / "kept").rename(run / file)
    search(tmp_path, run)
    assert_same_bits(run, reference)


@pytest.mark.parametrize("calls", thinned([0, 3, 5, 4]))
def test_a_disk_that_fails_late_is_one_line(
    calls: int, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done > calls:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(RunError) as caught:
            search(tmp_path)
    assert "Input/output error" in one_line(caught)
    run = only_run(tmp_path)
    resume = run if checkpoints(run / "checkpoints") else None
    if resume is None:
        shutil.rmtree(run)
    search(tmp_path, resume)
    assert_same_bits(only_run(tmp_path), reference)


def test_output_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        assert cli.main(["--help"]) == 2
    assert capsys.readouterr().err == "actsearch: cannot write the output: No space left on device\n"


# -- what is not finite --------------------------------------------------------------------------------------------


def poisoned(value: float, which: slice, target: bool = False) -> Any:
    x, y = tensors()
    (y if target else x)[which] = value
    return loader(TensorDataset(x, y))


@pytest.mark.parametrize("value", thinned([float("nan"), float("inf"), 1e38, -float("inf")]))
@pytest.mark.parametrize("target", [False, True], ids=["input", "target"])
def test_an_example_that_is_not_finite_costs_steps_and_no_more(value: float, target: bool, tmp_path: Path) -> None:
    seen: list[Any] = []
    result = search(tmp_path, data=poisoned(value, slice(0, 2), target), observers=[seen.append], max_skipped=60)
    assert seen[-1].skipped > 0
    assert result.activation(torch.linspace(-3, 3, 9)).isfinite().all()
    assert all(
        value.isfinite().all() for value in state(result.run_dir)["state_dict"].values() if value.is_floating_point()
    )
    for line in (result.run_dir / "genotypes.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    Genotype.load(result.run_dir / "genotype.json")


def test_data_that_is_nowhere_finite_stops_with_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"max_skipped.*input of site.*look at the data") as caught:
        search(tmp_path, data=poisoned(float("nan"), slice(None)), max_skipped=3)
    one_line(caught)


class BadGradient(Small):
    """One weight's gradient is not finite at some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.net[0].weight.register_hook(self.spoil)

    def spoil(self, gradient: Tensor) -> Tensor:
        self.calls += 1
        return gradient * (float("nan") if self.calls in (3, 4) else 1.0)


def test_gradients_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    seen: list[Any] = []
    result = search(tmp_path, task=BadGradient(), observers=[seen.append])
    assert seen[-1].skipped == 2
    assert all(
        value.isfinite().all() for value in state(result.run_dir)["state_dict"].values() if value.is_floating_point()
    )


def test_an_operation_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = registry["tanh"]
    before = spec.function
    object.__setattr__(spec, "function", lambda x: before(x) / 0.0 * 0.0)
    try:
        with pytest.raises(NonFiniteError, match="operation 'tanh' of slot") as caught:
            search(tmp_path, epochs=8, max_skipped=3)
    finally:
        object.__setattr__(spec, "function", before)
    one_line(caught)


# -- processes that load data --------------------------------------------------------------------------------------


class Deadly(Dataset[Any]):
    """Its process is killed, or raises, at an example in the given epoch of the search."""

    def __init__(self, what: str) -> None:
        self.data = TensorDataset(*tensors())
        self.what = what
        self.reads = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if torch.utils.data.get_worker_info() is not None and self.what != "nothing" and self.reads > 40:
            if self.what == "raises":
                raise DataError("image 7 cannot be read: repair or remove it")
            os.kill(os.getpid(), signal.SIGKILL if self.what == "killed" else signal.SIGTERM)
            time.sleep(5)
        return self.data[index]


# torch raises its error in a signal handler: what was being opened just then stays so until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("what", "said"),
    [("killed", "data.num_workers"), ("ended", "data.num_workers"), ("raises", "^image 7 cannot be read")],
)
def test_a_process_that_loads_data_and_dies_is_one_line(what: str, said: str, run: Path, reference: Path) -> None:
    with pytest.raises(DataError, match=said) as caught:
        search(run.parent.parent, run, data=loader(Deadly(what), workers=1))
    one_line(caught)
    del caught
    gc.collect()
    search(run.parent.parent, run, data=loader(Deadly("nothing"), workers=1))
    assert_same_bits(run, reference)


# -- signals -------------------------------------------------------------------------------------------------------


class Signal(pl.Callback):
    """Sends SIGTERM to this process at some moment of the training."""

    def __init__(self, moment: str, epoch: int) -> None:
        self.moment, self.epoch = moment, epoch

    def _send(self, moment: str, trainer: pl.Trainer) -> None:
        if moment == self.moment and trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._send("step begins", trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._send("step ends" if batch_idx == 1 else "", trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._send("epoch begins", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._send("epoch ends", trainer)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.moment == "training ends":
            os.kill(os.getpid(), signal.SIGTERM)


MOMENTS = [("step begins", 0), ("step begins", 1), ("step ends", 0), ("step ends", 2), ("epoch begins", 1),
           ("epoch ends", 0), ("epoch ends", 2), ("training ends", 2)]  # fmt: skip


@pytest.mark.parametrize(("moment", "epoch"), thinned(MOMENTS, [f"{moment} in epoch {n}" for moment, n in MOMENTS]))
def test_sigterm_saves_and_ends_with_code_0(moment: str, epoch: int, tmp_path: Path, reference: Path) -> None:
    with pytest.raises(Stopped, match=r"SIGTERM.*go on") as caught, stoppable(lambda: "go on"):
        search(tmp_path, callbacks=[Signal(moment, epoch)])
    assert caught.value.exit_code == 0
    search(tmp_path, only_run(tmp_path))
    assert_same_bits(only_run(tmp_path), reference)


@pytest.mark.parametrize("where", ["actsearch.api._finish", "actsearch.api.refine", "actsearch.api._losses"])
def test_sigterm_after_the_training_ends_with_code_0(
    where: str, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(where, told)
        with pytest.raises(Stopped) as caught, stoppable(lambda: "go on"):
            search(tmp_path)
    assert caught.value.exit_code == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    search(tmp_path, only_run(tmp_path))
    assert_same_bits(only_run(tmp_path), reference)


# -- two in one folder, and clocks ---------------------------------------------------------------------------------


def test_a_run_that_is_in_use_is_not_resumed(run: Path, reference: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with locked(run):
        with pytest.raises(RunError, match=f"in use by process {os.getpid()} on") as caught:
            search(run.parent.parent, run)
        one_line(caught)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    search(run.parent.parent, run)
    assert_same_bits(run, reference)


def test_a_lock_that_a_kill_left_is_taken_over(run: Path, reference: Path) -> None:
    (run / ".lock").write_text('{"pid": 2147483646, "host": "elsewhere", "started": "1"}')
    search(run.parent.parent, run)
    assert_same_bits(run, reference)


class Jumping(datetime.datetime):
    """A clock that stands still, or is set back."""

    @classmethod
    def now(cls, tz: Any = None) -> Jumping:
        return cls(2001, 1, 1, tzinfo=tz)


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that are set back by an hour each time they are read."""
    now = time.time()

    def read() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr(time, "time", read)
    monkeypatch.setattr(datetime, "datetime", Jumping)


@pytest.mark.usefixtures("jumping")
def test_a_clock_that_jumps_back_changes_no_bit_and_no_duration(tmp_path: Path, reference: Path) -> None:
    for _ in range(2):
        search(tmp_path, observers=[TensorBoardObserver(tmp_path / "events")])
    first, second = sorted((tmp_path / "faults").iterdir())
    assert second.name == f"{first.name}_2"
    for run in (first, second):
        assert_same_bits(run, reference)
        lines = (run / "metrics.csv").read_text().splitlines()
        seconds = [float(line.rpartition(",")[2]) for line in lines[1:]]
        assert seconds == sorted(seconds)
        assert 0 < seconds[0] <= seconds[-1] < 600


def test_the_newest_checkpoint_is_that_of_most_epochs_whatever_the_files_times(run: Path, reference: Path) -> None:
    first, second = checkpoints(run / "checkpoints")
    os.utime(first, (4e9, 4e9))
    os.utime(second, (0, 0))
    assert latest_checkpoint(run / "checkpoints") == second
    search(run.parent.parent, run)
    assert_same_bits(run, reference)


def test_the_archive_of_a_checkpoint_has_checksums(reference: Path) -> None:
    buffer = io.BytesIO(newest(reference).read_bytes())
    assert all(member.CRC for member in zipfile.ZipFile(buffer).infolist() if member.file_size > 64)
