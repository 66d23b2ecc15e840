"""What can be told about a running search: snapshots for whoever draws them, and where a NaN came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actsearch.cell.mixed import MixedCell, MixedSite
from actsearch.genotype import Genotype
from actsearch.ops.graph import INPUT
from actsearch.ops.spec import Value, registry

SAMPLE = 4096  # pre-activations kept of a site


@dataclass(frozen=True)
class CellSnapshot:
    """One cell at the end of an epoch.

    Attributes:
        probabilities: mean weight by slot and candidate, 0 for the dropped.
        survivors: ids by slot.
        genotype: the discrete cell at this moment.
        op_parameters: values by `slot/op/name`; of a vector a tuple. Where sites or channels have their own, the mean.
        at_sites: these, by `slot/op/name` and the name of the site.
        sites: names of the activation sites that share it.
        clip_hits: share of the elements beyond the clip's limit by `slot/op`, over the recorded pre-activations.
    """

    probabilities: Mapping[str, Mapping[str, float]]
    survivors: Mapping[str, tuple[str, ...]]
    genotype: Genotype
    op_parameters: Mapping[str, Value]
    clip_hits: Mapping[str, float]
    sites: tuple[str, ...] = ()
    at_sites: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    @property
    def entropy(self) -> dict[str, float]:
        """Entropy of every slot in nats: log n when undecided, 0 when one candidate is certain."""
        return {slot: sum(-p * math.log(p) for p in ps.values() if p > 0) for slot, ps in self.probabilities.items()}

    @property
    def margin(self) -> dict[str, float]:
        """Lead of the most probable candidate of every slot over the second."""
        return {
            slot: best[0] - best[1] if len(best := sorted(ps.values(), reverse=True)) > 1 else 1.0
            for slot, ps in self.probabilities.items()
        }

    @property
    def n_survivors(self) -> int:
        return sum(map(len, self.survivors.values()))

    @property
    def collapsed_share(self) -> float:
        """Share of the slots whose choice hands an input through or ignores it."""
        specs = [registry[choice.op] for choice in self.genotype.slots.values()]
        return sum(spec.projection or spec.constant for spec in specs) / len(specs)

    def undecided(self, threshold: float = 0.02) -> list[str]:
        """Slots with several survivors whose best leads by less than `threshold`."""
        return [s for s, m in self.margin.items() if len(self.survivors[s]) > 1 and m < threshold]


@dataclass(frozen=True)
class Snapshot:
    """A search at the end of an epoch (counted from 1): all that observers are told."""

    epoch: int
    epochs: int
    step: int
    phase: str
    cells: Mapping[str, CellSnapshot]
    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    learning_rates: Mapping[str, float]
    skipped: int
    seconds: float
    pre_activations: Mapping[str, Tensor] = field(repr=False, default_factory=dict)

    @property
    def inputs(self) -> Tensor:
        """The pre-activations of all sites together, 1-d float32."""
        found = list(self.pre_activations.values())
        return torch.cat(found) if found else torch.empty(0)


Observer = Callable[[Snapshot], None]


def snapshot_cell(cell: MixedCell, pre_activations: Tensor | None) -> CellSnapshot:
    """The present state of a cell; clip hits are counted on `pre_activations` (1-d) if given."""
    probabilities = cell.probabilities()
    return CellSnapshot(
        probabilities={
            slot.name: dict(zip(slot.candidates, probabilities[slot.name].tolist(), strict=True))
            for slot in cell.space.slots
        },
        survivors=cell.survivors,
        genotype=cell.genotype(),
        op_parameters={key: cell.op_parameters.value(key) for key in cell.op_parameters.specs},
        at_sites={
            key: {site: cell.op_parameters.values_at(key, k) for k, site in enumerate(cell.site_names)}
            for key, p in cell.op_parameters.specs.items()
            if p.scope != "network"
        },
        sites=tuple(cell.site_names),
        clip_hits={} if pre_activations is None else clip_hits(cell, pre_activations),
    )


@torch.no_grad()
def clip_hits(cell: MixedCell, x: Tensor) -> dict[str, float]:
    """Share of elements beyond the clip's limit for every surviving unbounded candidate, by `slot/op`, at inputs `x`.

    Slots further on see the mixture of the mean weights; parameters that differ from site to site are at their mean.
    """
    found: dict[str, float] = {}
    if cell.space.clip.kind == "none":
        return found
    probabilities = cell.probabilities()
    values = {INPUT: x}
    for slot in cell.space.slots:
        inputs = [values[i] for i in slot.inputs]
        mixture = torch.zeros_like(x)
        for op, p in zip(slot.candidates, probabilities[slot.name], strict=True):
            if op not in cell.survivors[slot.name]:
                continue
            spec = registry[op]
            y = spec.function(*inputs, **_parameters(cell, slot.name, op))
            if cell.space.clip.needed(spec, inputs_limited=INPUT not in slot.inputs):
                found[f"{slot.name}/{op}"] = int(cell.space.clip.hits(y)) / max(y.numel(), 1)
                y = cell.space.clip(y)
            mixture += p * y
        values[slot.name] = mixture
    return found


def _parameters(cell: MixedCell, slot: str, op: str) -> dict[str, Tensor]:
    return {p.name: cell.op_parameters.mean(f"{slot}/{op}/{p.name}") for p in registry[op].parameters}


@contextmanager
def recorded_inputs(model: nn.Module, kind: type[nn.Module] = MixedSite) -> Iterator[dict[str, Tensor]]:
    """Within it, collects up to SAMPLE evenly spaced inputs of every mixed site at its first call, float32 on CPU.

    Of another `kind` of module, by the name that it has in `model`.
    """
    found: dict[str, Tensor] = {}

    def record(name: str, inputs: tuple[Any, ...]) -> None:
        if name not in found:
            flat = inputs[0].detach().flatten()
            found[name] = flat[:: max(1, -(-flat.numel() // SAMPLE))].float().cpu()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda site, inputs: record(site.name if isinstance(site, MixedSite) else name, inputs)

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, kind)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def locate_non_finite(model: nn.Module, forward: Callable[[], object]) -> str:
    """In words, where a forward pass first meets NaN or infinity: a site's input, or an operation in it."""
    found: list[str] = []

    def hook(site: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(site, MixedSite)
        if found:
            return
        x = inputs[0].detach()
        if not x.isfinite().all():
            found.append(f"the input of site {site.name!r} is already not finite: data, weights or an earlier layer")
        elif not output.isfinite().all():
            found.append(f"at site {site.name!r}, {_bad_operation(site.cell, x)}")

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, MixedSite)]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "no activation site saw it: look at the layers after the last site, or at the loss"


def _bad_operation(cell: MixedCell, x: Tensor) -> str:
    values = {INPUT: x}
    for slot in cell.space.slots:
        inputs = [values[i] for i in slot.inputs]
        mixture = torch.zeros_like(x)
        for op in cell.survivors[slot.name]:
            y = registry[op].function(*inputs, **_parameters(cell, slot.name, op))
            if not y.isfinite().all():
                return f"operation {op!r} of slot {slot.name!r}"
            mixture += cell.space.clip(y) / len(cell.survivors[slot.name])
        values[slot.name] = mixture
    return "the weights of its candidates"
