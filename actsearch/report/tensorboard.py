"""A search in TensorBoard: probabilities slot by slot and op by op, losses, scores, and the function as it changes.

`actsearch tensorboard` opens it so that all of it is seen; by itself TensorBoard shows 10 images of a series.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import torch
from torch import Tensor

from actsearch.activation import Activation
from actsearch.compare import DISCOVERED, Comparison
from actsearch.errors import RunError
from actsearch.genotype import Genotype
from actsearch.ranks import is_rank_zero
from actsearch.report.comparison import escaped
from actsearch.report.facts import facts
from actsearch.report.plots import draw_activation, draw_probabilities, pixels
from actsearch.search.monitor import CellSnapshot, Snapshot
from actsearch.search.strategies import TrialRecord, to_genotype
from actsearch.space import SearchSpace

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IMAGES = 20  # greatest number of a series
DRAWN_CELLS = 2  # of several cells, the first ones are drawn: figures take the time
# What TensorBoard's HPARAMS shows of runs: the same for all, since it takes the list from one of them.
SCORES = {
    "search_loss": ("search loss", "of the mixture in the last epoch, on α's part of the training data"),
    "discrete_loss": ("discrete loss", "of the function that was found, on the same data"),
    "test": ("test", "mean of that function, retrained; accuracies in percent"),
    "test_minus_relu": ("test − ReLU", "difference of the means"),
    "test_minus_random": ("test − random", "difference to the mean of the random functions"),
}
TEXTS = ("space", "strategy", "data.name", "model.name", "training.optimizer", "search.relaxation")
NUMBERS = (
    "data.batch_size", "training.lr", "training.weight_decay", "search.epochs", "search.alpha_lr", "search.order",
    "search.arch_fraction", "search.seed",
)  # fmt: skip
LEADING = ("space", "strategy", "model.name", "search.alpha_lr", "search.seed")  # it shows five until told otherwise

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
            self._writer = _open_writer(self.directory, self._purge_epoch)
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
        writer.add_text(f"{prefix}formula", describe_function(cell.genotype), epoch)

    def _log_images(self, writer: SummaryWriter, prefix: str, name: str, snapshot: Snapshot) -> None:
        cell = snapshot.cells[name]
        inputs = _inputs_of(name, snapshot)
        figure = draw_activation(Activation(cell.genotype), inputs, title=f"epoch {snapshot.epoch}")
        writer.add_image(f"{prefix}function", pixels(figure), snapshot.epoch, dataformats="HWC")
        # One for each slot: all in one would be too small to read in TensorBoard's cards.
        for slot in cell.probabilities:
            probabilities = [{slot: epoch[name][slot]} for epoch in self.history if name in epoch]
            image = pixels(draw_probabilities(probabilities))
            writer.add_image(f"{prefix}probabilities/{slot}", image, snapshot.epoch, dataformats="HWC")


def is_drawn(epoch: int, epochs: int) -> bool:
    """Whether images are drawn at `epoch`: at most 20 in all, evenly spaced, the first and the last among them."""
    if epochs <= IMAGES:
        return True
    return epoch in {1 + round(k * (epochs - 1) / (IMAGES - 1)) for k in range(IMAGES)}


def describe_function(genotype: Genotype) -> str:
    """Formula, LaTeX and facts in Markdown."""
    # Indented by four, so that asterisks and backslashes are left alone.
    parts = [f"    f(x) = {genotype.formula}", f"    {genotype.to_latex()}"]
    rows = [f"| {escaped(name)} | {escaped(value)} |" for name, value in facts(Activation(genotype)).rows()]
    return "\n\n".join([*parts, "\n".join(["| fact | value |", "| --- | --- |", *rows])])


def add_custom_scalars(writer: SummaryWriter, snapshot: Snapshot) -> None:
    """The layout of the Custom Scalars page: first the slots side by side, all candidates of a slot in one chart."""
    layout: dict[str, dict[str, list[object]]] = {}
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
    layout["losses"] = {"train, arch and val": ["Multiline", ["^loss/"]]}
    writer.add_custom_scalars(layout)


def log_scores(directory: Path | str, scores: Mapping[str, float], config: Mapping[str, Any], text: str = "") -> None:
    """Log final scores of a run, by the names in SCORES, with its hyper-parameters, so that runs can be compared.

    Rank zero alone writes. May be called again when more is known.

    Args:
        directory: of the run's event files.
        scores: those that are known.
        config: settings, as in config.yaml.
        text: shown as `results`, Markdown.

    Raises RunError if it cannot be written.
    """
    if not is_rank_zero():
        return
    directory = Path(directory)
    try:
        writer = _open_writer(directory)
        for name, value in scores.items():
            if math.isfinite(value):
                writer.add_scalar(f"score/{name}", value, 0)
        _add_hyperparameters(writer, config)
        if text:
            writer.add_text("results", text, 0)
        writer.close()
    except OSError as error:
        raise RunError(f"cannot write TensorBoard's file in {directory}: {error.strerror or error}") from None


def comparison_scores(comparison: Comparison) -> dict[str, float]:
    """What a comparison says of the function that was found, by the names in SCORES."""
    scale = comparison.scale
    means = {row.name: scale * row.mean for row in comparison.rows}
    kinds = {row.name: row.kind for row in comparison.rows}
    found = next((mean for name, mean in means.items() if kinds[name] == DISCOVERED), math.nan)
    random = [mean for name, mean in means.items() if kinds[name] == "random" and math.isfinite(mean)]
    return {
        "test": found,
        "test_minus_relu": found - means.get("relu", math.nan),
        "test_minus_random": found - fmean(random) if random else math.nan,
    }


def _add_hyperparameters(writer: SummaryWriter, config: Mapping[str, Any]) -> None:
    """`SummaryWriter.add_hparams` would make a run of its own for them."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    kinds = dict.fromkeys(TEXTS, api_pb2.DATA_TYPE_STRING) | dict.fromkeys(NUMBERS, api_pb2.DATA_TYPE_FLOAT64)
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=kind, differs=name in LEADING) for name, kind in kinds.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"score/{tag}"), display_name=name, description=description)
            for tag, (name, description) in SCORES.items()
        ],
    )
    start = plugin_data_pb2.SessionStartInfo()
    for name in kinds:
        value = _setting(config, name)
        if isinstance(value, str):
            start.hparams[name].string_value = value
        elif value is not None:
            start.hparams[name].number_value = value
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    for tag, content in {
        metadata.EXPERIMENT_TAG: {"experiment": experiment},
        metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
        metadata.SESSION_END_INFO_TAG: {"session_end_info": end},
    }.items():
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, metadata=about)]), None)


def _setting(config: Mapping[str, Any], name: str) -> float | str | None:
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float | str) else None


class TrialsBoard:
    """Writes a search by trials to a TensorBoard event file; the step is the number of the trial.

    Args:
        directory: of the event files.
        space: where the functions are from.
        records: trials that are there already; they are logged again, in place of what an earlier process logged.
    """

    def __init__(self, directory: Path | str, space: SearchSpace, records: Sequence[TrialRecord] = ()) -> None:
        self.directory = Path(directory)
        self._space = space
        self._best: TrialRecord | None = None
        self._steps = 0
        try:
            self._writer = _open_writer(self.directory, purge_step=0 if records else None)
            self._writer.add_custom_scalars(
                {
                    "trials": {
                        "loss of each trial, and the best so far": ["Multiline", ["^trial/loss$", "^trial/best$"]],
                        "training steps of all so far": ["Multiline", ["^trial/steps_of_all$"]],
                    }
                }
            )
            for record in records:
                self._log(record)
        except OSError as error:
            raise self._refused(error) from None

    def __call__(self, record: TrialRecord) -> None:
        """Log a trial that has ended. Raises RunError if it cannot be written."""
        try:
            self._log(record)
            self._writer.flush()
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> RunError:
        return RunError(f"cannot write TensorBoard's file in {self.directory}: {error.strerror or error}")

    def _log(self, record: TrialRecord) -> None:
        self._steps += record.steps
        best = self._best
        # Losses after fewer steps are not comparable.
        if best is None or (record.steps, -record.loss) > (best.steps, -best.loss):
            self._best = record
            genotype = to_genotype(self._space, record.params)
            figure = draw_activation(Activation(genotype), None, title=f"best until trial {record.number}")
            self._writer.add_image("function", pixels(figure), record.number, dataformats="HWC")
            self._writer.add_text("formula", describe_function(genotype), record.number)
        assert self._best is not None
        for name, value in {
            "loss": record.loss,
            "best": self._best.loss,
            "steps": record.steps,
            "steps_of_all": self._steps,
        }.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"trial/{name}", value, record.number)

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()

    def __enter__(self) -> TrialsBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_writer(directory: Path, purge_step: int | None = None) -> SummaryWriter:
    _let_writers_end_quietly()
    with without_tensorflow():
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(directory), purge_step=purge_step)


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
def without_tensorflow() -> Iterator[None]:
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
