"""The verb tune: workers that share a study's trials out among them, and what came of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import optuna
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actsearch import api, options
from actsearch.advancing import Advancing
from actsearch.build import build
from actsearch.cell.relaxation import make_relaxation
from actsearch.compare import Budget, Retrainer, contestant
from actsearch.config import SearchConfig, TransferConfig
from actsearch.data.placement import PlaceData
from actsearch.errors import (
    ActsearchError,
    NonFiniteError,
    RunError,
    SettingsError,
    SpaceError,
    Stopped,
    TaskError,
    UnknownNameError,
    without_passwords,
)
from actsearch.execution import Execution
from actsearch.files import find_named, read_yaml, write_text
from actsearch.process import prepare, say, speaking, stoppable, tell, voice
from actsearch.report.plots import save
from actsearch.report.tune_plots import draw_history, draw_importance
from actsearch.search.monitor import Snapshot
from actsearch.seeds import seed_all
from actsearch.space import SearchSpace
from actsearch.transfer import with_channel_axis
from actsearch.tune import HeldOut, Place, Plan, Results, TakenOver, TrialQueue, close, open_storage
from actsearch.tune.plan import CLIP
from actsearch.tune.queue import RETRIES, Claim
from actsearch.tune.results import shown
from actsearch.work import Mode, under_way

AnyConfig = SearchConfig | TransferConfig
CONFIGS: Mapping[str, type[AnyConfig]] = {"search": SearchConfig, "transfer": TransferConfig}
# What a trial can bring about by its own values; whatever else goes wrong would go wrong in every trial.
OWN_FAULTS = (NonFiniteError, SettingsError, torch.OutOfMemoryError)
# Settings that decide where and how fast a trial runs, not what it computes.
PLACES = ("data.root", "data.num_workers", "data.device", "compare.jobs", "compare.launcher", "compare.submit")
PLACE_SECTIONS = ("trainer", "run")
RELAXATION, OPTIONS = "search.relaxation", "search.relaxation_options."
OWNER = "study.id"  # file beside the results: whose they are


@dataclass(frozen=True)
class Work:
    """What every worker of a study is told; plain data, which can be sent to another process.

    Attributes:
        plan: what is tuned.
        name: of the study and its folder.
        root: folder of all studies.
        overrides: options of the command line for settings that are not tuned, such as --data.root=DIR.
        storage: as `Place.of` takes it.
        trials: of the study, if other than in the plan.
        timeout: seconds after which no trial is begun.
        threads: CPU threads of a trial, if other than in the configuration.
        progress: how the workers tell of themselves.
    """

    plan: Plan
    name: str
    root: Path = Path("runs/tune")
    overrides: tuple[str, ...] = ()
    storage: str | None = None
    trials: int | None = None
    timeout: float | None = None
    threads: int | None = None
    progress: Mode = "auto"

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise SettingsError(f"--trials must be at least 1, not {self.trials}")
        if self.timeout is not None and not self.timeout > 0:
            raise SettingsError(f"--timeout must be above 0 seconds, not {self.timeout}")
        if self.threads is not None and self.threads < 1:
            raise SettingsError(f"--threads must be at least 1, not {self.threads}")
        if not self.name.strip(". ") or any(c in self.name for c in "/\\\0"):
            raise SettingsError(f"--name must be the name of one folder, not {self.name!r}")

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def config(self, values: Mapping[str, Any]) -> AnyConfig:
        """The configuration of a trial with these values of what is tuned. Raises an ActsearchError."""
        cls = CONFIGS[self.plan.verb]
        content = read_yaml(find_named("configuration", cls.folder, self.plan.config), SettingsError)
        for key, value in {**self.plan.fixed, **values}.items():
            if key != CLIP:
                _set(content, key, value)
        with _temporary_folder() as folder:
            # Through a file, since that is how the verb itself will read best.yaml.
            file = write_text(folder / f"{self.name}.yaml", yaml.safe_dump(content, allow_unicode=True))
            config, _ = options.read_config(_parser(self.plan.verb), [f"--config={file}", *self.overrides], cls)
        if self.threads is not None:
            config.trainer.threads = self.threads
        return config

    def space(self, config: SearchConfig, values: Mapping[str, Any]) -> SearchSpace:
        """The search space of a trial with these values, which may hold its ℓ. Raises an ActsearchError."""
        space = SearchSpace.load(config.space)
        if CLIP not in values:
            return space
        content = space.to_dict()
        if content["clip"]["kind"] == "none":
            raise SettingsError(f"{CLIP} cannot be tuned: space {space.name} has no clip")
        return SearchSpace.load({**content, "clip": {**content["clip"], "limit": values[CLIP]}})

    def check(self) -> AnyConfig:
        """The configuration without what is tuned. Raises an ActsearchError for keys and values that cannot be."""
        cls = CONFIGS[self.plan.verb]
        for key in (*self.plan.fixed, *self.plan.parameters):
            if key != CLIP or key in self.plan.fixed:
                options.check_key(key, cls)
        given = {option.removeprefix("--").partition("=")[0] for option in self.overrides}
        if both := sorted(given & set(self.plan.parameters)):
            raise SettingsError(f"{both[0]} is tuned by this study; leave out --{both[0]}")
        for key, one in self.plan.parameters.items():
            for value, others in itertools.product(one.ends, self.plan.needed(key)):
                try:
                    config = self.config({**others, key: value})
                    if isinstance(config, SearchConfig):
                        self.space(config, {key: value})
                except (SettingsError, SpaceError) as error:
                    raise SettingsError(f"{key} cannot be {shown(value)}, an end of its range: {error}") from None
        if self.plan.verb == "search":
            self._check_relaxations()
        config = self.config({})
        if isinstance(config, SearchConfig):
            config.trainer.check_alone("tune", "more workers try more values at a time (--workers K)")
        return config

    def _check_relaxations(self) -> None:
        """Raise SettingsError if an option would be given to a relaxation that does not have it."""
        ranges = self.plan.parameters
        if not any(key.startswith(RELAXATION) for key in (*ranges, *self.plan.fixed)):
            return
        choices = ranges[RELAXATION].ends if RELAXATION in ranges else (None,)
        for chosen, end in itertools.product(choices, (0, -1)):
            values: dict[str, Any] = {RELAXATION: chosen} if RELAXATION in ranges else {}
            own = {key: one.ends[end] for key, one in ranges.items() if key.startswith(OPTIONS) and one.exists(values)}
            config = self.config({**values, **own})
            assert isinstance(config, SearchConfig)
            try:
                make_relaxation(config.search.relaxation, **config.search.relaxation_options)
            except SettingsError as error:
                raise SettingsError(
                    f"{error}; an option of some relaxations is tuned with `when: {{{RELAXATION}: [NAME, …]}}`"
                ) from None

    def queue(self) -> TrialQueue:
        """The study, made if it is not there. Raises an ActsearchError."""
        config = self.check()
        settings, epochs = self._settings(config), _epochs(config)
        storage = open_storage(Place.of(self.storage, self.directory), self.plan.grace)
        try:
            return TrialQueue(storage, self.name, self.plan, settings, epochs, self.trials)
        except BaseException:
            close(storage)
            raise

    def _settings(self, config: AnyConfig) -> dict[str, Any]:
        """What all workers must agree on: not what is tuned, nor where they run."""
        settings = config.to_dict()
        for name in PLACE_SECTIONS:
            settings.pop(name, None)
        for key in (*PLACES, *self.plan.parameters):
            _drop(settings, key)
        return settings


def tune(work: Work, workers: int) -> Results:
    """Work on the study until it is complete, alone or as so many local processes, and write what came of it.

    Raises an ActsearchError for anything that the caller can mend, and Stopped if told to end.
    """
    if workers < 1:
        raise SettingsError(f"--workers must be at least 1, not {workers}")
    place = Place.of(work.storage, work.directory)
    with contextlib.closing(work.queue()) as queue:
        _take_folder(work.directory, queue)
        tell(
            "study_started",
            f"study {work.name}: {queue.n_finished} of {queue.size} trials done, {work.plan.direction} "
            f"{work.plan.metric}\nstorage      {place}",
            study=work.name,
            done=queue.n_finished,
            total=queue.size,
            metric=work.plan.metric,
            direction=work.plan.direction,
        )
        with stoppable(lambda: "what is done is kept: give the same command again"):
            if workers == 1:
                _work(work, queue)
            else:
                # Several processes would draw over one another.
                progress: Mode = "plain" if voice.mode == "auto" else voice.mode
                _supervise(replace(work, threads=work.threads or 1, progress=progress), queue, workers)
        results = Results.of(queue)
    _show(results, work, place)
    return results


def _take_folder(directory: Path, queue: TrialQueue) -> None:
    """Raise RunError if `directory` holds the results of another study, which this one would overwrite."""
    file = directory / OWNER
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(file, "x", encoding="utf-8") as new:
            new.write(queue.id)
        known = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror or error}") from None
    if not known:  # whoever made it died before it was written
        write_text(file, queue.id)
    elif known != queue.id:
        raise RunError(
            f"{directory} holds the results of another study, in another storage; take that with --storage, or give "
            f"this one another --name (if nothing there is needed, delete {directory})"
        )


# -- one worker ----------------------------------------------------------------------------------------------------


def _work(work: Work, queue: TrialQueue) -> None:
    """Run trials until the study is complete, or time is up."""
    end = math.inf if work.timeout is None else time.monotonic() + work.timeout
    parent = multiprocessing.parent_process()

    def stop() -> bool:
        return time.monotonic() >= end or (parent is not None and not parent.is_alive())

    prepare(work.config({}).trainer)
    broken = 0
    for claim in queue.claims(stop):
        started = time.monotonic()
        with contextlib.suppress(TakenOver), claim:
            try:
                said = _run(work, claim)
                broken = 0
            except _Broken as fault:
                said = str(fault)
                broken += 1
                if broken > RETRIES:
                    raise RunError(f"one trial after the other is broken off; trial {claim.number}: {fault}") from None
            seconds = time.monotonic() - started
            done = queue.n_finished
            tell(
                "study_trial",
                f"  trial {claim.number}: {said}, {seconds:.1f} s ({done} of {queue.size} done)",
                number=claim.number,
                outcome=said,
                values=dict(claim.values),
                done=done,
                total=queue.size,
            )


class _Broken(Exception):
    """A trial raised what nobody foresaw; in words."""


def _run(work: Work, claim: Claim) -> str:
    """Run a trial and tell the study how it ended; the same in words.

    Raises TakenOver, _Broken, and what is not of the trial.
    """
    values = ", ".join(f"{key} = {shown(value)}" for key, value in claim.values.items())
    try:
        value, notes = _objective(work, claim)
        if not math.isfinite(value):
            raise NonFiniteError(f"{work.plan.metric} is {value:g}")
        claim.note(**notes)
        claim.complete(value)
        return f"{work.plan.metric} = {value:.5g}; {values}"
    except optuna.TrialPruned:
        claim.prune()
        return f"pruned; {values}"
    except TakenOver:
        say(f"  trial {claim.number} was given to another worker, since this one gave no sign of life")
        raise
    except OWN_FAULTS as error:
        reason = " ".join(str(error).split())[:300]
        claim.fail(reason)
        return f"failed: {reason}; {values}"
    except Exception as error:
        if isinstance(error, ActsearchError | OSError | SIGTERMException):
            claim.give_back()
            if isinstance(error, ActsearchError | SIGTERMException):
                raise
            raise RunError(f"trial {claim.number} was put back: {' '.join(str(error).split())}") from None
        # A fault of the code, or of the machine: it is tried again a few times, and keeps nobody from other trials.
        kept = write_text(_folder(work, claim) / "traceback.txt", without_passwords(traceback.format_exc()))
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        claim.break_off(reason)
        raise _Broken(f"broken off by {reason} (see {kept}); {values}") from None
    except BaseException:
        # Told to end, or a fault that has nothing to do with the values: another worker may have more luck.
        claim.give_back()
        raise
    finally:
        shutil.rmtree(_folder(work, claim) / "checkpoints", ignore_errors=True)
        for checkpoints in _folder(work, claim).glob("*/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)


def _folder(work: Work, claim: Claim) -> Path:
    return work.directory / "trials" / f"{claim.number:04d}"


def _objective(work: Work, claim: Claim) -> tuple[float, dict[str, Any]]:
    config = work.config(claim.values)
    if isinstance(config, SearchConfig):
        return _searched(work, config, claim)
    return _retrained(work, config, claim)


def _searched(work: Work, config: SearchConfig, claim: Claim) -> tuple[float, dict[str, Any]]:
    """The metric after the last epoch of a search, and what it found."""
    metric = work.plan.metric

    def report(snapshot: Snapshot) -> None:
        claim.report(_metric(snapshot.metrics, metric), snapshot.epoch)

    experiment = build(config)
    seed_all(config.search.seed)
    with under_way(f"trial {claim.number}", config.search.epochs, "epochs") as training:
        result = api.search(
            experiment.build_task(),
            experiment.data,
            space=work.space(config, claim.values),
            run_root=_folder(work, claim).parent,
            name=_folder(work, claim).name,
            observers=[report],
            callbacks=[Advancing(training)],
            trainer=config.trainer.options(),
            execution=Execution(**config.trainer.execution()),
            config=config.to_dict(),
            **config.search.to_dict(),
        )
    formulas = "; ".join(genotype.formula for genotype in result.genotypes.values())
    return _metric(result.snapshot.metrics, metric), {"formula": formulas, "run": str(result.run_dir)}


def _retrained(work: Work, config: TransferConfig, claim: Claim) -> tuple[float, dict[str, Any]]:
    """The metric of one retraining on the held-out part of the training set."""
    settings = with_channel_axis(config)
    experiment = build(config)
    one = contestant(
        work.plan.activation,
        parameters=settings.parameters,
        channel_axis=settings.channel_axis,
        gain=settings.gain,
        compiled=settings.compile,
        lr_factor=settings.lr_factor,
    )
    reporter = _Reporter(claim, work.plan.metric)
    data = HeldOut(experiment.data, work.plan.validation, config.data.seed)
    retrainer = Retrainer(
        experiment.build_task,
        data,
        Budget(
            _epochs(config),
            accumulate=settings.accumulate or 1,
            gradient_clip=settings.gradient_clip,
            epoch_batches=settings.epoch_batches,
            slope_recovery=settings.slope_recovery or 0.0,
        ),
        {**config.trainer.options(), "callbacks": [PlaceData(experiment.data), reporter]},
        curve="test",
        execution=Execution(**config.trainer.execution()),
        force=settings.force,
    )
    result = retrainer(one, settings.first_seed)
    if result.failure:
        raise NonFiniteError(result.failure)
    # The held-out part once more, by the weights that would be kept, which may be moving averages.
    measured = {name.replace("test", "val", 1): value for name, value in result.metrics.items()}
    return _metric(measured, work.plan.metric), {}


class _Reporter(pl.Callback):
    """Reports the metric that validation logged, each epoch."""

    def __init__(self, claim: Claim, metric: str) -> None:
        self._claim, self._metric = claim, metric

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        logged = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val")}
        value = _metric(logged, self._metric)
        if math.isfinite(value):  # else the training fails by itself, in words
            self._claim.report(value, trainer.current_epoch + 1)


def _metric(measured: Mapping[str, float], name: str) -> float:
    if name not in measured:
        raise UnknownNameError("metric", name, measured)
    return float(measured[name])


def _epochs(config: AnyConfig) -> int:
    epochs = config.search.epochs if isinstance(config, SearchConfig) else config.compare.epochs
    if epochs is None:
        raise SettingsError("a trial needs its length: set compare.epochs")
    return epochs


# -- several workers on this machine -------------------------------------------------------------------------------


def _supervise(work: Work, queue: TrialQueue, workers: int) -> None:
    """Start local workers and wait for them. One that dies is not replaced: the others take over its trial."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_child, args=(work,)) for _ in range(workers)]
    try:
        with _no_interrupts():
            for process in processes:
                process.start()
        running = {process.sentinel: process for process in processes}
        while running:
            for sentinel in wait(list(running)):
                process = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode:
                    say(f"  a worker ended with exit code {process.exitcode}; {len(running)} go on")
    finally:
        _end(processes)
    if work.timeout is None and queue.n_finished < queue.size:
        raise RunError("every worker ended before the study was complete; see above, and give the same command again")


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes begun within it are deaf to Ctrl-C, which a terminal sends to all: this one hears it, and ends them.

    They would be interrupted in the middle of an import, or twice, and could not give back their trials.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # when it starts it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # they inherit it; here it only waits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Sequence[Any]) -> None:
    """Let them give back their trials, and wait; those that do not end by then, or at a second Ctrl-C, are killed."""
    begun = [process for process in processes if process.pid is not None]
    try:
        for process in begun:
            if process.is_alive():
                process.terminate()
        end = time.monotonic() + 20
        for process in begun:
            process.join(max(0.1, end - time.monotonic()))
    finally:
        for process in begun:
            if process.is_alive():
                process.kill()
                process.join()


def _child(work: Work) -> None:
    """A worker process: the exit code is that of the command line."""
    code = 0
    try:
        with (
            speaking(work.progress),
            stoppable(lambda: "its trial was put back"),
            contextlib.closing(work.queue()) as queue,
        ):
            _work(work, queue)
    except Stopped:
        code = 0  # the parent says so, for all
    except ActsearchError as error:
        print(f"actsearch: {without_passwords(' '.join(str(error).split()))}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


# -- what came of it -----------------------------------------------------------------------------------------------


def _show(results: Results, work: Work, place: Place) -> None:
    directory = work.directory
    best = results.best
    results.save(directory, None if best is None else _best(work, best.values))
    save(draw_history(results), directory / "figures" / "history.png")
    save(draw_importance(results), directory / "figures" / "importance.png")
    say(f"\n{results.summary()}")
    if best is None:
        failed = next((row for row in results.rows if row.state == "failed"), None)
        if failed is not None and len(results.finished) >= results.size:
            raise TaskError(f"no trial was completed; trial {failed.number} failed: {failed.note}")
    else:
        say(f"best: trial {best.number}, {work.plan.metric} = {best.value:.6g}")
        for key, value in best.values.items():
            share = results.importance.get(key)
            say(f"  {key} = {shown(value)}" + ("" if share is None else f"   (importance {share:.2f})"))
        rest = "" if work.plan.verb == "search" else " FUNCTION"
        say(f"use it       actsearch {work.plan.verb}{rest} --config {directory / 'best.yaml'}")
    tell(
        "study",
        summary=results.summary(),
        value=None if best is None else best.value,
        values={} if best is None else dict(best.values),
        directory=directory,
    )
    say(f"results      {directory}")
    say(f"look at it   pip install optuna-dashboard; optuna-dashboard {place}")


def _best(work: Work, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the best trial, as a file of its verb holds them."""
    config = work.config(values)
    if isinstance(config, SearchConfig) and CLIP in values:
        text = yaml.safe_dump(work.space(config, values).to_dict(), sort_keys=False, allow_unicode=True)
        config.space = str(write_text(work.directory / "best_space.yaml", text))
    return config.to_dict()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:
        raise RunError(f"cannot make a temporary folder: {error.strerror or error}") from None
    with folder:
        yield Path(folder.name)


@functools.cache
def _parser(verb: str) -> Any:
    parser = options.make_parser("")
    options.add_config(parser, CONFIGS[verb])
    return parser


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{key}: {section} holds {inner!r}, no settings")
        content = inner
    content[name] = value


def _drop(content: Any, key: str) -> None:
    """Forget a setting, if it is there: a space is no section, though its ℓ can be tuned."""
    *sections, name = key.split(".")
    for section in sections:
        content = content.get(section) if isinstance(content, dict) else None
    if isinstance(content, dict):
        content.pop(name, None)
