"""The verb bench: what is to be measured, where it is written, and how it is shown."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import actsearch._torchvision  # noqa: F401

import torch

from actsearch.activation import load
from actsearch.bench import machine, report
from actsearch.bench.contestants import BASELINE, CONTESTANTS, Kit
from actsearch.bench.measure import Effort, Measurer
from actsearch.bench.results import Group, Results, StepName
from actsearch.bench.whole import measure_whole
from actsearch.bench.workloads import QUICK, WORKLOADS, Network
from actsearch.config import TrainerConfig
from actsearch.errors import RunError, SettingsError, UnknownNameError
from actsearch.files import append_line, write_text
from actsearch.heap import keep_freed_memory
from actsearch.process import prepare, say, stoppable, tell, voice
from actsearch.space import SearchSpace
from actsearch.work import Work, under_way

STEPS: tuple[StepName, ...] = ("weight", "alpha")
GROWTH_ON = "resnet20"
HISTORY = "# Performance\n\nOne section a run of `actsearch bench`, the latest last."


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        workloads, contestants, steps: by name; none given means all.
        space: of the mixed cells; default: `grafs`, or `tiny` if quick.
        winner: a run, a genotype file or zoo:NAME; the discrete function.
        effort: rounds, and limits of time.
        quick: tiny workloads, to see that everything runs.
        growth, whole: whether to measure these.
        device: auto, cpu or cuda.
        threads: of torch; default: one a core, or 1 if quick.
        out: folder of the results; default: runs/bench/DATE.
        record: Markdown file that a section is appended to.

    Raises SettingsError or UnknownNameError.
    """

    workloads: Sequence[str] = ()
    contestants: Sequence[str] = ()
    steps: Sequence[str] = ()
    space: str | None = None
    winner: str = "zoo:fashion_vit"
    effort: Effort = field(default_factory=Effort)
    quick: bool = False
    growth: bool = True
    whole: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    out: Path | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        known: Mapping[str, Sequence[str]] = {
            "workload": list(WORKLOADS),
            "contestant": list(CONTESTANTS),
            "step": STEPS,
        }
        for kind, names in known.items():
            for name in getattr(self, f"{kind}s"):
                if name not in names:
                    raise UnknownNameError(kind, name, names)
        if self.effort.rounds < 1 or not (self.effort.budget > 0 and self.effort.limit > 0):
            raise SettingsError("a bench needs at least 1 repeat, and a budget and a limit above 0 seconds")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingsError("there is no CUDA device; leave --device out, or give cpu")

    @property
    def torch_device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")


def bench(options: BenchOptions) -> Results:
    """Measure, print and save; what was measured is on disk after every round."""
    # More threads than one only wait for each other on tensors so small.
    threads = 1 if options.quick and options.threads is None else options.threads
    prepare(TrainerConfig(threads=threads))
    device = options.torch_device
    if device.type == "cpu":
        keep_freed_memory()  # as whatever is trained here does, standard activations too
    space = SearchSpace.load(options.space or ("tiny" if options.quick else "grafs"))
    kit = Kit(space, load(options.winner).genotype)
    out = options.out or Path("runs", "bench", datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if options.record is not None:
        _open_record(options.record)
    settings: dict[str, Any] = {
        "space": space.name,
        "winner": kit.winner.formula,
        "rounds": options.effort.rounds,
        "budget_seconds": options.effort.budget,
        "limit_seconds": options.effort.limit,
        "quick": options.quick,
    }
    results = Results(machine.facts(device), settings)

    def save() -> None:
        write_text(out / "bench.json", json.dumps(results.to_dict(), indent=1, ensure_ascii=False) + "\n")
        write_text(out / "bench.csv", report.comma_separated(results))
        write_text(out / "bench.md", report.markdown(results))

    with stoppable(lambda: f"what was measured is in {out}"):
        save()  # a folder that cannot be written is found before anything is measured
        _check_quiet(results)
        with under_way("bench") as work:
            measurer = Measurer(kit, device, options.effort, save, _teller(work), results.warnings)
            _measure(options, measurer, results)
        results.machine["load_at_end"] = machine.load_average()
        results.finished = True
        save()
    if voice.is_read:
        report.show(results, voice.console)
    if options.record is not None:
        append_line(options.record, "\n" + report.markdown(results, level=2).rstrip())
        say(f"recorded in {options.record}")
    tell("paths", f"results  {out}", paths={"results": out})
    return results


def _measure(options: BenchOptions, measurer: Measurer, results: Results) -> None:
    shelf = QUICK if options.quick else WORKLOADS
    device = measurer.device
    contestants = list(options.contestants or CONTESTANTS)
    steps = [step for step in STEPS if step in (options.steps or STEPS)]
    cells = [name for name in ("dense", "table") if name in contestants]  # others would be compiled for every space
    for name in options.workloads or WORKLOADS:
        workload = shelf[name](device)
        group = Group(name, workload.label, workload.detail)
        results.groups.append(group)
        measurer.workload(workload, contestants, steps, group)
    if options.growth and cells and "alpha" in steps:
        workload = shelf[GROWTH_ON](device)
        group = Group("growth", workload.label, workload.detail, "growth")
        results.groups.append(group)
        measurer.growth(workload, cells, group)
    if options.whole and cells:
        network = shelf[GROWTH_ON](device)
        assert isinstance(network, Network)
        retrained = [BASELINE, *(name for name in ("winner_compiled",) if name in contestants)]
        measure_whole(measurer, network, cells, retrained, results.whole)


def _check_quiet(results: Results) -> None:
    others = machine.loudness()
    results.machine["load_at_start"] = machine.load_average()
    results.machine["cores_of_others_at_start"] = others
    if others is not None and others > machine.BUSY:
        warning = f"other processes use {others:.1f} cores; ratios are paired in time, but measure on a quiet machine"
        results.warnings.append(warning)
        say(f"warning: {warning}")


def _teller(work: Work) -> Callable[[str], None]:
    """Tells on the spot in a terminal; a file or a pipe gets a line for each thing that is prepared."""
    if voice.is_live:
        return lambda line: work.at(work.done, line)

    def tell_of_it(line: str) -> None:
        if "preparing" in line:
            say(line)

    return tell_of_it


def _open_record(path: Path) -> None:
    """Begin the history if there is none. Raises RunError if it cannot be written, before anything is measured."""
    try:
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            if new:
                file.write(HISTORY + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
