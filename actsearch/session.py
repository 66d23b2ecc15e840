"""The verb search: it searches, draws what it found, and compares it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
from torch import Tensor

from actsearch import api
from actsearch.activation import Activation
from actsearch.advancing import Advancing
from actsearch.build import Experiment, build
from actsearch.compare import DISCOVERED, Contestant, check_smoothness, fresh_task
from actsearch.compare.ranks import LEAST
from actsearch.compare.records import plain as plain_data
from actsearch.config import SearchConfig
from actsearch.errors import SettingsError
from actsearch.execution import Execution
from actsearch.genotype import Genotype
from actsearch.ops import registry
from actsearch.process import prepare, say, stoppable, tell, voice
from actsearch.ranks import is_rank_zero, part
from actsearch.report.comparison import markdown
from actsearch.report.plots import draw_activation, save
from actsearch.report.progress import SearchProgress
from actsearch.report.tensorboard import comparison_scores, log_scores
from actsearch.report.terminal import families
from actsearch.reporting import reported_when_stopped, write_report
from actsearch.run import SUMMARY, RunDirectory
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.checkpoint import checkpoints
from actsearch.search.refine import Refinement
from actsearch.search.strategies import TrialRecord
from actsearch.search.strategies import log as trials_log
from actsearch.seeds import seed_all
from actsearch.space import SearchSpace
from actsearch.together import Together
from actsearch.transfer import as_discovered, controls, retrain_all
from actsearch.trials import gradient_steps, may_train_on, search_by_trials
from actsearch.work import under_way


def search(config: SearchConfig, resume: Path | None) -> None:
    """Search, draw, compare; everything lies in the run directory when this returns."""
    prepare(config.trainer)
    space = SearchSpace.load(config.space)
    others = controls(config.retraining, space)  # whatever is wrong with them is told before the search
    place = Place(resume)
    with reported_when_stopped(lambda: place.path if is_rank_zero() else None), stoppable(place.how_to_go_on):
        experiment = build(config)
        if config.compare.enabled and not config.compare.force:
            check_smoothness(experiment.build_task, others)
        # Of a few functions no correlation is told; and those of trials each cost another trial.
        drawn = random_functions(others) if config.compare.enabled else {}
        worth = config.strategy == "gradient" or len(drawn) + 1 >= LEAST
        found = find(config, space, experiment, place, drawn if worth else {})
        part()
        if not is_rank_zero():
            return
        picture = _show_found(found)
        if config.compare.enabled:
            _compare_found(config, experiment, found, others)
    _show_paths(found.run, picture, config)


@dataclass
class Place:
    """Where a search is written: the run to go on with, or None until it has one."""

    path: Path | None = None

    @property
    def can_go_on(self) -> bool:
        """Whether a search of any strategy has left there what it can go on with."""
        path = self.path
        if path is None or not (path / "space.yaml").is_file():
            return False
        return bool(checkpoints(path / "checkpoints")) or (path / trials_log.FILE).is_file()

    def how_to_go_on(self) -> str:
        """What to type after a kill."""
        if not self.can_go_on:
            return "there is no checkpoint yet: start it again"
        return f"go on with: actsearch search --resume {self.path}"


def latest(config: SearchConfig) -> Path | None:
    """The latest run in run.root/run.name that can go on; None if there is none.

    Raises SettingsError if it is of other settings than `config`.
    """
    folder = Path(config.run.root) / (config.run.name or SearchSpace.load(config.space).name)
    runs = [path for path in sorted(folder.glob("*")) if (path / "config.yaml").is_file() and Place(path).can_go_on]
    if not runs:
        return None
    there, here = RunDirectory(runs[-1]).read_config(), config.to_dict()
    if different := sorted(_differing(there, here)):
        raise SettingsError(
            f"{runs[-1]} is of other settings ({', '.join(different[:3])}), so it cannot be gone on with: give another "
            "--run.name, or leave out --resume auto"
        )
    return runs[-1]


# Where and how a search runs; everything else must be the same when it goes on.
_FREE = ("run", "trainer", "data.root", "data.num_workers", "data.device")


def _differing(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that decide a search and differ; what `there` does not tell is the same."""
    for key, value in here.items():
        name = prefix + key
        other = there.get(key, value)
        if name in _FREE or other == value:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from _differing(other, value, f"{name}.")
        else:
            yield name


@dataclass(frozen=True)
class Found:
    """What a search of any strategy found.

    Attributes:
        run: its directory.
        genotypes: by cell.
        refinements: what the local search did, by cell.
        inputs: sample of the inputs of the activation sites, 1-d float32.
        loss: by which the function was chosen, on α's part.
        losses: on α's part, of the found function and of others that were measured the same way, by contestant.
        steps: training steps that it took; see `StepBudget`.
        budget: the most that the gradient search with these settings may take.
    """

    run: RunDirectory
    genotypes: Mapping[str, Genotype]
    refinements: Mapping[str, Refinement]
    inputs: Tensor
    loss: float
    losses: Mapping[str, float]
    steps: int
    budget: int


def find(
    config: SearchConfig,
    space: SearchSpace,
    experiment: Experiment,
    place: Place,
    measured: Mapping[str, Genotype],
    aside: bool = False,
) -> Found:
    """Search by the strategy of `config`, in a new run directory or going on with `place`; it is then that of the run.

    `measured`: functions of the space, by name, that are measured after the search as it measured its own: under the
    weights of a gradient search, or each by a trial, whose steps do not count.
    `aside`: as one of several, of which no more is told than how far it is.
    """
    started, resumed = time.perf_counter(), place.path is not None
    by = _by_gradient if config.strategy == "gradient" else _by_trials
    found = by(config, space, experiment, place, measured, aside)
    facts = {
        "strategy": config.strategy,
        "seed": config.search.seed,
        "functions": {name: genotype.formula for name, genotype in found.genotypes.items()},
        "loss": found.loss,
        "losses": found.losses,
        "steps": found.steps,
        "budget": found.budget,
        # Of a search in two parts the clock knows the second only.
        "seconds": None if resumed else round(time.perf_counter() - started, 3),
    }
    if is_rank_zero():
        found.run.write_json(SUMMARY, plain_data(facts))
    return found


def random_functions(contestants: Sequence[Contestant]) -> dict[str, Genotype]:
    """Those that were drawn from the space, by name."""
    return {c.name: c.genotype for c in contestants if c.kind == "random" and c.genotype is not None}


def _by_gradient(
    config: SearchConfig,
    space: SearchSpace,
    experiment: Experiment,
    place: Place,
    measured: Mapping[str, Genotype],
    aside: bool,
) -> Found:
    seed_all(config.search.seed)
    watcher = _Watcher(config, space, place, aside)
    with ExitStack() as within:
        if aside:
            title = f"gradient search, seed {config.search.seed}"
            shown: pl.Callback = Advancing(within.enter_context(under_way(title, config.search.epochs, "epochs")))
        else:
            shown = SearchProgress(voice)
        result = api.search(
            experiment.build_task(),
            experiment.data,
            space=space,
            run_root=config.run.root,
            name=config.run.name,
            resume=place.path,
            callbacks=[watcher, shown],
            trainer=config.trainer.options(),
            execution=Execution(**config.trainer.execution()),
            config=config.to_dict(),
            measured=measured,
            **config.search.to_dict(),
        )
    loader, world = experiment.data.train_dataloader(), config.trainer.devices * config.trainer.num_nodes
    ops = {op for cell in result.snapshot.cells.values() for op in cell.genotype.tree.ops()}
    trains_on = any(config.search.level_of(p) == "alpha" for op in ops for p in registry[op].parameters)
    refined = [r.loss for r in result.refinements.values()]
    return Found(
        RunDirectory(result.run_dir),
        result.genotypes,
        result.refinements,
        result.inputs,
        refined[-1] if refined else result.snapshot.losses.get("val", math.nan),
        result.losses,
        gradient_steps(loader, config.search, space, trains_on, world).total,
        gradient_steps(loader, config.search, space, may_train_on(config.search, space), world).total,
    )


def _by_trials(
    config: SearchConfig,
    space: SearchSpace,
    experiment: Experiment,
    place: Place,
    measured: Mapping[str, Genotype],
    aside: bool,
) -> Found:
    # Functions are trained as they are, as in the cell of a gradient search.
    retraining = dataclasses.replace(config.retraining, gain="none", compile=False)
    # What ends or averages a whole training has no part in a search.
    training = {**experiment.build_task.training, "lbfgs_steps": 0, "ema": 0.0}
    fresh = dataclasses.replace(experiment.build_task, training=training)

    def build_task(genotype: Genotype) -> pl.LightningModule:
        contestant = as_discovered(genotype, retraining)
        seed, force = config.search.seed, config.search.force
        return fresh_task(fresh, experiment.data, contestant, seed, force)[0]

    resumed = place.path is not None

    def started(path: Path) -> None:
        place.path = path
        if not aside:
            tell(
                "search_started",
                f"{config.model.name} on {config.data.name}: {config.strategy} search in space {space.name} "
                f"({space.size:,} functions), each trained from scratch\nrun directory: {path}",
                **_start(config, space, path, resumed),
            )

    def told(record: TrialRecord, steps: int, budget: int) -> None:
        if not aside:
            ending = ", stopped" if record.pruned else ""
            tell(
                "trial",
                f"  {steps}/{budget} steps  trial {record.number}: loss {record.loss:.4f} after {record.steps} steps"
                f"{ending}: {record.formula}",
                number=record.number,
                loss=record.loss,
                steps=record.steps,
                pruned=record.pruned,
                formula=record.formula,
                steps_done=steps,
                budget=budget,
            )

    result = search_by_trials(
        build_task,
        experiment.data,
        strategy=config.strategy,
        space=space,
        settings=config.search,
        trials=config.trials,
        run_root=config.run.root,
        name=config.run.name,
        resume=place.path,
        trainer=config.trainer.options(),
        execution=Execution(**config.trainer.execution()),
        config=config.to_dict(),
        measured=measured,
        told=told,
        started=started,
    )
    run, genotypes = RunDirectory(result.run_dir), {"network": result.genotype}
    loss = result.best.loss
    losses = {DISCOVERED: loss, **result.losses}
    return Found(run, genotypes, {}, result.inputs, loss, losses, result.steps, result.budget.total)


def _start(
    config: SearchConfig, space: SearchSpace, run: Path | None, resumed: bool, sites: int | None = None
) -> dict[str, Any]:
    """What programs are told when a search begins."""
    return {
        "run": run,
        "strategy": config.strategy,
        "space": space.name,
        "functions": space.size,
        "model": config.model.name,
        "data": config.data.name,
        "sites": sites,
        "resumed": resumed,
    }


class _Watcher(pl.Callback):
    """Tells how a gradient search begins, and remembers where it is written."""

    def __init__(self, config: SearchConfig, space: SearchSpace, place: Place, aside: bool) -> None:
        self.config = config
        self.space = space
        self.place = place
        self.aside = aside
        self.resumed = place.path is not None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Together):
                self.place.path = callback.path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, BilevelSearch)
        if self.aside:
            return
        sites = sum(len(cell.site_names) for cell in pl_module._cells())
        tell(
            "search_started",
            f"{self.config.model.name} on {self.config.data.name}: {sites} activation sites now hold the mixed cell of "
            f"space {self.space.name} ({self.space.size:,} functions)\nrun directory: {self.place.path}",
            **_start(self.config, self.space, self.place.path, self.resumed, sites),
        )


def _show_found(found: Found) -> Path:
    """Print and draw the formulas; the picture's path."""
    for name, genotype in found.genotypes.items():
        title = "found" if len(found.genotypes) == 1 else name
        lines = [f"\n{title}: f(x) = {Activation(genotype).extra_repr()}", f"  {families(genotype)}"]
        if genotype.sites:
            lines.append(f"  parameters are means over {len(genotype.sites)} sites; genotype.json has those of each")
        file = found.run.genotype if len(found.genotypes) == 1 else found.run.path / f"genotype.{name}.json"
        facts = {"cell": name, "formula": genotype.formula, "genotype": file, "loss": found.loss}
        tell("found", "\n".join(lines), **facts)
        refinement = found.refinements.get(name)
        if refinement is not None:
            better = refinement.loss < refinement.start_loss
            line = (
                f"  validation loss under the search's weights {refinement.start_loss:.4g} → {refinement.loss:.4g} by "
                f"local search ({refinement.evaluations} functions measured)"
            )
            tell(
                "refined",
                line if better else "",
                cell=name,
                loss_before=refinement.start_loss,
                loss_after=refinement.loss,
                evaluations=refinement.evaluations,
            )
        suffix = "" if len(found.genotypes) == 1 else f".{name.replace('/', '_')}"
        drawn = draw_activation(Activation(genotype), found.inputs)
        picture = save(drawn, found.run.figures / f"activation{suffix}.png")
    return picture


def _show_paths(run: RunDirectory, picture: Path, config: SearchConfig) -> None:
    paths = {"report": write_report(run.path), "genotype": run.genotype, "picture": picture}
    if config.strategy != "gradient":
        paths["trials"] = run.path / trials_log.FILE
    lines = [f"{name:<12} {path}" for name, path in paths.items()]
    lines.append(f"tensorboard  actsearch tensorboard {run.path}")
    tell("paths", "\n" + "\n".join(lines), paths={"run": run.path, **paths})


def _compare_found(config: SearchConfig, experiment: Experiment, found: Found, others: Sequence[Contestant]) -> None:
    if len(found.genotypes) != 1:
        say("several functions were found: no comparison, which needs one")
        return
    settings = config.retraining
    discovered = as_discovered(next(iter(found.genotypes.values())), settings)
    contestants = [discovered, *others]
    comparison = retrain_all(config, settings, experiment, contestants, found.run.path, losses=found.losses)
    title = f"{config.model.name} on {experiment.data.title}"
    log_scores(found.run.path, comparison_scores(comparison), found.run.read_config(), text=markdown(comparison, title))
