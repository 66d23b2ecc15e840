"""The verbs of the command line that train: search, and compare."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch import api
from actsearch.activation import Activation
from actsearch.build import Experiment, build
from actsearch.compare import DISCOVERED, Budget, Comparison, Retraining, compare, of_genotype
from actsearch.config import SearchConfig
from actsearch.errors import Stopped
from actsearch.genotype import Genotype
from actsearch.report.comparison import describe, show_comparison, write
from actsearch.report.plots import draw_activation, save
from actsearch.report.progress import SearchProgress
from actsearch.report.terminal import make_console, plain
from actsearch.run import RunDirectory
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.checkpoint import SearchCheckpoint, checkpoints
from actsearch.seeds import seed_all
from actsearch.space import SearchSpace

console = make_console()


def say(text: str) -> None:
    """Print as it is: no markup, and paths and formulas in one line."""
    console.print(plain(text, console), markup=False, highlight=False, soft_wrap=True)


# -- search --------------------------------------------------------------------------------------------------------


def search(config: SearchConfig, resume: Path | None) -> None:
    """Search, draw, compare; everything lies in the run directory when this returns."""
    quiet_lightning()
    _set_threads(config)
    experiment = build(config)
    seed_all(config.search.seed)
    watcher = _Watcher(config, experiment.space, resume)
    with _stoppable(watcher.how_to_go_on):
        result = api.search(
            experiment.build_task(),
            experiment.data,
            space=experiment.space,
            run_root=config.run.root,
            name=config.run.name,
            resume=resume,
            callbacks=[watcher] if config.run.quiet else [watcher, SearchProgress(console=console)],
            trainer=config.trainer.options(),
            config=config.to_dict(),
            **config.search.to_dict(),
        )
        run = RunDirectory(result.run_dir)
        picture = _show_found(result, run)
        if config.compare.enabled:
            _compare_found(config, experiment, result.genotypes, run)
    _show_paths(run, picture, config)


class _Watcher(pl.Callback):
    """Tells how the search begins, and remembers where it is written."""

    def __init__(self, config: SearchConfig, space: SearchSpace, path: Path | None) -> None:
        self.config = config
        self.space = space
        self.path = path

    def how_to_go_on(self) -> str:
        """What to type after a kill."""
        if self.path is None or not checkpoints(self.path / "checkpoints"):
            return "there is no checkpoint yet: start it again"
        return f"go on with: actsearch search --resume {self.path}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SearchCheckpoint):
                self.path = callback.directory.parent

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, BilevelSearch)
        if self.config.run.quiet or not trainer.is_global_zero:
            return
        sites = sum(len(cell.site_names) for cell in pl_module._cells())
        say(
            f"{self.config.model.name} on {self.config.data.name}: {sites} activation sites now hold the mixed cell of "
            f"space {self.space.name} ({self.space.size:,} functions)\nrun directory: {self.path}"
        )


@contextmanager
def _stoppable(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM become Stopped, which says how to go on."""
    try:
        yield
    except SIGTERMException:
        raise Stopped(f"told to end (SIGTERM); {how_to_go_on()}", by_user=False) from None
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; {how_to_go_on()}", by_user=True) from None
    except SystemExit as ending:
        if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning makes one of the other
            raise Stopped(f"interrupted; {how_to_go_on()}", by_user=True) from None
        raise


def _show_found(result: api.SearchResult, run: RunDirectory) -> Path:
    """Print and draw the formulas; the picture's path."""
    for name, genotype in result.genotypes.items():
        title = "found" if len(result.genotypes) == 1 else name
        say(f"\n{title}: f(x) = {Activation(genotype).extra_repr()}")
        refinement = result.refinements.get(name)
        if refinement is not None and refinement.loss < refinement.start_loss:
            say(
                f"  validation loss under the search's weights {refinement.start_loss:.4g} → {refinement.loss:.4g} by "
                f"local search ({refinement.evaluations} functions measured)"
            )
        suffix = "" if len(result.genotypes) == 1 else f".{name.replace('/', '_')}"
        picture = save(draw_activation(Activation(genotype), result.inputs), run.figures / f"activation{suffix}.png")
    return picture


def _show_paths(run: RunDirectory, picture: Path, config: SearchConfig) -> None:
    say(f"\ngenotype     {run.genotype}\npicture      {picture}")
    say(f"tensorboard  tensorboard --logdir {config.run.root}")


# -- comparison ----------------------------------------------------------------------------------------------------


def _compare_found(
    config: SearchConfig, experiment: Experiment, genotypes: Mapping[str, Genotype], run: RunDirectory
) -> None:
    if len(genotypes) != 1:
        say("several functions were found: no comparison, which needs one")
        return
    found = next(iter(genotypes.values()))
    _compare(config, experiment, found, range(config.compare.seeds), config.compare_epochs, run.path)


def compare_run(
    path: Path,
    seeds: int,
    first_seed: int | None,
    epochs: int | None,
    activations: Sequence[str] | None,
    random: int | None,
    config: SearchConfig,
) -> None:
    """Retrain what a finished run found and standard activations, with seeds that its own comparison did not use."""
    quiet_lightning()
    _set_threads(config)
    run = RunDirectory.open(path)
    found = Genotype.load(run.genotype)
    chosen = dataclasses.replace(
        config.compare,
        seeds=seeds,
        epochs=epochs or config.compare.epochs,
        activations=config.compare.activations if activations is None else list(activations),
        random=config.compare.random if random is None else random,
    )
    first = config.compare.seeds if first_seed is None else first_seed
    config = dataclasses.replace(config, space=str(run.path / "space.yaml"), compare=chosen)
    experiment = build(config)
    # Results are looked up by activation and seed, so each length has a folder of its own.
    directory = run.path / "comparisons" / f"epochs-{config.compare_epochs}"
    with _stoppable(lambda: "what is done is kept: give the same command again"):
        _compare(config, experiment, found, range(first, first + seeds), config.compare_epochs, directory)
    say(f"\nresults      {directory}")


def _compare(
    config: SearchConfig,
    experiment: Experiment,
    found: Genotype,
    seeds: range,
    epochs: int,
    directory: Path,
) -> Comparison:
    contestants = [of_genotype(found, DISCOVERED), *experiment.controls]
    total = len(contestants) * len(seeds)
    if not config.run.quiet:
        say(
            f"\ncomparing {len(contestants)} activations, {epochs} epochs each from scratch, seeds "
            f"{seeds.start} to {seeds.stop - 1}, on the test set of {experiment.data.title}"
        )
    done = 0

    def report(result: Retraining) -> None:
        nonlocal done
        done += 1
        if not config.run.quiet:
            say(f"  {done}/{total}  {describe(result)}")

    comparison = compare(
        experiment.build_task,
        experiment.data,
        contestants,
        seeds=list(seeds),
        budget=Budget(epochs),
        directory=directory,
        trainer=config.trainer.options(),
        report=report,
        context=_context(config),
    )
    write(comparison, directory)
    say("")
    show_comparison(comparison, console)
    return comparison


def _context(config: SearchConfig) -> dict[str, Any]:
    """What decides the results of a retraining; not where the data lies."""
    found = {part: dict(config.to_dict()[part]) for part in ("data", "model", "training")}
    for name in ("root", "num_workers"):
        del found["data"][name]
    return found


# -- the process ---------------------------------------------------------------------------------------------------


def _set_threads(config: SearchConfig) -> None:
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)


def quiet_lightning() -> None:
    """Keep Lightning's banners and advertisements out of the terminal; its warnings stay, and so do our own lines."""

    def ours_or_serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.getMessage().startswith("skipped")

    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(ours_or_serious)
    for pattern in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*have no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)
