"""Transfer: retrain what was found and its controls on any model and data, compare them, and show what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actsearch.build import Experiment, build
from actsearch.compare import (
    DISCOVERED,
    Budget,
    Comparison,
    Contestant,
    Retraining,
    compare,
    contestant,
    standard_contestants,
)
from actsearch.config import RetrainConfig, SearchConfig, TransferConfig, plain
from actsearch.errors import SettingsError
from actsearch.execution import Execution
from actsearch.process import console, prepare, say, stoppable
from actsearch.report.comparison import describe, show_comparison, write
from actsearch.run import RunDirectory
from actsearch.space import SearchSpace


def transfer(sources: Sequence[str], config: TransferConfig, name: str, out: Path | None) -> Comparison:
    """Retrain the functions that `sources` mean, and the controls, as `config` says.

    Args:
        sources: run directories, genotype files, `zoo:NAME`.
        config: data, model, training and comparison.
        name: of the configuration, for the folder of the results.
        out: that folder; default: transfer/`name` in the run directory, or in `runs` if there is not just one run.

    Raises an ActsearchError for anything that the caller can mend, before anything is trained.
    """
    prepare(config.trainer)
    runs = [RunDirectory.open(source) for source in sources if Path(source).is_dir()]
    found = [as_discovered(source, config.compare, alone=len(sources) == 1) for source in sources]
    space = _space(config, runs, found)
    contestants = [*found, *controls(config.compare, space)]
    experiment = build(config)
    directory = out or (runs[0].path if len(sources) == len(runs) == 1 else Path("runs")) / "transfer" / name
    with stoppable(lambda: "what is done is kept: give the same command again"):
        comparison = retrain_all(config, config.compare, experiment, contestants, directory)
    say(f"\nresults      {directory}")
    return comparison


def as_discovered(source: Any, settings: RetrainConfig, alone: bool = True) -> Contestant:
    """What `source` means as a discovered function; named by its origin unless it is `alone`."""
    name = DISCOVERED if alone else None
    if not alone and Path(source).is_dir():
        name = "/".join(Path(source).resolve().parts[-2:])
    return contestant(
        source,
        name,
        "discovered",
        parameters=settings.parameters,
        channel_axis=settings.channel_axis,
        gain=settings.gain,
        compiled=settings.compile,
        lr_factor=settings.lr_factor,
    )


def controls(settings: RetrainConfig, space: SearchSpace | None) -> list[Contestant]:
    """Standard activations, and random functions of `space`."""
    return standard_contestants(
        settings.activations,
        space,
        settings.random,
        settings.random_seed or 0,
        parameters=settings.parameters,
        channel_axis=settings.channel_axis,
        gain=settings.gain,
        compiled=settings.compile,
        lr_factor=settings.lr_factor,
    )


def _space(config: TransferConfig, runs: Sequence[RunDirectory], found: Sequence[Contestant]) -> SearchSpace | None:
    """Where random functions are drawn from: what was asked for, else the space of the first function."""
    if config.space is not None:
        return SearchSpace.load(config.space)
    if runs:
        return SearchSpace.load(runs[0].read_space())
    names = [c.genotype.space.get("name") for c in found if c.genotype is not None]
    known = [name for name in names if name in SearchSpace.names()]
    if not known and config.compare.random:
        raise SettingsError(
            "random controls need a search space, and the function does not tell its own: give --space NAME, "
            "or --compare.random 0"
        )
    return SearchSpace.load(known[0]) if known else None


def retrain_all(
    config: SearchConfig | TransferConfig,
    settings: RetrainConfig,
    experiment: Experiment,
    contestants: Sequence[Contestant],
    directory: Path,
    quiet: bool = False,
) -> Comparison:
    """Retrain every contestant for every seed, write all results to `directory`, and show the table."""
    if settings.epochs is None:
        raise SettingsError("a transfer needs its length: set compare.epochs")
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    total = len(contestants) * len(seeds)
    if not quiet:
        say(
            f"\ncomparing {len(contestants)} activations in {config.model.name}, {settings.epochs} epochs each from "
            f"scratch, seeds {seeds.start} to {seeds.stop - 1}, on the test set of {experiment.data.title}"
        )
    done = 0

    def report(result: Retraining) -> None:
        nonlocal done
        done += 1
        if not quiet:
            say(f"  {done}/{total}  {describe(result)}")

    comparison = compare(
        experiment.build_task,
        experiment.data,
        contestants,
        seeds=list(seeds),
        budget=Budget(
            settings.epochs,
            accumulate=settings.accumulate or 1,
            gradient_clip=settings.gradient_clip,
            epoch_batches=settings.epoch_batches,
            slope_recovery=settings.slope_recovery or 0.0,
        ),
        directory=directory,
        trainer=config.trainer.options(),
        execution=Execution(**config.trainer.execution()),
        report=report,
        jobs=settings.jobs,
        context=_context(config, settings),
    )
    write(comparison, directory, f"{config.model.name} on {experiment.data.title}")
    say("")
    show_comparison(comparison, console)
    return comparison


def _context(config: SearchConfig | TransferConfig, settings: RetrainConfig) -> dict[str, Any]:
    """What decides the results, beside the functions and the budget: not where the data lies or how it is loaded."""
    whole = plain(config)
    data = {key: value for key, value in whole["data"].items() if key not in ("root", "num_workers", "device")}
    context = {"data": data, "model": whole["model"], "training": whole["training"]}
    return {**context, "compile": True} if settings.compile else context
