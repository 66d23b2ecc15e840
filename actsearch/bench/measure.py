"""One group: its steps are built, warmed up, timed in turn, and their memory is counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from actsearch.bench.contestants import BASELINE, CONTESTANTS, Contestant, Kit
from actsearch.bench.foresight import PerElement, per_element, reason_against
from actsearch.bench.growth import SIZES, Size, grown
from actsearch.bench.machine import BUSY, Quiet
from actsearch.bench.memory import peak_bytes, resident_growth
from actsearch.bench.results import Group, Row, StepName
from actsearch.bench.steps import Step, Steps
from actsearch.bench.timing import OutOfTime, interleave, old_objects_aside, time_limit, warm_up
from actsearch.bench.workloads import Elementwise, Workload

COPY = "copy"  # of the device's memory: what the element-wise kernels are held against


@dataclass(frozen=True)
class Effort:
    """How much is spent.

    Attributes:
        rounds: measurements of each step.
        budget: seconds that the rounds of one step may take; slow steps are then measured fewer times.
        limit: seconds that a step may take to be built, compiled and run for the first time.
    """

    rounds: int = 7
    budget: float = 60.0
    limit: float = 300.0


@dataclass
class Entry:
    """Steps that join a group: `build` makes them, `rows` say which are wanted."""

    rows: list[Row]
    build: Callable[[], Steps]


@dataclass
class Measurer:
    """Measures groups on a device.

    Args:
        kit: what contestants are made of.
        device: where they run.
        effort: how much is spent.
        changed: called after everything that changed the results.
        tell: is handed one line on what is being done.
    """

    kit: Kit
    device: torch.device
    effort: Effort
    changed: Callable[[], None] = lambda: None
    tell: Callable[[str], None] = lambda line: None
    warnings: list[str] = field(default_factory=list)
    _foreseen: dict[str, PerElement] = field(default_factory=dict)

    def workload(self, workload: Workload, contestants: Sequence[str], steps: Sequence[StepName], into: Group) -> None:
        """All `steps` of the contestants, and of the baseline, on a workload."""
        entries = []
        for name in dict.fromkeys([BASELINE, *contestants]):
            wanted: list[StepName] = [s for s in ("weight", "alpha") if s in steps]
            if CONTESTANTS[name].module is not None:
                wanted = ["weight"] if "weight" in steps or name == BASELINE else []
            if wanted:
                entries.append(self._entry(CONTESTANTS[name], workload, wanted, self.kit))
        if isinstance(workload, Elementwise):
            entries.append(self._copy(workload))
        self.group(into, entries)

    def growth(
        self, workload: Workload, contestants: Sequence[str], into: Group, sizes: Sequence[Size] = SIZES
    ) -> None:
        """The α step of the contestants that have a cell, in spaces of all sizes."""
        entries = [self._entry(CONTESTANTS[BASELINE], workload, ["weight"], self.kit)]
        for name in contestants:
            for size in sizes:
                kit = Kit(grown(size), self.kit.winner, self.kit.backend)
                entries.append(self._entry(CONTESTANTS[name], workload, ["alpha"], kit))
        self.group(into, entries)

    def _entry(self, contestant: Contestant, workload: Workload, wanted: Sequence[StepName], kit: Kit) -> Entry:
        rows = [Row(contestant.name, contestant.label, step) for step in wanted]
        if contestant.cell is not None:
            for row in rows:
                row.candidates, row.slots = kit.space.n_candidates, len(kit.space.slots)

        def build() -> Steps:
            self._check_memory(contestant, workload)
            return workload.steps(contestant, kit, self.device)

        return Entry(rows, build)

    def _check_memory(self, contestant: Contestant, workload: Workload) -> None:
        """Raise Unfit if a cell would not fit into memory; what it needs is measured once, in the kit's own space."""
        if contestant.cell is None:
            return
        if contestant.name not in self._foreseen:
            self._foreseen[contestant.name] = per_element(contestant, self.kit, self.device)
        needed = self._foreseen[contestant.name].total(workload.elements(self.device))
        if reason := reason_against(needed, self.device):
            raise Unfit(reason)

    def _copy(self, workload: Elementwise) -> Entry:
        x, y = (t.detach() for t in workload.tensors(self.device))
        return Entry([Row(COPY, "copy", "weight")], lambda: {"weight": lambda: y.copy_(x)})

    def group(self, group: Group, entries: Sequence[Entry]) -> None:
        """Measure everything in `entries`, into `group`. What fails leaves its reason in its rows."""
        with old_objects_aside():
            self._group(group, entries)

    def _group(self, group: Group, entries: Sequence[Entry]) -> None:
        ready: dict[int, Step] = {}
        broken: set[int] = set()
        rows = group.rows
        for entry in entries:
            first = entry.rows[0]
            size = f", {first.candidates} candidates in {first.slots} slots" if group.kind == "growth" else ""
            self.tell(f"{group.label}: preparing {first.label}{size if first.candidates else ''}")
            rows.extend(entry.rows)
            steps: Steps = {}
            with _failing(entry.rows), time_limit(self.effort.limit):
                steps = entry.build()
            for row in entry.rows if steps else ():
                with _failing([row]), time_limit(self.effort.limit):
                    row.times = warm_up(steps[row.step], self.device)
                    ready[next(i for i, r in enumerate(rows) if r is row)] = steps[row.step]
            self.changed()
        quiet = Quiet()

        def after_round(done: int) -> None:
            self.tell(f"{group.label}: round {done} of {self.effort.rounds}")
            self.changed()

        def failed(i: int, error: Exception) -> None:
            rows[i].note = f"failed: {reason_of(error)}"
            broken.add(i)

        times = {i: rows[i].times for i in ready}
        interleave(ready, times, self.device, self.effort.rounds, self.effort.budget, after_round, failed)
        self._warn(group, quiet.others())
        for i, step in ready.items():
            if i in broken:
                continue
            self.tell(f"{group.label}: memory of {rows[i].label}")
            with _failing([rows[i]]):
                rows[i].memory = peak_bytes(step, self.device)
                if self.device.type == "cpu":
                    rows[i].resident = resident_growth(step)
            self.changed()

    def _warn(self, group: Group, others: float | None) -> None:
        if others is not None and others > BUSY:
            self.warnings.append(
                f"{group.label}: other processes used {others:.1f} cores while it was timed; measure on a quiet machine"
            )


class Unfit(Exception):
    """A step that is not tried."""


@contextmanager
def _failing(rows: Sequence[Row]) -> Iterator[None]:
    """An error within it becomes the note of the rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compilers warn of what they do
            yield
    except (Exception, OutOfTime) as error:
        reason = str(error) if isinstance(error, Unfit) else f"failed: {reason_of(error)}"
        for row in rows:
            row.note = reason


def reason_of(error: BaseException, longest: int = 160) -> str:
    """An error in one line of limited length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else ""
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return line if isinstance(error, OutOfTime) else f"{type(error).__name__}: {line}".rstrip(": ")
