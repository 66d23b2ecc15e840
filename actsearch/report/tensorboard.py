"""A search in TensorBoard: probabilities slot by slot and op by op, losses, and the function as it changes.

TensorBoard shows 10 images of a series unless it is told otherwise: `tensorboard --samples_per_plugin images=20`.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import actsearch._torchvision  # noqa: F401

import numpy as np
import torch
from torch import Tensor

from actsearch.activation import Activation
from actsearch.errors import RunError
from actsearch.ranks import is_rank_zero
from actsearch.report.plots import draw_activation, draw_probabilities, pixels
from actsearch.search.monitor import CellSnapshot, Snapshot

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IMAGES = 20  # greatest number of a series
DRAWN_CELLS = 2  # of several cells, the first ones are drawn: figures take the time

History = Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]]


class TensorBoardObserver:
    """Writes every Snapshot that it is called with to a TensorBoard event file, and flushes it.

    The file is made at the first call, so one can be handed to spawned processes; only rank zero writes. Of several
    cells each has its own prefix. Use it as a context manager, or call `close`.

    Args:
        directory: of the event files.
        history: probabilities of the epochs before, by cell, slot and candidate, as the attribute `history` gave them;
            a resumed search's heat map then starts at its first epoch.
        purge_epoch: the epoch that a resumed search starts with; what an earlier run logged from there on is hidden.
    """

    def __init__(self, directory: Path | str, history: History = (), purge_epoch: int | None = None) -> None:
        self.directory = Path(directory)
        self.history: list[Mapping[str, Mapping[str, Mapping[str, float]]]] = list(history)
        if purge_epoch is not None:
            self.history = self.history[: max(purge_epoch - 1, 0)]
        self._purge_epoch = purge_epoch
        self._writer: SummaryWriter | None = None
        self._formulas: dict[str, str] = {}
        self._clipped: set[tuple[str, str]] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        """Log one epoch. Raises RunError if it cannot be written."""
        if not is_rank_zero():
            return
        try:
            self._log(snapshot)
        except OSError as error:
            self._writer = None
            raise RunError(f"cannot write TensorBoard's file in {self.directory}: {error.strerror or error}") from None

    def _log(self, snapshot: Snapshot) -> None:
        writer = self._open(snapshot)
        epoch = snapshot.epoch
        prefixes = {name: f"{name}/" if len(snapshot.cells) > 1 else "" for name in snapshot.cells}
        for tag, value in _search_scalars(snapshot).items():
            writer.add_scalar(tag, value, epoch)
        for name, cell in snapshot.cells.items():
            for tag, value in (_cell_scalars(cell) | self._clip_hits(name, cell)).items():
                writer.add_scalar(prefixes[name] + tag, value, epoch)
            self._log_formula(writer, prefixes[name], name, cell, epoch)
        for site, values in snapshot.pre_activations.items():
            finite = values[values.isfinite()]
            if finite.numel():
                writer.add_histogram(f"pre_activations/{site}", finite.numpy(), epoch)
        for name, cell in snapshot.cells.items():
            for tag, numbers in _vectors(cell):
                writer.add_histogram(f"{prefixes[name]}coefficients/{tag}", np.asarray(numbers), epoch)
        self.history.append({name: cell.probabilities for name, cell in snapshot.cells.items()})
        if is_drawn(epoch, snapshot.epochs):
            for name in list(snapshot.cells)[:DRAWN_CELLS]:
                self._log_images(writer, prefixes[name], name, snapshot)
        writer.flush()

    def close(self) -> None:
        """Finish the event file; a later call starts another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._purge_epoch = None

    def __enter__(self) -> TensorBoardObserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- parts -----------------------------------------------------------------------------------------------------

    def _open(self, snapshot: Snapshot) -> SummaryWriter:
        if self._writer is None:
            _let_writers_end_quietly()
            with _without_tensorflow():
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.directory), purge_step=self._purge_epoch)
            add_custom_scalars(self._writer, snapshot)
        return self._writer

    def _clip_hits(self, name: str, cell: CellSnapshot) -> dict[str, float]:
        """Only of candidates that were clipped at some time: the others would be a page of zeros."""
        self._clipped |= {(name, key) for key, share in cell.clip_hits.items() if share > 0}
        return {f"clip_hits/{key}": share for key, share in cell.clip_hits.items() if (name, key) in self._clipped}

    def _log_formula(self, writer: SummaryWriter, prefix: str, name: str, cell: CellSnapshot, epoch: int) -> None:
        formula = cell.genotype.formula
        if self._formulas.get(name) == formula:
            return
        self._formulas[name] = formula
        # Indented by four: TensorBoard renders Markdown, which would eat the asterisks and backslashes.
        writer.add_text(f"{prefix}formula", f"    {formula}", epoch)
        writer.add_text(f"{prefix}latex", f"    {cell.genotype.to_latex()}", epoch)

    def _log_images(self, writer: SummaryWriter, prefix: str, name: str, snapshot: Snapshot) -> None:
        cell = snapshot.cells[name]
        inputs = _inputs_of(name, snapshot)
        figure = draw_activation(Activation(cell.genotype), inputs, title=f"epoch {snapshot.epoch}")
        writer.add_image(f"{prefix}function", pixels(figure), snapshot.epoch, dataformats="HWC")
        probabilities = [epoch[name] for epoch in self.history if name in epoch]
        image = pixels(draw_probabilities(probabilities))
        writer.add_image(f"{prefix}probabilities", image, snapshot.epoch, dataformats="HWC")


def is_drawn(epoch: int, epochs: int) -> bool:
    """Whether images are drawn at `epoch`: at most 20 in all, evenly spaced, the first and the last among them."""
    if epochs <= IMAGES:
        return True
    return epoch in {1 + round(k * (epochs - 1) / (IMAGES - 1)) for k in range(IMAGES)}


def add_custom_scalars(writer: SummaryWriter, snapshot: Snapshot) -> None:
    """The layout of the Custom Scalars page: all candidates of a slot in one chart, and the losses together."""
    layout: dict[str, dict[str, list[object]]] = {
        "losses": {"train, arch and val": ["Multiline", ["^loss/"]]},
    }
    for name, cell in snapshot.cells.items():
        several = len(snapshot.cells) > 1
        prefix = re.escape(f"{name}/") if several else ""
        title = f" of {name}" if several else ""
        slots = list(cell.probabilities)
        layout[f"probabilities{title}"] = {
            slot: ["Multiline", [f"^{prefix}probability/{re.escape(slot)}/"]] for slot in slots
        }
        layout[f"certainty{title}"] = {
            "entropy by slot (nats)": ["Multiline", [f"^{prefix}entropy/"]],
            "lead of the best candidate by slot": ["Multiline", [f"^{prefix}margin/"]],
        }
        slopes = [key for key in cell.at_sites if not isinstance(cell.op_parameters[key], tuple)]
        if slopes:
            layout[f"slopes by site{title}"] = {
                key: ["Multiline", [f"^{prefix}op_parameters/{re.escape(key)}/"]] for key in slopes
            }
    writer.add_custom_scalars(layout)


def _search_scalars(snapshot: Snapshot) -> dict[str, float]:
    scalars = {f"loss/{name}": value for name, value in snapshot.losses.items()}
    scalars |= {name: value for name, value in snapshot.metrics.items() if not name.startswith("loss/")}
    scalars |= {f"learning_rate/{name}": value for name, value in snapshot.learning_rates.items()}
    return scalars | {"skipped": snapshot.skipped, "seconds": snapshot.seconds}


def _cell_scalars(cell: CellSnapshot) -> dict[str, float]:
    """Of the survivors: the line of a dropped candidate ends, since TensorBoard's smoothing would bend a fall to 0."""
    scalars = {
        f"probability/{slot}/{op}": cell.probabilities[slot][op] for slot, ops in cell.survivors.items() for op in ops
    }
    scalars |= {f"entropy/{slot}": value for slot, value in cell.entropy.items()}
    scalars |= {f"margin/{slot}": value for slot, value in cell.margin.items()}
    scalars |= {"survivors": cell.n_survivors, "collapsed_share": cell.collapsed_share}
    for key, value in cell.op_parameters.items():
        slot, op, _ = key.split("/")
        if op in cell.survivors[slot] and not isinstance(value, tuple):
            scalars[f"op_parameters/{key}"] = value
            for site, here in cell.at_sites.get(key, {}).items():
                scalars[f"op_parameters/{key}/{site}"] = fmean(here) if isinstance(here, tuple) else here
    return scalars


def _vectors(cell: CellSnapshot) -> Iterator[tuple[str, tuple[float, ...]]]:
    """What is more than a number a site: coefficients, and slopes by channel; of survivors, with tags."""
    for key, value in cell.op_parameters.items():
        slot, op, _ = key.split("/")
        if op not in cell.survivors[slot]:
            continue
        if isinstance(value, tuple) and key not in cell.at_sites:
            yield key, value
        for site, here in cell.at_sites.get(key, {}).items():
            if isinstance(here, tuple):
                yield f"{key}/{site}", here


def _inputs_of(cell: str, snapshot: Snapshot) -> Tensor | None:
    """Recorded pre-activations of the sites of a cell."""
    chosen = [v for name, v in snapshot.pre_activations.items() if name in snapshot.cells[cell].sites]
    return torch.cat([v.flatten() for v in chosen]) if chosen else None


@contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Within it, TensorBoard settles for its own file functions, which it then keeps.

    It would import TensorFlow, where that is installed, which takes seconds and gigabytes; the module `notf` is its
    own switch against that.
    """
    switch = "tensorboard.compat.notf"
    added = switch not in sys.modules
    if added:
        sys.modules[switch] = ModuleType(switch)
    try:
        compat = importlib.import_module("tensorboard.compat")
        compat.tf.__version__  # noqa: B018  makes its lazy choice now
        yield
    finally:
        if added:
            del sys.modules[switch]


def _let_writers_end_quietly() -> None:
    """A thread of TensorBoard that cannot write hands its error to us, and would print it with a traceback as well."""
    hook = threading.excepthook
    if getattr(hook, "knows_writers", False):
        return

    def quieter(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread" or not isinstance(arguments.exc_value, OSError):
            hook(arguments)

    quieter.knows_writers = True  # type: ignore[attr-defined]
    threading.excepthook = quieter
