"""Checkpoints that are whole or absent: after every epoch, and when the process is told to end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch.errors import RunError

SUFFIX = ".ckpt"


class SearchCheckpoint(Checkpoint):
    """Saves to `directory` after each epoch, and on SIGTERM after the present step; keeps the last `keep`.

    A file is written under a temporary name and renamed, so a kill at any moment leaves the previous one intact.
    """

    def __init__(self, directory: Path | str, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):  # raised between steps, so the state is whole
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        name = f"epoch-{int(pl_module.epochs_done):05d}-step-{int(pl_module.steps):09d}{SUFFIX}"
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
    """The whole checkpoints in `directory`, oldest first."""
    return sorted(Path(directory).glob(f"epoch-*{SUFFIX}"))


def latest_checkpoint(directory: Path | str) -> Path:
    """The newest checkpoint in `directory`, after reading it. Raises RunError if there is none, or if it is damaged."""
    found = checkpoints(directory)
    if not found:
        raise RunError(f"there is no checkpoint in {directory}: the run ended before its first epoch; start it again")
    newest = found[-1]
    try:
        content = torch.load(newest, map_location="cpu", weights_only=True)
        complete = isinstance(content, dict) and {"state_dict", "optimizer_states", "actsearch"} <= set(content)
    except Exception:  # torch raises a dozen types for a damaged archive
        complete = False
    if not complete:
        older = f"delete it to resume from {found[-2].name}" if len(found) > 1 else "start the run again"
        raise RunError(f"checkpoint {newest} is truncated or not a checkpoint of a search; {older}")
    return newest
