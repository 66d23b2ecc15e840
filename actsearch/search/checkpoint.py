"""Checkpoints that are whole or absent: after every epoch, and when the process is told to end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch.errors import RunError
from actsearch.files import is_whole_archive

SUFFIX = ".ckpt"
_NAME = re.compile(r"epoch-\d+-step-\d+\.ckpt")
_CONTENT = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "epoch": int,
    "global_step": int,
    "actsearch": dict,
}


class SearchCheckpoint(Checkpoint):
    """Saves to `directory` after each epoch, and on SIGTERM after the present step; keeps the last `keep`.

    A file is written under a temporary name and renamed, so a kill at any moment leaves the previous one intact.
    """

    def __init__(self, directory: Path | str, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:  # what a kill has left; the run is locked, so nobody writes it
            for partial in self.directory.glob(".*.partial"):
                partial.unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):  # raised between steps, so the state is whole
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        name = _name(int(pl_module.epochs_done), int(pl_module.steps))
        temporary, path = self.directory / f".{name}.partial", self.directory / name
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                for old in checkpoints(self.directory)[: -self.keep]:
                    old.unlink()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            kept = checkpoints(self.directory)
            state = f"the last checkpoint, {kept[-1].name}, is intact" if kept else "there is no checkpoint yet"
            raise RunError(f"cannot write {path}: {error.strerror or error}; {state}") from None
        trainer.strategy.barrier("actsearch checkpoint")


def checkpoints(directory: Path | str) -> list[Path]:
    """The checkpoints in `directory`, oldest first. Their names tell, not their times: clocks are set."""
    return sorted(path for path in Path(directory).glob(f"epoch-*{SUFFIX}") if _NAME.fullmatch(path.name))


def latest_checkpoint(directory: Path | str, objection: Callable[[Mapping[str, Any]], str] = lambda _: "") -> Path:
    """The newest checkpoint in `directory` that is whole, after reading it; damaged ones are skipped, and told.

    Args:
        directory: of the checkpoints.
        objection: why a content does not fit, in words that follow its name; empty if it does.

    Raises RunError if there is none that is whole and fits.
    """
    found = checkpoints(directory)
    if not found:
        raise RunError(f"there is no checkpoint in {directory}: the run ended before its first epoch; start it again")
    reasons: list[tuple[Path, str]] = []
    for path in reversed(found):
        content = _read(path)
        reason = "is truncated, damaged, or not a checkpoint of a search" if content is None else objection(content)
        if not reason:
            for passed, why in reasons:
                rank_zero_info(f"skipped checkpoint {passed.name}, which {why}: going on from {path.name}")
            return path
        reasons.append((path, reason))
    others = f"; nor can {' and '.join(path.name for path in found[:-1])} be used" if len(found) > 1 else ""
    raise RunError(f"checkpoint {found[-1]} {reasons[0][1]}{others}; resume with what it began with, or start again")


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None if it is damaged, or is none. No code of it is run."""
    if not is_whole_archive(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        counted = tuple(int(content["state_dict"][name]) for name in ("epochs_done", "steps"))
    except Exception:  # torch raises a dozen types for what is no checkpoint
        return None
    whole = isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in _CONTENT.items())
    return content if whole and path.name == _name(*counted) else None


def _name(epochs: int, steps: int) -> str:
    return f"epoch-{epochs:05d}-step-{steps:09d}{SUFFIX}"
