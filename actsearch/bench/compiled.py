"""The dense mixture as one compiled function: what a table competes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actsearch.cell import MixedCell
from actsearch.cell.relaxation import Relaxation
from actsearch.ops.graph import INPUT
from actsearch.ops.guard import HALF
from actsearch.ops.spec import registry
from actsearch.seeds import mix_seed
from actsearch.space import SearchSpace

Mixture = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


def plain_mixture(space: SearchSpace, survivors: Mapping[str, tuple[str, ...]]) -> Mixture:
    """The relaxed cell as a plain sum over `survivors` (ids by slot), differentiated by autograd alone.

    The function takes x of any shape, the weights of every slot, (n,), and parameters by `slot/op/name`, as
    DenseEvaluator does. What does not depend on tensors is worked out here, so that a compiler sees nothing else.
    """
    slots = []
    for slot in space.slots:
        terms = []
        for op in survivors[slot.name]:
            spec = registry[op]
            clip = space.clip if space.clip.needed(spec, INPUT not in slot.inputs) else None
            names = tuple((p.name, f"{slot.name}/{op}/{p.name}") for p in spec.parameters)
            terms.append((spec.function, clip, names))
        slots.append((slot.name, slot.inputs, tuple(terms)))

    def mixture(x: Tensor, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        values = {INPUT: x}
        for name, inputs, terms in slots:
            total: Tensor | None = None
            for k, (function, clip, names) in enumerate(terms):
                y = function(*(values[i] for i in inputs), **{short: parameters[full] for short, full in names})
                y = (y if clip is None else clip(y)) * weights[name][k]
                total = y if total is None else total + y
            assert total is not None  # a slot has a candidate
            values[name] = total
        return values[space.output]

    return mixture


@lru_cache(maxsize=32)
def _compiled(space: SearchSpace, survivors: tuple[tuple[str, tuple[str, ...]], ...], backend: str) -> Mixture:
    # One compiled function for all cells of a space, and one for all shapes: compiling takes a minute.
    return torch.compile(plain_mixture(space, dict(survivors)), dynamic=True, fullgraph=True, backend=backend)


class CompiledDenseCell(MixedCell):
    """A MixedCell whose mixture is evaluated by `plain_mixture` under torch.compile; for the bench alone.

    It draws by the same relaxation, but its draws are numbered by itself: they are not those of a MixedCell.
    `backend` is torch.compile's.
    """

    def __init__(
        self,
        space: SearchSpace | str | Path | Mapping[str, Any] = "grafs",
        relaxation: str | Relaxation = "dirichlet",
        *,
        seed: int = 0,
        backend: str = "inductor",
    ) -> None:
        super().__init__(space, relaxation, "dense", seed=seed)
        self.backend = backend
        self._draw_number = 0
        self._drawn: dict[str, Tensor] | None = None

    def resample(self, repeat: bool = False) -> None:
        self._draw_number += not repeat
        n = max(len(self.site_names), 1)
        device = self.draws.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            torch.manual_seed(mix_seed(self.seed, self._draw_number))
            self._drawn = {
                slot.name: self.relaxation.sample(self._alpha_of(slot.name, left), n)
                for slot, left in zip(self.space.slots, self.survivors.values(), strict=True)
            }

    def _alpha_of(self, slot: str, left: tuple[str, ...]) -> Tensor:
        candidates = self.space.slot(slot).candidates
        alpha = self.alpha[slot]
        return alpha if len(left) == len(candidates) else alpha[[candidates.index(op) for op in left]]

    def forward(self, x: Tensor, site: int = 0, sampled: bool | None = None) -> Tensor:
        if self.mode != "mixed" or self.is_discrete or self._drawn is None:
            return super().forward(x, site, sampled)
        if x.dtype in HALF:
            return self.forward(x.float(), site, sampled).to(x.dtype)
        function = _compiled(self.space, tuple(self.survivors.items()), self.backend)
        weights = {slot: w[site] for slot, w in self._drawn.items()}
        return function(x.reshape(-1), weights, self.op_parameters.at_site(site, 1)).view(x.shape)
