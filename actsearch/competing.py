"""The verb compare-strategies: gradient, random, TPE and genetic search over seeds, for the same training steps."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from actsearch.build import Experiment, build
from actsearch.compare import Comparison, Contestant, Retraining, check_smoothness, compare
from actsearch.compare.strategies import GRADIENT, Searched, StrategyComparison, row_name
from actsearch.config import RunConfig, SearchConfig, Strategy
from actsearch.errors import RunError, SettingsError, UnknownNameError
from actsearch.execution import Execution
from actsearch.files import write_text
from actsearch.genotype import Genotype
from actsearch.process import prepare, say, stoppable, tell, voice
from actsearch.report.comparison import describe
from actsearch.report.strategies import show, write
from actsearch.reporting import write_report
from actsearch.run import SUMMARY, RunDirectory
from actsearch.session import Place, find, random_functions
from actsearch.space import SearchSpace
from actsearch.transfer import as_discovered, budget_of, context_of, controls, tell_retrained

STRATEGIES = get_args(Strategy)
CONDITIONS = "conditions.json"


def compare_strategies(
    config: SearchConfig, strategies: Sequence[str], seeds: Sequence[int], name: str, out: Path | None
) -> StrategyComparison:
    """Search with every strategy and every seed, retrain what was found and the controls once each, and compare.

    A seed decides the split, the search, the random controls, and the retraining. What is done already is kept: the
    same call goes on.

    Args:
        config: of the searches and of the retrainings; its own strategy, seeds and run are not used.
        strategies: the first is the one that the others are compared with.
        seeds: of the searches.
        name: of the configuration, for the folder of the results.
        out: that folder; default: runs/strategies/`name`.

    Raises an ActsearchError for anything that the caller can mend.
    """
    _check(strategies, seeds)
    config.trainer.check_alone("compare-strategies", "--jobs N retrains N functions at a time")
    prepare(config.trainer)
    space = SearchSpace.load(config.space)
    if space.sharing != "network":
        raise SettingsError(f"strategies find one function for the network, and {space.name} has one a {space.sharing}")
    directory = out or Path("runs") / "strategies" / name
    controls(config.retraining, space)  # whatever is wrong with them is told before the searches
    experiment = build(config)
    _check_conditions(directory, config, space)
    searches: list[Searched] = []
    by_seed: list[Comparison] = []
    with stoppable(lambda: "what is done is kept: give the same command again"):
        for seed in seeds:
            own = _with_seed(config, seed)
            others = controls(own.retraining, space)
            if not own.compare.force:
                check_smoothness(experiment.build_task, others)
            found: list[Contestant] = []
            trying = next((strategy for strategy in strategies if strategy != GRADIENT), None)
            for strategy in strategies:
                # By trials the controls are measured once: other strategies would measure the same.
                measured = random_functions(others) if strategy in (GRADIENT, trying) else {}
                searched, genotype = _search(own, strategy, directory, space, experiment, measured)
                searches.append(searched)
                found.append(as_discovered(genotype, own.retraining))
                found[-1] = dataclasses.replace(found[-1], name=row_name(strategy))
            by_seed.append(_retrain(own, seed, [*found, *others], experiment, directory))
    result = StrategyComparison.of(searches, by_seed)
    title = f"Strategies: {config.model.name} on {experiment.data.title}, space {space.name}"
    write(result, directory, title)
    RunDirectory(directory).write_environment()
    report = write_report(directory)
    if voice.is_read:
        say("")
        show(result, voice.console)
    tell(
        "paths",
        f"\nresults      {directory}\nreport       {report}",
        paths={"results": directory, "report": report},
    )
    return result


def _check(strategies: Sequence[str], seeds: Sequence[int]) -> None:
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise UnknownNameError("strategy", strategy, STRATEGIES)
    if len(strategies) < 2 or len(set(strategies)) < len(strategies):
        raise SettingsError("compare-strategies needs two strategies or more, each named once, such as gradient,random")
    if not seeds:
        raise SettingsError("compare-strategies needs at least one seed")


def _with_seed(config: SearchConfig, seed: int) -> SearchConfig:
    return dataclasses.replace(config, search=dataclasses.replace(config.search, seed=seed))


def _check_conditions(directory: Path, config: SearchConfig, space: SearchSpace) -> None:
    """Raise RunError if what is in `directory` was searched under other conditions."""
    whole = {**config.to_dict(), **context_of(config, config.retraining), "space": space.hash}
    decisive = {key: whole[key] for key in ("space", "data", "model", "training", "search", "trials")}
    del decisive["search"]["seed"]
    conditions = json.loads(json.dumps(decisive))
    path = directory / CONDITIONS
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot read {path}: {error}") from None
        if there != conditions:
            keys = [key for key in conditions if not isinstance(there, dict) or there.get(key) != conditions[key]]
            raise RunError(f"{directory} holds searches under other conditions ({', '.join(keys)}); use a new folder")
        return
    write_text(path, json.dumps(conditions, indent=1) + "\n")


def _search(
    config: SearchConfig,
    strategy: str,
    directory: Path,
    space: SearchSpace,
    experiment: Experiment,
    measured: Mapping[str, Genotype],
) -> tuple[Searched, Genotype]:
    """The search of that strategy: read, gone on with, or done."""
    seed = config.search.seed
    root, name = directory / "searches", f"{strategy}-{seed}"
    run = _latest(root / name)
    read = run is not None and (run / SUMMARY).is_file() and (run / "genotype.json").is_file()
    if not read:
        own = dataclasses.replace(
            config,
            strategy=strategy,  # type: ignore[arg-type]  # it was checked
            run=RunConfig(root=str(root), name=name),
        )
        place = Place(run)
        if not place.can_go_on:
            place = Place()
        find(own, space, experiment, place, measured, aside=True)
        run = place.path
    assert run is not None
    searched = _read(run, strategy, seed)
    told = "found before" if read else f"{searched.steps} steps, {searched.seconds:.0f} s"
    tell(
        "searched",
        f"seed {seed}  {strategy} search: {searched.formula}  (loss {searched.loss:.4f}; {told})",
        strategy=strategy,
        seed=seed,
        formula=searched.formula,
        loss=searched.loss,
        steps=searched.steps,
        search_seconds=searched.seconds,
        run=run,
        found_before=read,
    )
    return searched, Genotype.load(RunDirectory(run).genotype)


def _latest(folder: Path) -> Path | None:
    runs = sorted(path for path in folder.glob("*") if (path / "config.yaml").is_file())
    return runs[-1] if runs else None


def _read(run: Path, strategy: str, seed: int) -> Searched:
    path = run / SUMMARY
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        (formula,) = facts["functions"].values()
        losses = {str(name): _number(loss, math.inf) for name, loss in facts["losses"].items()}
        loss, seconds = _number(facts["loss"], math.inf), _number(facts["seconds"], math.nan)
        return Searched(strategy, seed, str(formula), loss, losses, int(facts["steps"]), int(facts["budget"]), seconds)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(f"{path} does not tell what one function was found; delete {run} to search again") from None


def _number(value: Any, missing: float) -> float:
    return missing if value is None else float(value)


def _retrain(
    config: SearchConfig, seed: int, contestants: Sequence[Contestant], experiment: Experiment, directory: Path
) -> Comparison:
    """Retrain everything of one seed once."""
    settings = config.retraining

    done = 0

    def report(result: Retraining) -> None:
        nonlocal done
        done += 1
        tell_retrained(result, f"  {describe(result)}", done, len(contestants))

    return compare(
        experiment.build_task,
        experiment.data,
        contestants,
        seeds=[seed],
        budget=budget_of(settings),
        directory=directory / "retrainings" / f"seed-{seed}",
        trainer=config.trainer.options(),
        execution=Execution(**config.trainer.execution()),
        report=report,
        jobs=settings.jobs,
        reference=contestants[0].name,
        context=context_of(config, settings),
        force=settings.force,
        submit=settings.submission,
    )
