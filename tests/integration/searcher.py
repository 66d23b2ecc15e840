"""A small real search, run as a process of its own by the resume tests.

searcher.py RUN_ROOT [RUN] [--sigterm-after STEP]
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import actsearch._torchvision

import pytorch_lightning as pl
import torch

import actsearch.search
from actsearch.data import ImageData
from actsearch.models import build
from actsearch.tasks import Classification

EPOCHS = 5  # of eight steps; of α's three batches, and of the weights' eight, the last has half of the examples


class Signal(pl.Callback):
    """Sends SIGTERM to this process at the end of a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if int(pl_module.steps) == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def search(
    root: Path | str,
    run: Path | str | None = None,
    sigterm_after: int | None = None,
    evaluator: Literal["auto", "table"] = "table",
) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Augmentation, so that the order and the random numbers of the loader matter too.
    data = ImageData("digits", batch_size=32, limit_train=320, augment=True)
    model = build("resnet8", data.facts, width=4)
    result = actsearch.search(
        Classification(model, 10, lr=0.1),
        data,
        space="grafs",
        run_root=root,
        name="resume",
        resume=run,
        epochs=EPOCHS,
        alpha_lr=0.02,
        accumulate=2,
        evaluator=evaluator,
        callbacks=[] if sigterm_after is None else [Signal(sigterm_after)],
        refine={"evaluations": 30},
    )
    return result.formula


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--sigterm-after", type=int)
    given = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(search(given.root, given.run, given.sigterm_after), flush=True)
