"""Tiny real searches and comparisons for the tests of faults, and a disk that is full when one says so."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actsearch._torchvision

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actsearch
from actsearch.genotype import Genotype
from actsearch.run import RunDirectory
from actsearch.search.checkpoint import checkpoints

EPOCHS = 3


def thinned(values: Iterable[Any], ids: Iterable[str] | None = None) -> list[Any]:
    """Parameters of a test, every second one for `make test-slow` only: they take one path through the code."""
    values = list(values)
    names = list(ids) if ids is not None else [str(value) for value in values]
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name, marks=[pytest.mark.slow] * (k % 2))
        for k, (value, name) in enumerate(zip(values, names, strict=True))
    ]


class Stop(Exception):
    """Ends a search where a kill would."""


class Small(pl.LightningModule):
    """Two sites, momentum, a schedule, and dropout: all that a checkpoint has to bring back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


def tensors(n: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return x, torch.tanh(x.sum(1, keepdim=True))


def loader(dataset: Any = None, workers: int = 0) -> DataLoader[Any]:
    return DataLoader(dataset or TensorDataset(*tensors()), batch_size=16, shuffle=True, num_workers=workers)


def search(root: Path, resume: Path | None = None, data: Any = None, **options: Any) -> actsearch.SearchResult:
    """A search of three epochs, in a fraction of a second."""
    task = options.pop("task", None) or Small()
    chosen: dict[str, Any] = {
        "space": "tiny",
        "run_root": root,
        "name": "faults",
        "resume": resume,
        "observers": [],
        "callbacks": [],
        "epochs": EPOCHS,
        "alpha_lr": 0.05,
        "evaluator": "dense",
        "trainer": {"accelerator": "cpu"},
        "refine": {"evaluations": 6},
        **options,
    }
    return actsearch.search(task, data or loader(), **chosen)


def only_run(root: Path) -> Path:
    (run,) = (root / "faults").iterdir()
    return run


def state(run: Path) -> dict[str, Any]:
    """The content of the last checkpoint."""
    return torch.load(checkpoints(run / "checkpoints")[-1], weights_only=True)  # type: ignore[no-any-return]


def assert_same_bits(run: Path, reference: Path) -> None:
    """Both ended with the same weights, α, optimisers, schedules, genotype and records."""
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(state(run)[key], state(reference)[key]), key
    assert Genotype.load(run / "genotype.json") == Genotype.load(reference / "genotype.json")
    texts = [(path / "genotype.json").read_text().replace(path.name, "") for path in (run, reference)]
    assert texts[0] == texts[1]
    assert RunDirectory(run).history() == RunDirectory(reference).history()
    assert (run / "inputs.npy").read_bytes() == (reference / "inputs.npy").read_bytes()
    assert not list(run.rglob(".*")), "nothing temporary is left, and no lock"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# -- a full disk ---------------------------------------------------------------------------------------------------

_full: dict[str, Any] = {"name": None, "skip": 0, "hits": 0, "whole": False}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    wanted = _full["name"]
    if wanted is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    elif event in ("os.rename", "os.link"):
        path, writes = arguments[1], True
    elif event == "os.mkdir":
        path, writes = arguments[0], True
    else:
        return
    if not writes or isinstance(path, int):
        return
    name = os.path.basename(os.fsdecode(path))
    if name == wanted if _full["whole"] else wanted in name:
        _full["hits"] += 1
        if _full["hits"] > _full["skip"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))


@contextmanager
def full_disk(name: str, skip: int = 0, whole: bool = False) -> Iterator[None]:
    """Within it, whatever writes a file that has `name` in its name fails with ENOSPC; the first `skip` times not.

    `whole`: it must be all of its name.

    It must fail once at least.
    """
    if not _full.get("installed"):
        sys.addaudithook(_audit)  # it can never be taken out
        _full["installed"] = True
    _full.update(name=name, skip=skip, hits=0, whole=whole)
    try:
        yield
    finally:
        hits = _full["hits"]
        _full["name"] = None
    assert hits > skip, f"nothing wrote {name}"
