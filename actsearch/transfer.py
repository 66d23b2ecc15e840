"""Transfer: retrain what was found and its controls on any model and data, compare them, and show what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actsearch.build import Experiment, build
from actsearch.compare import (
    DISCOVERED,
    OWN,
    Budget,
    Comparison,
    Contestant,
    Retraining,
    compare,
    contestant,
    standard_contestants,
)
from actsearch.compare.adapted import SOURCES, is_adapted
from actsearch.compare.submitted import FOLDER as JOBS
from actsearch.config import RetrainConfig, SearchConfig, TransferConfig, plain
from actsearch.data.registry import KINDS
from actsearch.errors import SettingsError, UnknownNameError
from actsearch.execution import Execution
from actsearch.process import prepare, say, stoppable, tell, voice
from actsearch.report.comparison import describe, show_comparison, write
from actsearch.reporting import write_report
from actsearch.run import RunDirectory
from actsearch.space import SearchSpace


def transfer(
    sources: Sequence[str], config: TransferConfig, name: str, out: Path | None, adapt: Sequence[str] = ()
) -> Comparison:
    """Retrain the functions that `sources` mean, the model's own activations adapted, and the controls.

    Args:
        sources: run directories, genotype files, `zoo:NAME`.
        config: data, model, training and comparison.
        name: of the configuration, for the folder of the results.
        out: that folder; default: transfer/`name` in the run directory, or in `runs` if there is not just one run;
            without sources adapt/`name` in `runs`.
        adapt: such as `taafs:chebyshev` or `laaf:site`; see `actsearch.compare.contestant`. They are compared with the
            controls, to which the model's own activations as they are (`own`) are added.

    Raises an ActsearchError for anything that the caller can mend, before anything is trained.
    """
    prepare(config.trainer)
    if not sources and not adapt:
        raise SettingsError("nothing to transfer: name a run, a genotype file or zoo:NAME, or give --adapt")
    settings = with_channel_axis(config)
    runs = [RunDirectory.open(source) for source in sources if Path(source).is_dir()]
    found = [as_discovered(source, settings, alone=len(sources) == 1) for source in sources]
    adapted = [_as_adapted(source, settings) for source in dict.fromkeys(adapt) if source != OWN]
    space = _space(config, runs, found)
    if adapt and OWN not in settings.activations:
        settings = dataclasses.replace(settings, activations=[OWN, *settings.activations])
    if not found and space is None and settings.random:
        say("no random controls are drawn: what is adapted belongs to no search space; --space NAME gives one")
        settings = dataclasses.replace(settings, random=0)
    contestants = [*found, *adapted, *controls(settings, space)]
    in_run = len(sources) == len(runs) == 1
    where = (runs[0].path if in_run else Path("runs")) / ("transfer" if sources else "adapt")
    directory = out or where / name
    with stoppable(lambda: "what is done is kept: give the same command again"):
        experiment = build(config)
        comparison = retrain_all(config, settings, experiment, contestants, directory)
    RunDirectory(directory).write_environment()
    report = write_report(directory)
    tell(
        "paths",
        f"\nresults      {directory}\nreport       {report}",
        paths={"results": directory, "report": report},
    )
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


def _as_adapted(source: str, settings: RetrainConfig) -> Contestant:
    if not is_adapted(source):
        raise UnknownNameError("adaptation", source, SOURCES)
    return contestant(source, channel_axis=settings.channel_axis, lr_factor=settings.lr_factor)


def with_channel_axis(config: TransferConfig) -> RetrainConfig:
    """With the axis that holds the channels of tokens, points and atoms; in images it depends on the model."""
    kind = next((kind for kind, readers in KINDS.items() if config.data.name in readers), "images")
    if config.compare.channel_axis is not None or kind == "images":
        return config.compare
    return dataclasses.replace(config.compare, channel_axis=-1)


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
    if found and not known and config.compare.random:
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
    reference: str = DISCOVERED,
    losses: Mapping[str, float] | None = None,
) -> Comparison:
    """Retrain every contestant for every seed, write all results to `directory`, and show the table.

    `reference`, `losses`: see `compare`.
    """
    budget = budget_of(settings)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    total = len(contestants) * len(seeds)
    tell(
        "comparison_started",
        f"\ncomparing {len(contestants)} activations in {config.model.name}, {budget.epochs} epochs each from "
        f"scratch, seeds {seeds.start} to {seeds.stop - 1}, on the test set of {experiment.data.title}",
        activations=[one.name for one in contestants],
        seeds=list(seeds),
        epochs=budget.epochs,
        model=config.model.name,
        data=experiment.data.title,
        directory=directory,
    )
    if settings.submission is not None:
        say(f"  each is a job of its own; their files are in {directory / JOBS}")
    done = 0

    def report(result: Retraining) -> None:
        nonlocal done
        done += 1
        tell_retrained(result, f"  {done}/{total}  {describe(result)}", done, total)

    comparison = compare(
        experiment.build_task,
        experiment.data,
        contestants,
        seeds=list(seeds),
        budget=budget,
        directory=directory,
        trainer=config.trainer.options(),
        execution=Execution(**config.trainer.execution()),
        report=report,
        jobs=settings.jobs,
        reference=reference,
        context=context_of(config, settings),
        force=settings.force,
        save_models=settings.save_models,
        losses=losses,
        submit=settings.submission,
    )
    write(comparison, directory, f"{config.model.name} on {experiment.data.title}")
    if voice.is_read:
        say("")
        show_comparison(comparison, voice.console)
    tell("comparison", **_facts(comparison, directory))
    return comparison


def _facts(comparison: Comparison, directory: Path) -> dict[str, Any]:
    """What programs are told of a comparison; comparison.json in `directory` has the rest."""
    return {
        "metric": comparison.metric,
        "rows": [
            {"activation": r.name, "kind": r.kind, "formula": r.formula, "n": r.n, "mean": r.mean, "sd": r.sd}
            for r in comparison.rows
        ],
        "tests": [
            {
                "reference": test.reference,
                "other": test.other,
                "difference": test.paired.mean,
                "interval": test.paired.interval,
                "p_holm": test.p_holm,
            }
            for test in comparison.tests
        ],
        "summary": comparison.summary(),
        "directory": directory,
    }


def tell_retrained(result: Retraining, line: str, done: int, total: int) -> None:
    """Tell that one of `total` retrainings is there; `line` is for people."""
    tell(
        "retrained",
        line,
        activation=result.activation,
        seed=result.seed,
        metrics=dict(result.metrics),
        failure=result.failure,
        training_seconds=result.seconds,
        done=done,
        total=total,
    )


def budget_of(settings: RetrainConfig) -> Budget:
    """How long, and how, a contestant is retrained. Raises SettingsError if that is not said."""
    if settings.epochs is None:
        raise SettingsError("a transfer needs its length: set compare.epochs")
    return Budget(
        settings.epochs,
        accumulate=settings.accumulate or 1,
        gradient_clip=settings.gradient_clip,
        epoch_batches=settings.epoch_batches,
        slope_recovery=settings.slope_recovery or 0.0,
    )


def context_of(config: SearchConfig | TransferConfig, settings: RetrainConfig) -> dict[str, Any]:
    """What decides the results, beside the functions and the budget: not where the data lies or how it is loaded."""
    whole = plain(config)
    data = {key: value for key, value in whole["data"].items() if key not in ("root", "num_workers", "device")}
    context = {"data": data, "model": whole["model"], "training": whole["training"]}
    return {**context, "compile": True} if settings.compile else context
