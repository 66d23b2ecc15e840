"""The verb search: it searches, draws what it found, and compares it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl

from actsearch import api
from actsearch.activation import Activation
from actsearch.build import Experiment, build
from actsearch.compare import Contestant, check_smoothness
from actsearch.config import SearchConfig
from actsearch.execution import Execution
from actsearch.genotype import Genotype
from actsearch.process import console, prepare, say, stoppable
from actsearch.report.plots import draw_activation, save
from actsearch.report.progress import SearchProgress
from actsearch.report.terminal import families
from actsearch.run import RunDirectory
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.checkpoint import SearchCheckpoint, checkpoints
from actsearch.seeds import seed_all
from actsearch.space import SearchSpace
from actsearch.transfer import as_discovered, controls, retrain_all


def search(config: SearchConfig, resume: Path | None) -> None:
    """Search, draw, compare; everything lies in the run directory when this returns."""
    prepare(config.trainer)
    space = SearchSpace.load(config.space)
    others = controls(config.retraining, space)  # whatever is wrong with them is told before the search
    watcher = _Watcher(config, space, resume)
    with stoppable(watcher.how_to_go_on):
        experiment = build(config)
        if config.compare.enabled and not config.compare.force:
            check_smoothness(experiment.build_task, others)
        seed_all(config.search.seed)
        result = api.search(
            experiment.build_task(),
            experiment.data,
            space=space,
            run_root=config.run.root,
            name=config.run.name,
            resume=resume,
            callbacks=[watcher] if config.run.quiet else [watcher, SearchProgress(console=console)],
            trainer=config.trainer.options(),
            execution=Execution(**config.trainer.execution()),
            config=config.to_dict(),
            **config.search.to_dict(),
        )
        run = RunDirectory(result.run_dir)
        picture = _show_found(result, run)
        if config.compare.enabled:
            _compare_found(config, experiment, result.genotypes, others, run)
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


def _show_found(result: api.SearchResult, run: RunDirectory) -> Path:
    """Print and draw the formulas; the picture's path."""
    for name, genotype in result.genotypes.items():
        title = "found" if len(result.genotypes) == 1 else name
        say(f"\n{title}: f(x) = {Activation(genotype).extra_repr()}")
        say(f"  {families(genotype)}")
        if genotype.sites:
            say(f"  parameters are means over {len(genotype.sites)} sites; genotype.json has those of each")
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


def _compare_found(
    config: SearchConfig,
    experiment: Experiment,
    genotypes: Mapping[str, Genotype],
    others: Sequence[Contestant],
    run: RunDirectory,
) -> None:
    if len(genotypes) != 1:
        say("several functions were found: no comparison, which needs one")
        return
    settings = config.retraining
    found = as_discovered(next(iter(genotypes.values())), settings)
    retrain_all(config, settings, experiment, [found, *others], run.path, config.run.quiet)
