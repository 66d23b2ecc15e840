"""Do adaptive slopes lower the training loss of an image classifier faster? (Jagtap et al. 2020, arXiv 1909.12228)

    python scripts/reproduce_laaf_images.py                           # 3 seeds, shortened: some 30 minutes on two cores
    python scripts/reproduce_laaf_images.py --sets '[mnist]' --images 60000 --steps 46900   # as long as published

The published LeNet variant (convolutions of 64 channels 5×5, pooled, then 1,024 units, ReLU) with fixed activations and
with one slope for the network (GAAF), for each layer (L-LAAF) and for each neuron or channel (N-LAAF); SGD at 0.01 with
momentum 0.9, batches of 64. Fixed activations at greater rates are the control. All methods of a seed have the same
initial weights and the same batches. Every run is added to OUT/runs.jsonl, and what is there is not run again;
OUT/table.md and OUT/curves.png are made of them.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import pytorch_lightning as pl
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from actsearch.compare.statistics import paired
from actsearch.config import TrainerConfig
from actsearch.data import ImageData
from actsearch.errors import ActsearchError, DataError
from actsearch.files import append_line, write_text
from actsearch.models import lenet_wide
from actsearch.ops.slopes import AdaptiveSlope, adapt
from actsearch.process import prepare
from actsearch.seeds import seed_all
from actsearch.tasks import Classification, SlopeRecovery

WINDOW = 10  # steps over which a drawn curve is averaged
NAMES = {"network": "GAAF", "site": "L-LAAF", "channel": "N-LAAF"}
COLOURS = {None: "#000000", "network": "#0072B2", "site": "#D55E00", "channel": "#009E73"}
GREYS = ("#999999", "#555555")
TITLES = {"semeion": "Semeion", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "digits"}


@dataclass(frozen=True)
class Method:
    """Whose the slopes are (None: fixed activations), their n, whether slope recovery is in the loss; learning rate."""

    scope: Any = None
    n: float = 1.0
    recovery: bool = False
    lr: float = 0.01

    def __str__(self) -> str:
        if self.scope is None:
            return "fixed" if self.lr == FIXED.lr else f"fixed, lr {self.lr:g}"
        return f"{NAMES[self.scope]}{' + S' if self.recovery else ''}, n = {self.n:g}"


FIXED = Method()
RECOVERED = [Method(scope, n, True) for n in (1.0, 2.0) for scope in NAMES]
WITHOUT = [Method(scope, n, False) for n in (1.0, 2.0) for scope in NAMES]
# The control: relu(n·a·z) is n·a·relu(z), so that a slope above 1 acts on the next layers as a greater rate does.
FASTER = [Method(lr=0.02), Method(lr=0.05)]


class Losses(pl.Callback):
    """The loss on data at every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())


def run(data: ImageData, method: Method, seed: int, steps: int, weight: float) -> dict[str, Any]:
    """One network, trained; plain data."""
    seed_all(seed)
    model = lenet_wide(data.num_classes, data.in_channels, data.image_size)
    if method.scope is not None:
        example = next(iter(data.test_dataloader()))[0]
        adapt(model, method.scope, method.n, channel_axis=1, example=example)
    task = Classification(model, data.num_classes, lr=method.lr, momentum=0.9, weight_decay=0.0, schedule="constant")
    losses = Losses()
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[losses, *([SlopeRecovery(weight)] if method.recovery else [])],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    seed_all(seed, 1)  # the order of the batches
    started = time.perf_counter()
    trainer.fit(task, data.train_dataloader())
    seconds = time.perf_counter() - started
    (train,) = trainer.validate(task, data.loader(data.eval_train_set, shuffle=False), verbose=False)
    (test,) = trainer.test(task, data.test_dataloader(), verbose=False)
    layers = [m for m in model.modules() if isinstance(m, AdaptiveSlope)]
    return {
        "train_loss": train["val_loss"],
        "test_acc": test["test_acc"],
        "scales": [method.n * layer.a.mean().item() for layer in layers],
        "seconds": seconds,
        "losses": [round(loss, 5) for loss in losses.values],
    }


def table(name: str, records: dict[tuple[Method, int], dict[str, Any]]) -> str:
    """Training loss at the end and over the run, differences to fixed activations, accuracy, slopes; a row a method."""
    columns = "loss at the end | difference to fixed [95 % CI] | loss over the run | difference to fixed [95 % CI]"
    lines = [f"| {TITLES.get(name, name)} | {columns} | test accuracy, % | n·a |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for method in dict.fromkeys(method for method, _ in records):
        seeds = [s for m, s in records if m == method and (FIXED, s) in records]
        own, fixed = ([records[m, s] for s in seeds] for m in (method, FIXED))
        cells = [str(method)]
        for digits, loss in ((4, lambda r: r["train_loss"]), (3, lambda r: np.mean(r["losses"]))):
            values = np.array([loss(r) for r in own])
            found = paired(values - [loss(r) for r in fixed])
            mean, low, high = (f"{number:+.{digits}f}" for number in (found.mean, *found.interval))
            difference = f"{mean} [{low}, {high}]"
            cells += [mean_sd(values, digits), "" if method == FIXED else difference]
        cells.append(mean_sd(np.array([100 * r["test_acc"] for r in own]), 1))
        cells.append(" ".join(f"{scale:.2f}" for scale in np.array([r["scales"] for r in own]).mean(0)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_sd(values: np.ndarray, digits: int) -> str:
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def draw(found: dict[str, dict[tuple[Method, int], dict[str, Any]]], path: Path) -> None:
    """The training loss step by step, the mean over seeds: a panel a set with slope recovery, and one without it."""
    panels = [(name, True) for name in found]
    panels += [(name, False) for name in found if any(m in WITHOUT for m, _ in found[name])]
    columns = min(len(found), 3)
    figure = Figure(figsize=(5.2 * columns, 3.8 * math.ceil(len(panels) / columns)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, recovery) in enumerate(panels):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, place + 1)
        _draw_panel(axes, found[name], recovery)
        axes.set_title(f"{TITLES.get(name, name)}, {'with' if recovery else 'without'} slope recovery", fontsize=11)
    figure.savefig(path)


def _draw_panel(axes: Axes, records: dict[tuple[Method, int], dict[str, Any]], recovery: bool) -> None:
    for method in dict.fromkeys(m for m, _ in records if m.scope is None or m.recovery == recovery):
        losses = np.array([record["losses"] for (m, _), record in records.items() if m == method]).mean(0)
        window = min(WINDOW, len(losses))
        smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
        line = ":" if method in FASTER else "--" if method.n == 2 else "-"
        colour = GREYS[FASTER.index(method)] if method in FASTER else COLOURS[method.scope]
        width = 2.4 if method.scope is None else 1.4
        steps = np.arange(len(smooth)) + (window + 1) / 2
        axes.plot(steps, smooth, line, color=colour, linewidth=width, label=str(method))
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss on data")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.legend(fontsize=8, frameon=False)


def reproduce(
    sets: tuple[str, ...] = ("semeion", "mnist", "fashion_mnist"),
    without_recovery: tuple[str, ...] = ("semeion",),
    faster: tuple[str, ...] = ("semeion",),
    seeds: int = 3,
    images: int = 2560,
    test_images: int = 1000,
    steps: int = 200,
    weight: float = 1.0,
    root: str = "../shared/data/vision",
    out: str = "runs/laaf_images",
    threads: int | None = None,
) -> None:
    """Train with fixed and with adaptive activations, and print the tables.

    Args:
        sets: data sets, by the names of actsearch.data.
        without_recovery: those of them on which the adaptive methods also run without slope recovery.
        faster: those of them on which fixed activations also run at greater learning rates, the control.
        seeds: number of seeds.
        images: training images that are used, the same for all methods; all of them where a set has fewer.
        test_images: likewise of the test part.
        steps: of the optimiser; published are 50 epochs of all images.
        weight: of slope recovery in the loss.
        root: folder of the data; a set that is not there is skipped.
        out: folder of runs.jsonl, table.md and curves.png.
        threads: of torch; default: one a core.
    """
    prepare(TrainerConfig(threads=threads))
    path = Path(out) / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    data = {name: held for name in sets if (held := _data(name, root, images, test_images)) is not None}
    found: dict[str, dict[tuple[Method, int], dict[str, Any]]] = {name: {} for name in data}
    for seed in range(seeds):
        for name, held in data.items():
            more = [*(WITHOUT if name in without_recovery else []), *(FASTER if name in faster else [])]
            for method in [FIXED, *RECOVERED, *more]:
                what = {"set": name, **asdict(method), "seed": seed, "images": len(held.train_set)}
                what |= {"test_images": len(held.test_set), "steps": steps}
                what |= {"weight": weight if method.recovery else 0.0}
                record = next((r for r in known if what.items() <= r.items()), None)
                if record is None:
                    record = {**what, **run(held, method, seed, steps, weight)}
                    append_line(path, json.dumps(record))
                found[name][method, seed] = record
                print(
                    f"{name}, seed {seed}, {method}: training loss {record['train_loss']:.4f}, test accuracy "
                    f"{100 * record['test_acc']:.1f} %, {record['seconds']:.0f} s",
                    flush=True,
                )
    if not found:
        raise DataError(f"none of {', '.join(sets)} is at {root}; give --root")
    text = "\n\n".join(table(name, records) for name, records in found.items())
    write_text(path.with_name("table.md"), text + "\n")
    draw(found, path.with_name("curves.png"))
    seconds = sum(record["seconds"] for records in found.values() for record in records.values())
    print(f"\n{text}\n\n{seconds:.0f} s of training; {path.with_name('curves.png')}")


def _data(name: str, root: str, images: int, test_images: int) -> ImageData | None:
    options: dict[str, Any] = {"root": root, "batch_size": 64, "augment": False}
    try:
        whole = ImageData(name, **options)
        limits = {"limit_train": min(images, len(whole.train_set)), "limit_test": min(test_images, len(whole.test_set))}
    except DataError as error:
        print(f"skipped {name}: {error}", flush=True)
        return None
    return ImageData(name, **options, **limits)


if __name__ == "__main__":
    try:
        auto_cli(reproduce, as_positional=False)
    except ActsearchError as error:
        print(f"reproduce_laaf_images.py: {error}", file=sys.stderr)
        sys.exit(2)
