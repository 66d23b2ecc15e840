"""RunDirectory: what a search leaves on disk, written as it goes."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import actsearch
from actsearch.errors import RunError, without_passwords
from actsearch.files import (
    append_line,
    check_end,
    read_yaml,
    whole_json_lines,
    write_atomically,
    write_text,
    write_yaml,
)
from actsearch.search.monitor import Snapshot
from actsearch.space import SearchSpace

SUMMARY = "search.json"  # what a search says of itself at its end
_REPORTED = ("torch", "torchvision", "pytorch-lightning", "numpy", "sympy", "jsonargparse", "tensorboard")


class RunDirectory:
    """A run's folder: config.yaml, space.yaml, environment.json, genotypes.jsonl, metrics.csv, checkpoints/, figures/.

    Raises RunError if it cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, root: Path | str, name: str) -> RunDirectory:
        """A new folder root/name/DATE; of two made in the same second, the second gets a number."""
        date = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in range(1, 1000):
            path = Path(root) / name / (date if attempt == 1 else f"{date}_{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not Path(root, name).is_dir():
                    raise RunError(f"cannot make the run folder {path}: {root} is not a folder") from None
                continue
            except OSError as error:
                raise RunError(
                    f"cannot make the run folder {path}: {error.strerror or error}; choose another with run.root"
                ) from None
            return cls(path)
        raise RunError(f"cannot make a run folder in {Path(root) / name}: too many of this second")

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """The folder of an existing run. Raises RunError if it is none."""
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise RunError(f"{path} is not a run: it has no config.yaml; give a folder runs/NAME/DATE")
        if not os.access(run.path, os.W_OK):
            raise RunError(f"the run folder {path} cannot be written; copy it to a place of your own")
        return run

    @classmethod
    def begin(
        cls,
        space: SearchSpace,
        config: Mapping[str, Any],
        root: Path | str,
        name: str | None,
        resume: Path | str | None,
    ) -> RunDirectory:
        """A new folder for a search in `space` that holds these settings, or `resume` to go on with.

        Raises RunError if `resume` is no run, or one of another space.
        """
        if resume is not None:
            run = cls.open(resume)
            if SearchSpace.load(run.read_space()).hash != space.hash:
                raise RunError(f"{resume} was searched in another space than {space.name!r}; resume with the run's own")
            return run
        run = cls.create(root, name or space.name)
        run.write_config(config)
        run.write_space(space.to_dict())
        run.write_environment()
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def genotype(self) -> Path:
        return self.path / "genotype.json"

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_yaml(self.path / "config.yaml", config)

    def read_config(self) -> dict[str, Any]:
        return self._read_yaml("config.yaml")

    def write_space(self, space: Mapping[str, Any]) -> None:
        write_yaml(self.path / "space.yaml", space)

    def read_space(self) -> dict[str, Any]:
        return self._read_yaml("space.yaml")

    def _read_yaml(self, name: str) -> dict[str, Any]:
        check_end(self.path / name)
        return read_yaml(self.path / name, RunError)

    def write_json(self, name: str, data: Mapping[str, Any]) -> Path:
        return write_text(self.path / name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_inputs(self, inputs: torch.Tensor) -> Path:
        """Keep a sample of the inputs of the activation sites, 1-d, in inputs.npy: what the function is drawn over."""

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, inputs.numpy(), allow_pickle=False)

        return write_atomically(self.path / "inputs.npy", write)

    def read_inputs(self) -> torch.Tensor | None:
        """What `write_inputs` kept; None if there is none. Raises RunError if it is damaged."""
        path = self.path / "inputs.npy"
        if not path.is_file():
            return None
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False)).flatten().float()
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise RunError(f"{path} cannot be read ({error}); delete it") from None

    def write_environment(self) -> None:
        """Versions and machine, so that a result can be placed."""
        versions = {}
        for package in _REPORTED:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "not installed"
        self.write_json(
            "environment.json",
            {
                "actsearch": actsearch.__version__,
                "python": sys.version.split()[0],
                "platform": platform.platform(),
                "processors": os.cpu_count(),
                "torch_threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "packages": versions,
                "command": [without_passwords(argument) for argument in sys.argv[1:]],
                "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            },
        )

    # -- one record an epoch ---------------------------------------------------------------------------------------

    def history(self) -> list[dict[str, Any]]:
        """The lines of genotypes.jsonl: one mapping an epoch; a line that a kill cut off, or damaged, is left out."""
        lines, _ = whole_json_lines(self.path / "genotypes.jsonl")
        return [line for line in lines if _is_record(line)]

    def rewind(self, epoch: int) -> None:
        """Forget the records after `epoch`, which a resumed search will write again."""
        records = [r for r in self.history() if r["epoch"] <= epoch]
        write_text(self.path / "genotypes.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        table = self.path / "metrics.csv"
        lines = _lines(table)
        if lines:
            kept = [
                line for line in lines[1:] if line.split(",", 1)[0].isdigit() and int(line.split(",", 1)[0]) <= epoch
            ]
            whole = lines[0].startswith("epoch,")  # else nobody can tell what its columns are
            write_text(table, "".join(f"{line}\n" for line in (lines[0], *kept)) if whole else "")

    def record(self, snapshot: Snapshot) -> None:
        """Add an epoch to genotypes.jsonl and metrics.csv, and keep its sample of inputs."""
        line = {
            "epoch": snapshot.epoch,
            "step": snapshot.step,
            "phase": snapshot.phase,
            "losses": {name: loss if math.isfinite(loss) else None for name, loss in snapshot.losses.items()},
            "skipped": snapshot.skipped,
            "cells": {
                name: {
                    "formula": cell.genotype.formula,
                    "genotype": cell.genotype.to_dict(),
                    "probabilities": {slot: dict(ps) for slot, ps in cell.probabilities.items()},
                    "undecided": cell.undecided(),
                    "clip_hits": {key: share for key, share in cell.clip_hits.items() if share > 0},
                }
                for name, cell in snapshot.cells.items()
            },
        }
        append_line(self.path / "genotypes.jsonl", json.dumps(line, ensure_ascii=False))
        self._append_metrics(snapshot)
        if snapshot.pre_activations:
            self.write_inputs(snapshot.inputs)

    def _append_metrics(self, snapshot: Snapshot) -> None:
        row = {
            "epoch": snapshot.epoch,
            "step": snapshot.step,
            "phase": snapshot.phase,
            "survivors": sum(cell.n_survivors for cell in snapshot.cells.values()),
            **{f"lr/{name}": value for name, value in snapshot.learning_rates.items()},
            **dict(sorted(snapshot.metrics.items())),
            "skipped": snapshot.skipped,
            "seconds": round(snapshot.seconds, 3),
        }
        path = self.path / "metrics.csv"
        lines = _lines(path)
        header = next(csv.reader(lines[:1]), None) or list(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, header, extrasaction="ignore", restval="", lineterminator="\n")
        if not lines:
            writer.writeheader()
        writer.writerow(row)
        append_line(path, text.getvalue().removesuffix("\n"))


def _lines(path: Path) -> list[str]:
    """The lines of a file, none if it is not there. Raises RunError if it cannot be read."""
    if not path.is_file():
        return []
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None


def _is_record(record: Any) -> bool:
    """Whether a line of genotypes.jsonl holds what is read of it."""
    if not isinstance(record, dict) or type(record.get("epoch")) is not int:
        return False
    cells = record.get("cells")
    return isinstance(cells, dict) and all(
        isinstance(cell, dict) and isinstance(cell.get("probabilities"), dict) for cell in cells.values()
    )
