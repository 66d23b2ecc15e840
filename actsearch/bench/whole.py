"""A whole search against one retraining, extrapolated from measured steps; CIFAR-10 as published (arXiv 2408.06820)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actsearch.bench.contestants import BASELINE, CONTESTANTS
from actsearch.bench.measure import Measurer, reason_of
from actsearch.bench.results import Whole
from actsearch.bench.steps import Step, training
from actsearch.bench.timing import OutOfTime, Times, interleave, old_objects_aside, ratio, time_limit, warm_up
from actsearch.bench.workloads import Network
from actsearch.search.schedule import drop_times

LEVELS = 5  # numbers of survivors at which a pair of steps is measured


@dataclass(frozen=True)
class Published:
    """The sizes of the published search and retraining; `retraining_batch` is a multiple of the search's."""

    images: int = 50_000
    arch_fraction: float = 0.25
    epochs: int = 50
    warm_epochs: int = 1
    shrink_start: int = 2
    retraining_epochs: int = 200
    retraining_batch: int = 2

    def pairs(self, batch: int) -> int:
        """Pairs of an α and a weight step in an epoch: batches of the weights' part."""
        return math.ceil(self.images * (1 - self.arch_fraction) / batch)

    def validation(self, batch: int) -> int:
        """Batches of α's part, on which the discrete cell is measured after each epoch."""
        return math.ceil(self.images * self.arch_fraction / batch)

    def survivors(self, candidates: int, slots: int) -> list[int]:
        """Candidates that are left during each epoch."""
        drops = drop_times(candidates, slots, self.epochs, self.shrink_start)
        return [candidates - sum(t <= epoch for t in drops) for epoch in range(self.epochs)]


def levels(candidates: int, slots: int) -> list[int]:
    """Numbers of survivors from all to one a slot, in equal steps."""
    return sorted({slots + round((candidates - slots) * k / (LEVELS - 1)) for k in range(LEVELS)})


def interpolated(seconds: Mapping[int, float], survivors: int) -> float:
    """Seconds of a pair at any number of survivors, linear between the measured ones."""
    known = sorted(seconds)
    if survivors in seconds:
        return seconds[survivors]
    above = min(max(bisect_left(known, survivors), 1), len(known) - 1)
    a, b = known[above - 1], known[above]
    return seconds[a] + (seconds[b] - seconds[a]) * (survivors - a) / (b - a)


def search_seconds(
    published: Published, batch: int, pair: Mapping[int, float], warm_pair: float, validation: float, slots: int
) -> float:
    """A whole search, given seconds of a pair of steps by survivors, of a warm pair, of validating a batch."""
    counts = published.survivors(max(pair), slots)
    epochs = [warm_pair if epoch < published.warm_epochs else interpolated(pair, n) for epoch, n in enumerate(counts)]
    return published.pairs(batch) * sum(epochs) + published.epochs * published.validation(batch) * validation


def measure_whole(
    measurer: Measurer,
    workload: Network,
    contestants: Sequence[str],
    retrained: Sequence[str],
    into: list[Whole],
    published: Published = Published(),
) -> None:
    """Measure what a search with each of `contestants` is made of, and a retraining with each of `retrained`."""
    large = workload.batch_size * published.retraining_batch
    for name in contestants:
        whole = Whole(name, CONTESTANTS[name].label, assumptions=_assumptions(published, workload, large))
        into.append(whole)
        try:
            with old_objects_aside():
                _one(measurer, workload, name, retrained, whole, published, large)
        except (Exception, OutOfTime) as error:
            whole.note = f"failed: {reason_of(error)}"
        measurer.changed()


def _one(
    measurer: Measurer,
    workload: Network,
    name: str,
    retrained: Sequence[str],
    whole: Whole,
    published: Published,
    large: int,
) -> None:
    kit, device, effort = measurer.kit, measurer.device, measurer.effort
    candidates, slots = kit.space.n_candidates, len(kit.space.slots)
    steps: dict[str, Step] = {}
    times: dict[str, Times] = {}

    def add(key: str, build: Callable[[], Step]) -> None:
        measurer.tell(f"whole search, {whole.label}: preparing {key}")
        with time_limit(effort.limit):
            steps[key] = build()
            times[key] = warm_up(steps[key], device)

    def train(activation: str, size: int) -> Callable[[], Step]:
        module = CONTESTANTS[activation].module
        assert module is not None
        return lambda: training(workload.task(), module(kit), workload.batch(device, size), device)

    def pair(survivors: int) -> Callable[[], Step]:
        def build() -> Step:
            searching = workload.searching(CONTESTANTS[name], kit, device)
            while searching.cell.n_survivors > survivors:
                searching.cell.drop_weakest()
            return searching.pair

        return build

    full = workload.searching(CONTESTANTS[name], kit, device)
    for activation in retrained:
        add(f"retraining with {activation}", train(activation, large))
    add("warm weight step", train(BASELINE, workload.batch_size))
    add("α step", lambda: full.alpha)
    add("validation", lambda: full.validate)
    for n in levels(candidates, slots):
        add(f"{n} survivors", pair(n))
    interleave(
        steps,
        times,
        device,
        effort.rounds,
        effort.budget,
        lambda done: measurer.tell(f"whole search, {whole.label}: round {done} of {effort.rounds}"),
    )

    def search(seconds: Callable[[str], float]) -> float:
        return search_seconds(
            published,
            workload.batch_size,
            {n: seconds(f"{n} survivors") for n in levels(candidates, slots)},
            seconds("α step") + seconds("warm weight step"),
            seconds("validation"),
            slots,
        )

    rounds = range(effort.rounds)
    by_round = [search(lambda key, r=r: times[key].seconds[r]) for r in rounds]  # type: ignore[misc]
    whole.search = search(lambda key: times[key].median)
    whole.search_epochs = 60 * published.epochs / whole.search
    batches = published.retraining_epochs * math.ceil(published.images / large)
    for activation in retrained:
        step = times[f"retraining with {activation}"]
        whole.retraining[activation] = batches * step.median
        whole.retraining_epochs[activation] = 60 * published.retraining_epochs / whole.retraining[activation]
        found = ratio(by_round, [batches * s for s in step.seconds])
        if found is not None:
            whole.ratios[activation] = found


def _assumptions(published: Published, workload: Network, large: int) -> list[str]:
    p = published
    return [
        f"{workload.label}; search: {p.epochs} epochs of {p.pairs(workload.batch_size)} pairs (α step and weight step "
        f"on {workload.batch_size} images each), {p.images:,} images split {1 - p.arch_fraction:.0%}/"
        f"{p.arch_fraction:.0%}; retraining: {p.retraining_epochs} epochs of {math.ceil(p.images / large)} steps on "
        f"{large} images.",
        f"Shrinking by the published schedule from epoch {p.shrink_start}; a pair is measured at {LEVELS} numbers of "
        f"survivors, linear in between. Weight steps of the first {p.warm_epochs} epoch(s) run with ReLU.",
        f"After each epoch the discrete cell is measured on all {p.validation(workload.batch_size)} batches of α's "
        "part. Not counted: refinement, checkpoints, the final test.",
        "Data is on the device: neither side loads or augments any. Every batch is a step of the optimisers; the "
        "published search accumulates two, which saves it every second one.",
    ]
