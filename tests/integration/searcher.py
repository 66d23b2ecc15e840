"""A small real search, run as a process of its own by the resume and fault tests: `searcher.py RUN_ROOT [RUN]`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import actsearch._torchvision

import torch

import actsearch.search
from actsearch.data import ImageData
from actsearch.models import build
from actsearch.tasks import Classification

EPOCHS = 5


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    # Augmentation, so that the order and the random numbers of the loader matter too.
    data = ImageData("digits", batch_size=32, limit_train=320, augment=True)
    model = build("resnet8", data.facts, width=4)
    result = actsearch.search(
        Classification(model, 10, lr=0.1),
        data,
        space="grafs",
        run_root=sys.argv[1],
        name="resume",
        resume=sys.argv[2] if len(sys.argv) > 2 else None,
        epochs=EPOCHS,
        alpha_lr=0.02,
        accumulate=2,
        observers=[lambda snapshot: print(f"epoch {snapshot.epoch}", flush=True)],
        callbacks=[],
        refine={"evaluations": 30},
    )
    print(result.formula, flush=True)


if __name__ == "__main__":
    main()
