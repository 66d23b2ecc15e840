"""The public search: puts the rooms together, from a task and its data to an activation in a run directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from actsearch.activation import Activation
from actsearch.cell.mixed import MixedCell
from actsearch.cell.relaxation import make_relaxation
from actsearch.compare import DISCOVERED
from actsearch.data.placement import PlaceData
from actsearch.endings import explained
from actsearch.errors import ActsearchError, GenotypeError, RunError, SmoothnessError, TaskError
from actsearch.execution import Execution, make_trainer
from actsearch.genotype import Genotype
from actsearch.lock import locked
from actsearch.ops import registry
from actsearch.ranks import is_rank_zero
from actsearch.report.progress import SearchProgress
from actsearch.report.tensorboard import TensorBoardObserver, log_scores
from actsearch.run import RunDirectory
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.checkpoint import SearchCheckpoint, checkpoints, latest_checkpoint
from actsearch.search.loader import PairLoader, check_template, validation_loader
from actsearch.search.monitor import Observer, Snapshot
from actsearch.search.refine import Refinement, refine
from actsearch.search.settings import SearchSettings
from actsearch.search.split import labels_of, split
from actsearch.seeds import mix_seed
from actsearch.space import SearchSpace
from actsearch.swap import Site, SwapReport, swap, unswap
from actsearch.swap.smoothness import least_smoothness
from actsearch.together import Together, check_started, is_loss, together
from actsearch.work import Work, heard_by, under_way

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotypes: by cell; a single one named `network` unless the space shares its cells otherwise.
        run_dir: where everything was written.
        snapshot: the last epoch's, with samples of the pre-activations.
        refinements: what the local search did, by cell.
        swap_report: which activations of the model were searched.
        losses: of the discrete functions that were asked for (`measured`), and of the found one as `discovered`, over
            all validation batches under the search's weights; empty if there are several cells.
    """

    genotypes: Mapping[str, Genotype]
    run_dir: Path
    snapshot: Snapshot
    refinements: Mapping[str, Refinement]
    swap_report: SwapReport
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def genotype(self) -> Genotype:
        """The discovered function. Raises GenotypeError if there are several: see `genotypes`."""
        if len(self.genotypes) != 1:
            raise GenotypeError(f"this search found {len(self.genotypes)} functions; take one of `genotypes` by name")
        return next(iter(self.genotypes.values()))

    @property
    def activation(self) -> Activation:
        """The discovered function as a new module."""
        return Activation(self.genotype)

    @property
    def formula(self) -> str:
        """The canonical formula."""
        return self.genotype.formula

    @property
    def inputs(self) -> torch.Tensor:
        """Sample of the inputs that the sites really saw in the last epoch, 1-d float32."""
        return self.snapshot.inputs

    def plot(self) -> Figure:
        """The function with its derivatives over the inputs that the network produced."""
        from actsearch.report.plots import draw_activation

        return draw_activation(self.activation, self.inputs)


def search(
    task: pl.LightningModule,
    datamodule: Any = None,
    *,
    space: SearchSpace | str | Path | Mapping[str, Any] = "grafs",
    run_root: str | Path = "runs",
    name: str | None = None,
    resume: str | Path | None = None,
    observers: Sequence[Observer] | None = None,
    callbacks: Sequence[pl.Callback] | None = None,
    trainer: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
    measured: Mapping[str, Genotype] | None = None,
    **settings: Any,
) -> SearchResult:
    """Find an activation function for `task` by a bilevel search.

    Args:
        task: any LightningModule whose `training_step` returns a loss; its activations are replaced for the search, and
            put back afterwards.
        datamodule: a LightningDataModule, or a training DataLoader; default: the task's own `train_dataloader`. The
            training set is split (`arch_fraction`); test data is not touched.
        space: a SearchSpace, or its name, path or content.
        run_root, name: the run goes to run_root/name/DATE; default name: that of the space.
        resume: continue this run directory instead, to the same bits on CPU; the other arguments must be as they were.
        observers: told a Snapshot after every epoch; default: TensorBoard files in the run directory.
        callbacks: given to the Trainer, and told like observers if they can be called; default: SearchProgress.
        trainer: further arguments of the pytorch_lightning.Trainer, such as accelerator, devices, precision.
        execution: how the network is run, such as Execution(channels_last=True).
        include, exclude: shell patterns of the names of activation sites.
        config: what to save as config.yaml; default: the settings.
        measured: functions of the space whose loss is measured after the search as well, by name; their parameters are
            those of the searched cell.
        settings: the fields of SearchSettings.

    Raises an ActsearchError in one line for anything that the caller can mend.
    """
    chosen = SearchSettings.from_dict(settings)
    loaded = SearchSpace.load(space)
    execution = execution or Execution()
    execution.check(str((trainer or {}).get("accelerator", "auto")), chosen.accumulate, chosen.order)
    loader = _train_loader(task, datamodule)
    cells, report = _swap_in_cells(task, loaded, chosen, include, exclude)
    try:
        saved = dict(config) if config is not None else {"search": chosen.to_dict()}
        with ExitStack() as within:
            if is_rank_zero():
                run = RunDirectory.begin(loaded, saved, run_root, name, resume)
                within.enter_context(locked(run.path))
            else:  # of several processes one writes; what the others would is thrown away
                run = RunDirectory.begin(loaded, saved, within.enter_context(TemporaryDirectory()), name, None)
            within.enter_context(execution.applied(task))
            if callbacks is None:
                progress = SearchProgress()
                callbacks = [progress]
                within.enter_context(heard_by(progress.voice))
            return _run(
                task,
                datamodule,
                loader,
                loaded,
                chosen,
                run,
                None if resume is None else RunDirectory(resume),
                cells,
                report,
                observers,
                callbacks,
                trainer,
                measured or {},
                "actsearch search --resume" if config is not None else "actsearch.search with resume =",
            )
    finally:
        unswap(task, report)


def _run(
    task: pl.LightningModule,
    datamodule: Any,
    loader: DataLoader[Any],
    space: SearchSpace,
    settings: SearchSettings,
    run: RunDirectory,
    resumed: RunDirectory | None,
    cells: Mapping[str, MixedCell],
    report: SwapReport,
    observers: Sequence[Observer] | None,
    callbacks: Sequence[pl.Callback],
    trainer_options: Mapping[str, Any] | None,
    measured: Mapping[str, Genotype],
    resumes: str,
) -> SearchResult:
    bilevel = BilevelSearch(task, cells, settings)
    weights, arch = split(
        len(loader.dataset),  # type: ignore[arg-type]
        settings.arch_fraction,
        settings.seed,
        labels_of(loader.dataset),
    )
    pairs = PairLoader(
        loader,
        weights.tolist(),
        arch.tolist(),
        settings.seed,
        lambda: bilevel.current_epoch,
        limit=settings.epoch_batches,
    )
    bilevel.validation = validation_loader(datamodule, loader, arch, settings.seed, settings.validation_batches)
    if not all(cell.op_parameters.is_complete for cell in cells.values()):
        bilevel.meet(next(iter(bilevel.validation)))
    checkpoint = None if resumed is None else latest_checkpoint(resumed.checkpoints, bilevel.objection)
    conditions = None
    if observers is None:
        conditions = run.read_config()
        observers = [_tensorboard(run, checkpoint)]
    # A progress display sees batches as a callback, and epochs as an observer.
    observers = [*observers, *(callback for callback in callbacks if callable(callback))]
    if checkpoint is not None:
        run.rewind(_epochs_done(checkpoint))
    last: list[Snapshot] = []
    bilevel.observers = [run.record, last.append, *observers]
    peers = Together(run.path)
    trainer = make_trainer(
        {
            "max_epochs": settings.epochs,
            "logger": False,
            "enable_checkpointing": True,  # ours is a Checkpoint callback too
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **(trainer_options or {}),
            "callbacks": [peers, PlaceData(datamodule), SearchCheckpoint(run.checkpoints), *callbacks],
        }
    )
    check_started(trainer)

    def how_to_go_on() -> str:
        if not checkpoints(peers.path / run.checkpoints.name):
            return "there is no checkpoint yet: start it again"
        return f"go on with: {resumes} {peers.path}"

    with together(trainer, how_to_go_on):
        try:
            with explained(trainer):
                trainer.fit(bilevel, train_dataloaders=pairs, ckpt_path=checkpoint, weights_only=True)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            if checkpoint is None or bilevel.started or isinstance(error, ActsearchError) or is_loss(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise RunError(
                f"checkpoint {checkpoint} cannot be restored ({reason}); delete it, or start again"
            ) from error
        finally:
            pairs.close()
        bilevel.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        snapshot = last[-1] if last else bilevel.measure(settings.epochs)
        genotypes, refinements = _finish(bilevel, space, settings, run)
        for observer in observers:
            close = getattr(observer, "close", None)
            if close is not None:
                close()
        found = {DISCOVERED: next(iter(genotypes.values())), **measured}
        losses = _losses(bilevel, found) if len(genotypes) == 1 else {}
        bilevel.cpu()
        if conditions is not None:
            scores = {
                "search_loss": snapshot.losses.get("val", math.nan),
                "discrete_loss": _discrete(refinements, losses),
            }
            log_scores(run.path, scores, conditions)
        result = SearchResult(genotypes, peers.path, snapshot, refinements, report, losses)
        run.write_inputs(result.inputs)
        trainer.strategy.barrier("actsearch found")
    return result


def _finish(
    bilevel: BilevelSearch, space: SearchSpace, settings: SearchSettings, run: RunDirectory
) -> tuple[dict[str, Genotype], dict[str, Refinement]]:
    """Refine each cell with the others at their best, and write the genotypes."""
    batches = _first(bilevel.validation, settings.refine.batches)
    cells = dict(zip(bilevel.cells, bilevel._cells(), strict=True))
    chosen: dict[str, Mapping[str, str]] = {name: cell.choice() for name, cell in cells.items()}
    refinements = {}
    for index, (name, cell) in enumerate(cells.items()):
        if not settings.refine.enabled:
            break

        with under_way("local search", settings.refine.evaluations, "functions") as work:

            def score(ops: Mapping[str, str], name: str = name, work: Work = work) -> float:
                loss = bilevel.score({**chosen, name: ops}, batches)
                work.advance()
                return loss

            refinements[name] = refine(
                space, chosen[name], score, cell.genotype, settings.refine, mix_seed(settings.seed, index)
            )
        chosen[name] = refinements[name].ops
    genotypes = {}
    for name, cell in cells.items():
        provenance: dict[str, Any] = {"run": run.path.name, "seed": settings.seed, "cell": name}
        if name in refinements:
            found = refinements[name]
            provenance["refined"] = {
                "loss_before": _finite(found.start_loss),
                "loss_after": _finite(found.loss),
                "evaluations": found.evaluations,
                "formula_before": cell.genotype().formula,
            }
        genotypes[name] = cell.genotype(chosen[name], provenance)
        path = run.genotype if len(cells) == 1 else run.path / f"genotype.{name}.json"
        genotypes[name].save(path)
    return genotypes, refinements


def _discrete(refinements: Mapping[str, Refinement], losses: Mapping[str, float]) -> float:
    """Loss of the function that was found; with several cells, after the last was refined."""
    refined = [found.loss for found in refinements.values()]
    return losses.get(DISCOVERED, refined[-1] if refined else math.nan)


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _losses(bilevel: BilevelSearch, genotypes: Mapping[str, Genotype]) -> dict[str, float]:
    """Losses of discrete functions in the one cell of a search, by name."""
    cell = next(iter(bilevel.cells))
    losses = {}
    with under_way("measuring functions under the search's weights", len(genotypes)) as work:
        for name, genotype in genotypes.items():
            losses[name] = bilevel.score({cell: {slot: choice.op for slot, choice in genotype.slots.items()}})
            work.advance()
    return losses


def _first(batches: Iterable[Any], n: int) -> list[Any]:
    found = []
    for batch in batches:
        found.append(batch)
        if len(found) == n:
            break
    return found


def _swap_in_cells(
    task: pl.LightningModule,
    space: SearchSpace,
    settings: SearchSettings,
    include: str | Iterable[str],
    exclude: str | Iterable[str],
) -> tuple[dict[str, MixedCell], SwapReport]:
    """A MixedCell at every activation site of `task`, by what the space shares them in."""
    cells: dict[str, MixedCell] = {}
    key_of: dict[str, Callable[[str], str]] = {
        "network": lambda site: "network",
        "block": lambda site: site.rpartition(".")[0].replace(".", "/") or "network",
        "site": lambda site: site.replace(".", "/"),
    }

    def factory(site: Site) -> nn.Module:
        key = key_of[space.sharing](site.name)
        if key not in cells:
            cells[key] = MixedCell(
                space,
                make_relaxation(settings.relaxation, **settings.relaxation_options),
                settings.evaluator,
                seed=mix_seed(settings.seed, len(cells)),
                warm=settings.warm,
                channel_axis=settings.channel_axis,
            )
        return cells[key].add_site(site.name)

    needed = -1 if settings.force else least_smoothness(task)
    has_warm = settings.warm_epochs if settings.warm_steps is None else settings.warm_steps
    if has_warm and registry[settings.warm].smoothness < needed:
        raise SmoothnessError(
            f"the warm start with {settings.warm} is not C^{needed}, as the model needs; set search.warm to a smooth "
            "one, such as tanh or silu, or search.force to true"
        )
    try:
        return cells, swap(task, factory, include=include, exclude=exclude, force=settings.force)
    except SmoothnessError as error:
        raise SmoothnessError(f"{str(error).rpartition(';')[0]}; or set search.force to true") from None


def _train_loader(task: pl.LightningModule, datamodule: Any) -> DataLoader[Any]:
    """The user's training loader. Raises TaskError if there is none, or if it would train on the test set."""
    if isinstance(datamodule, DataLoader):
        loader = datamodule
    else:
        source = datamodule if datamodule is not None else task
        if not hasattr(source, "train_dataloader"):
            raise TaskError(
                f"{type(source).__name__} has no train_dataloader; give a LightningDataModule or a DataLoader"
            )
        if isinstance(source, pl.LightningDataModule):
            source.prepare_data()
            source.setup("fit")
        try:
            loader = source.train_dataloader()
        except pl.utilities.exceptions.MisconfigurationException:
            raise TaskError(
                f"{type(source).__name__} defines no train_dataloader; give a LightningDataModule or a DataLoader"
            ) from None
    check_template(loader)
    test = getattr(datamodule, "test_set", None)
    if test is not None and loader.dataset is test:
        raise TaskError("the training loader reads the test set; a search must never see it")
    return loader


def _epochs_done(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _tensorboard(run: RunDirectory, checkpoint: Path | None) -> TensorBoardObserver:
    """Event files in the run directory; a resumed search goes on with the pictures of the epochs before."""
    if checkpoint is None:
        return TensorBoardObserver(run.path)
    history = [{name: cell["probabilities"] for name, cell in line["cells"].items()} for line in run.history()]
    return TensorBoardObserver(run.path, history, purge_epoch=_epochs_done(checkpoint) + 1)


__all__ = ["SearchResult", "checkpoints", "search"]
