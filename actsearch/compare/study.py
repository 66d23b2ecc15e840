"""compare: retraining with several activations over seeds, paired, to disk as it goes, in parallel if wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch

from actsearch.compare import saved
from actsearch.compare.check import check_smoothness
from actsearch.compare.comparison import Comparison, Entry
from actsearch.compare.contestants import DISCOVERED, REFERENCES, Contestant, of_genotype
from actsearch.compare.cost import saved_bytes
from actsearch.compare.parallel import run_parallel
from actsearch.compare.records import Records
from actsearch.compare.retrain import PLACE, Budget, Curve, Retrainer, Retraining
from actsearch.compare.submitted import run_submitted
from actsearch.errors import SettingsError, SwapError, TaskError, UnknownNameError
from actsearch.execution import Execution
from actsearch.genotype import Genotype
from actsearch.lock import locked
from actsearch.work import under_way

# What tasks are compared by, the most telling first.
METRICS = ("test_acc", "test_l2", "test_force_rmse", "test_loss")


def compare(
    build_task: Callable[[], pl.LightningModule],
    datamodule: Any,
    contestants: Sequence[Contestant] | Mapping[str, Genotype],
    *,
    seeds: Sequence[int],
    budget: Budget,
    directory: Path | str,
    trainer: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
    report: Callable[[Retraining], None] | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    jobs: int = 1,
    reference: str = DISCOVERED,
    context: Mapping[str, Any] | None = None,
    curve: Curve = "train",
    force: bool = False,
    save_models: bool = False,
    losses: Mapping[str, float] | None = None,
    submit: Mapping[str, Any] | None = None,
) -> Comparison:
    """Retrain every contestant from scratch for every seed, at the same budget, and test it.

    For one seed all contestants start from the same weights and see the same batches, augmentation and dropout, so
    differences are paired. Each result is added to `directory`/retrainings.jsonl at once; what is already there is not
    trained again. At the end comparison.json and comparison.csv are written.

    Args:
        build_task: gives a fresh task; called after seeding, so that equal seeds give equal weights.
        datamodule: with `train_dataloader` and `test_dataloader`.
        contestants: the activations; of genotypes by name, the one named `discovered` counts as such, and those named
            `random…` as random functions of its space.
        seeds, budget: of the retrainings.
        directory: for the results.
        trainer: further arguments of the Trainer. A retraining runs on one device; `devices` is how many of them the
            jobs are shared out among, `strategy` and `num_nodes` are not used.
        execution: how the network is run, such as Execution(channels_last=True).
        report: told every Retraining as it comes, also those read from disk.
        metric: what `test_step` logs; default: the first of `METRICS` that it logs.
        higher_is_better: default: for names that end in `acc`.
        jobs: so many at once, in processes of one CPU thread each; `build_task` and `datamodule` must be picklable. On
            CPU the numbers are those of one thread without processes, to the bit.
        reference: name of the contestant that every other is compared with; `discovered` is every one of that kind and
            of the kind adapted. Of the latter, two are not compared with each other.
        context: plain data on data, model and training; results in `directory` from another context are refused.
        curve: what to record of every epoch; see Retrainer.
        force: take contestants that are less smooth than the model needs; see `swap`.
        save_models: write every trained model to `directory`/models; see `actsearch.compare.load_model`. Retrainings
            that are done, but without a model, are then done again.
        losses: what a search measured of contestants, by name, for the rank correlation with their retraining.
        submit: options of submitit, which then makes a job of a cluster of each retraining, `jobs` at a time; see
            `run_submitted`.

    Raises TaskError if the task does not log the metric, RunError if the directory cannot be written, is in use by
    another process, or holds results of other functions or conditions, SettingsError and UnknownNameError for arguments
    that cannot work, and SmoothnessError for a contestant that is not smooth enough; that, before anything is trained.
    """
    if isinstance(contestants, Mapping):
        contestants = [of_genotype(genotype, name, _kind_of(name)) for name, genotype in contestants.items()]
    seeds = list(seeds)
    _check(contestants, seeds, jobs)
    if save_models:
        saved.check(contestants)
    references = _references(contestants, reference)
    options = dict(trainer or {})
    execution = execution or Execution()
    save_to = Path(directory) if save_models else None
    retrainer = Retrainer(build_task, datamodule, budget, options, curve, execution, force, save_to)
    common = {
        "budget": dataclasses.asdict(budget),
        # Callbacks and loggers are no plain data, and decide nothing that is compared.
        "trainer": {k: v for k, v in options.items() if k not in PLACE and isinstance(v, str | int | float)},
        "context": context or {},
        **({"execution": dataclasses.asdict(execution)} if execution != Execution() else {}),
    }
    wanted = [(contestant, seed) for seed in seeds for contestant in contestants]
    with locked(directory):
        records = Records(directory, common, contestants)
        missing = [(c, seed) for c, seed in wanted if not _is_done(records, c.name, seed, save_to)]
        waiting = {(contestant.name, seed) for contestant, seed in missing}
        for contestant, seed in wanted:
            if report is not None and (contestant.name, seed) not in waiting:
                report(records.done[contestant.name, seed])
        if missing:
            retrainer.prepare()
            if not force:
                check_smoothness(build_task, contestants)
        # Closed whatever happens, so that no worker outlives an interrupt.
        coming_from = _train(retrainer, missing, jobs, options, Path(directory), submit)
        work = under_way("comparison", len(missing), "retrainings") if len(missing) > 1 else contextlib.nullcontext()
        with work as all_of_it, contextlib.closing(coming_from) as coming:
            for result in coming:
                records.add(result)
                if all_of_it is not None:
                    all_of_it.advance()
                _metric_of([result], metric)
                if report is not None:
                    report(result)
    results = [records.done[contestant.name, seed] for contestant, seed in wanted]
    metric = _metric_of(results, metric)
    comparison = Comparison(
        metric=metric,
        higher_is_better=metric.endswith("acc") if higher_is_better is None else higher_is_better,
        seeds=tuple(seeds),
        budget=budget,
        entries=tuple(Entry.of(contestant, _saved(contestant)) for contestant in contestants),
        retrainings=tuple(results),
        references=references,
        context=dict(context or {}),
        losses=dict(losses or {}),
    )
    comparison.save(directory)
    return comparison


def _is_done(records: Records, name: str, seed: int, save_to: Path | None) -> bool:
    result = records.done.get((name, seed))
    if result is None:
        return False
    return save_to is None or bool(result.failure) or saved.model_file(save_to, name, seed).is_file()


def _train(
    retrainer: Retrainer,
    missing: Sequence[tuple[Contestant, int]],
    jobs: int,
    options: Mapping[str, Any],
    directory: Path,
    submit: Mapping[str, Any] | None,
) -> Generator[Retraining, None, None]:
    """Seeds outermost: a comparison that is cut short still has complete pairs."""
    if submit is not None:
        yield from run_submitted(retrainer, missing, jobs, directory, submit)
        return
    if jobs > 1 and missing:
        yield from run_parallel(retrainer, missing, jobs, _accelerators(options))
        return
    for contestant, seed in missing:
        yield retrainer(contestant, seed)


def _accelerators(options: Mapping[str, Any]) -> int | None:
    """How many of them the jobs are shared out among; None without."""
    if options.get("accelerator", "auto") not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    wanted = options.get("devices", "auto")
    there = torch.cuda.device_count()
    return min(wanted, there) if isinstance(wanted, int) and wanted > 0 else there


def _kind_of(name: str) -> Any:
    if name == DISCOVERED:
        return DISCOVERED
    return "random" if name.startswith("random") else "standard"


def _check(contestants: Sequence[Contestant], seeds: Sequence[int], jobs: int) -> None:
    names = [contestant.name for contestant in contestants]
    if not names or not seeds:
        raise SettingsError("a comparison needs at least one contestant and one seed")
    for what, values in (("contestants", names), ("seeds", [str(seed) for seed in seeds])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise SettingsError(f"two {what} of a comparison are {twice[0]!r}; each must be there once")
    if jobs < 1:
        raise SettingsError(f"jobs must be at least 1, not {jobs}")


def _references(contestants: Sequence[Contestant], reference: str) -> tuple[str, ...]:
    if reference == DISCOVERED:
        return tuple(c.name for c in contestants if c.kind in REFERENCES)
    if reference not in [c.name for c in contestants]:
        raise UnknownNameError("contestant", reference, [c.name for c in contestants])
    return (reference,)


def _metric_of(results: Sequence[Retraining], metric: str | None) -> str:
    """The metric that the results are compared by. Raises TaskError if one of them lacks it."""
    logged = [set(r.metrics) for r in results if not r.failure]
    common = set.intersection(*logged) if logged else set()
    if metric is None:
        metric = next((name for name in METRICS if name in common or not logged), METRICS[-1])
    if logged and metric not in common:
        raise TaskError(f"test_step does not log {metric!r}; it logs: {', '.join(sorted(common)) or 'nothing'}")
    return metric


def _saved(contestant: Contestant) -> float:
    try:
        return saved_bytes(contestant.make)
    except (RuntimeError, SwapError):  # a module of its own that does not take images, or what no site is known for
        return math.nan
