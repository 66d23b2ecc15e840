"""MixedCell: the relaxed activation of a search space, and the sites at which a network calls it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actsearch.cell.evaluator import Evaluator, EvaluatorName
from actsearch.cell.parameters import OpParameters, drawn
from actsearch.cell.relaxation import Relaxation, make_relaxation
from actsearch.errors import SettingsError, SpaceError
from actsearch.genotype import Genotype
from actsearch.ops.graph import evaluate
from actsearch.ops.guard import HALF
from actsearch.ops.slopes import recovery
from actsearch.ops.spec import Value, registry
from actsearch.seeds import mix_seed, seed_torch
from actsearch.space import SearchSpace


class _Masks(nn.Module):
    """One boolean buffer a slot: True where a candidate survives."""


class MixedSite(nn.Module):
    """An activation site of a network: calls its cell with its own weights.

    It holds the cell without registering it, so the parameters of the network do not contain α: weights, α and op
    parameters are disjoint by construction.
    """

    def __init__(self, cell: MixedCell, index: int, name: str) -> None:
        super().__init__()
        self.cell: MixedCell
        object.__setattr__(self, "cell", cell)
        self.index = index
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        # The network's train() and eval() reach the site, not the cell.
        return self.cell(x, self.index, self.training)

    def extra_repr(self) -> str:
        return f"{self.name!r}, site {self.index} of {self.cell.space.name}"


class MixedCell(nn.Module):
    """The relaxed cell of a search space, shared by any number of activation sites.

    `forward(x, site, sampled)` takes a tensor of any shape and returns one of the same shape and dtype; half precision
    is computed in float32. In training mode the weights of a slot are draws of the relaxation, one for every site
    (the published variance reduction); in evaluation mode they are their means. What it computes is decided by `mode`:

    - `mixed`: the mixture.
    - `warm`: the standard activation `warm` (GRAFS' warm start), while α can already be trained.
    - `discrete`: the best surviving operation of each slot.

    Once every slot has one survivor, the mixture *is* the discrete function, bit for bit.

    Args:
        space: a SearchSpace, or the name or path of one.
        relaxation: `dirichlet`, `gumbel` or `softmax`, or a Relaxation.
        evaluator: `table`, `dense` or `auto`, for passes after a call of `resample`; see Evaluator. Other passes are
            dense.
        seed: of the start of α and op parameters and of every later draw. Draws are numbered (buffer `draws`), and
            draw k is a function of (seed, k) alone: a checkpoint resumes them exactly, and equal ranks draw alike.
        warm: id of the unary operation of the warm start.
        channel_axis: the axis of the inputs that holds the channels, for operations with parameters by channel.

    State: `alpha.SLOT`, `mask.SLOT`, `op_parameters.SLOT/OP/NAME`, `draws`, and that of `evaluator`.
    """

    draws: Tensor

    def __init__(
        self,
        space: SearchSpace | str | Path | Mapping[str, Any] = "grafs",
        relaxation: str | Relaxation = "dirichlet",
        evaluator: EvaluatorName = "auto",
        *,
        seed: int = 0,
        warm: str = "relu",
        channel_axis: int | None = None,
    ) -> None:
        super().__init__()
        self.space = SearchSpace.load(space)
        self.relaxation = make_relaxation(relaxation)
        if registry[warm].arity != 1:
            raise SettingsError(f"the warm start needs a unary operation; {warm!r} takes two inputs")
        self.evaluator = Evaluator(self.space, evaluator)
        self.seed = seed
        self.warm = warm
        self.mode: Literal["mixed", "warm", "discrete"] = "mixed"
        self.site_names: list[str] = []
        generator = torch.Generator().manual_seed(mix_seed(seed, 0))
        self.alpha = nn.ParameterDict()
        starts: dict[str, Tensor] = {}
        self.mask = _Masks()
        for slot in self.space.slots:
            # The published start: U(0, 1e-6).
            self.alpha[slot.name] = nn.Parameter(1e-6 * torch.rand(len(slot.candidates), generator=generator))
            self.mask.register_buffer(slot.name, torch.ones(len(slot.candidates), dtype=torch.bool))
            for op in slot.candidates:
                for p in registry[op].parameters:
                    if p.scope == "network":
                        starts[f"{slot.name}/{op}/{p.name}"] = drawn(p, generator)
        self.op_parameters = OpParameters(self.space, starts, seed, channel_axis)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._choice: dict[str, str] | None = None
        self._refresh()
        # As a hook it also runs when the cell is loaded as part of a larger module.
        self.register_load_state_dict_post_hook(_refresh_after_load)

    # -- sites ---------------------------------------------------------------------------------------------------

    def add_site(self, name: str) -> MixedSite:
        """A new activation site of that name; give it to `swap`, or put it where the activation is called."""
        self.site_names.append(name)
        self.op_parameters.add_site()
        return MixedSite(self, len(self.site_names) - 1, name)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, site: int = 0, sampled: bool | None = None) -> Tensor:
        self.op_parameters.meet(x, site)
        sampled = self.training if sampled is None else sampled
        mixed = self.mode == "mixed" and not self.is_discrete
        if mixed and sampled and self.evaluator.started:
            return self.evaluator.at_site(x, site)
        if x.dtype in HALF:
            return self.forward(x.float(), site, sampled).to(x.dtype)
        if mixed:
            weights = {slot: w[0] for slot, w in self._draw(1, sampled).items()}
            return self.evaluator.at_weights(x, weights, self.op_parameters.at_site(site, x.ndim))
        if self.mode == "warm":
            return registry[self.warm].function(x)
        return self._evaluate_choice(x, self._choice or self._only or self.choice(), site)

    def _evaluate_choice(self, x: Tensor, ops: Mapping[str, str], site: int) -> Tensor:
        parameters = self.op_parameters.at_site(site, x.ndim)
        return evaluate(x, self._order, ops, self._inputs, lambda *key: parameters["/".join(key)], self.space.clip)

    def resample(self, repeat: bool = False) -> None:
        """Draw new weights for every site, used by all forward passes until the next call or `release`.

        The search calls it before each step, so that several passes of one step see the same cell. With `repeat` the
        values are those of the last draw, on a new graph: a second backward pass to α needs one.
        """
        if repeat and self._n_draws:
            self._n_draws -= 1
        weights = self._draw(max(len(self.site_names), 1), self.training)
        self.evaluator.start(weights, self.op_parameters)

    def release(self) -> None:
        """Forget the drawn weights: from now on every call draws its own."""
        self.evaluator.stop()

    def _draw(self, n: int, sampled: bool) -> dict[str, Tensor]:
        device = self.draws.device
        with torch.autocast(device.type, enabled=False):
            if not (sampled and self.relaxation.stochastic):
                return {
                    slot: self.relaxation.expected(self._surviving_alpha(slot)).expand(n, -1)
                    for slot in self._survivors
                }
            seed = mix_seed(self.seed, 1 + self._n_draws)
            self._n_draws += 1
            self.draws.fill_(self._n_draws)
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices, device_type="cuda"):
                seed_torch(seed)
                return {slot: self.relaxation.sample(self._surviving_alpha(slot), n) for slot in self._survivors}

    def _surviving_alpha(self, slot: str) -> Tensor:
        alpha = self.alpha[slot].float()
        survivors = self._survivors[slot]
        return alpha if len(survivors) == len(alpha) else alpha[survivors]

    # -- the discrete choice ---------------------------------------------------------------------------------------

    @property
    def survivors(self) -> dict[str, tuple[str, ...]]:
        """Ids of the candidates left in every slot."""
        return {s.name: tuple(s.candidates[k] for k in self._survivors[s.name]) for s in self.space.slots}

    @property
    def n_survivors(self) -> int:
        """Candidates left over all slots."""
        return sum(map(len, self._survivors.values()))

    @property
    def is_discrete(self) -> bool:
        """Whether one candidate is left in every slot."""
        return self._is_discrete

    def probabilities(self) -> dict[str, Tensor]:
        """Mean weight of every candidate of every slot, 0 for the dropped; detached float32 tensors."""
        found = {}
        with torch.no_grad():
            for slot in self.space.slots:
                p = torch.zeros(len(slot.candidates), dtype=torch.float32, device=self.draws.device)
                p[self._survivors[slot.name]] = self.relaxation.expected(self._surviving_alpha(slot.name))
                found[slot.name] = p
        return found

    def drop(self, slot: str, candidate: int) -> None:
        """Remove a candidate of a slot by its position. Raises SpaceError if none would be left."""
        if self._survivors[slot] == [candidate]:
            raise SpaceError(f"candidate {candidate} is the last of slot {slot!r} and cannot be dropped")
        getattr(self.mask, slot)[candidate] = False
        self._refresh()

    def drop_weakest(self) -> tuple[str, str] | None:
        """One drop of the published shrinking: the smallest α of the slot with most survivors, the first on a tie.

        Returns the slot and the candidate's id, or None if the cell is discrete already.
        """
        if self.is_discrete:
            return None
        slot = max(self._survivors, key=lambda name: len(self._survivors[name]))
        alpha = self.alpha[slot].detach()
        weakest = min(self._survivors[slot], key=lambda k: float(alpha[k]))
        self.drop(slot, weakest)
        return slot, self.space.slot(slot).candidates[weakest]

    def choice(self) -> dict[str, str]:
        """The best surviving operation of every slot by mean weight, within the space's greatest complexity.

        With a limit on the complexity, the sum of log-probabilities is maximised exactly. The first wins a tie.
        """
        probabilities = {slot: p.tolist() for slot, p in self.probabilities().items()}
        limit = self.space.constraints.max_complexity
        # Best way to fill the slots so far, by the complexity spent (one entry if there is no limit).
        best: dict[int, tuple[float, dict[str, str]]] = {0: (0.0, {})}
        for slot in self.space.slots:
            longer: dict[int, tuple[float, dict[str, str]]] = {}
            for (spent, (score, chosen)), k in itertools.product(best.items(), self._survivors[slot.name]):
                op = slot.candidates[k]
                total = spent + registry[op].complexity if limit is not None else 0
                value = score + math.log(max(probabilities[slot.name][k], 1e-300))
                if (limit is None or total <= limit) and (total not in longer or value > longer[total][0]):
                    longer[total] = (value, {**chosen, slot.name: op})
            best = longer
        if not best:
            raise SpaceError(f"no surviving cell has a complexity of at most {limit}; raise max_complexity")
        return max(best.values(), key=lambda entry: entry[0])[1]

    def genotype(self, ops: Mapping[str, str] | None = None, provenance: Mapping[str, Any] | None = None) -> Genotype:
        """The genotype of `ops` (default: `choice()`) with the present values of its parameters, at sites too."""
        ops = ops or self.choice()
        values: dict[tuple[str, str], Value] = {}
        at_sites: dict[str, dict[str, dict[str, Value]]] = {}
        for key, p in self.op_parameters.specs.items():
            slot, op, name = key.split("/")
            if ops[slot] != op:
                continue
            values[slot, name] = self.op_parameters.value(key)
            if p.scope != "network":
                for k, site in enumerate(self.site_names):
                    here = at_sites.setdefault(slot, {}).setdefault(site, {})
                    here[name] = self.op_parameters.values_at(key, k)
        return self.space.genotype(ops, values, provenance, at_sites)

    @contextmanager
    def discrete(self, ops: Mapping[str, str] | None = None) -> Iterator[None]:
        """Within it, every site computes the discrete cell `ops` (default: `choice()`)."""
        mode, choice = self.mode, self._choice
        self.mode, self._choice = "discrete", dict(ops or self.choice())
        try:
            yield
        finally:
            self.mode, self._choice = mode, choice

    def anchor(self) -> Tensor:
        """Sum of the relaxation's anchors over the slots, a 0-d tensor."""
        terms = [self.relaxation.anchor(self._surviving_alpha(slot)) for slot in self._survivors]
        return torch.stack(terms).sum()

    def slope_recovery(self) -> Tensor | None:
        """S of every surviving slope candidate, each in proportion to its mean weight; None if there is none.

        Jagtap et al., arXiv 1909.12228, eq. 9, of the candidate's slopes at all sites; the weights are constants.
        """
        slopes = [key for key, p in self.op_parameters.specs.items() if p.is_slope]
        left = [key for key in slopes if key.split("/")[1] in self.survivors[key.split("/")[0]]]
        if not left:
            return None
        probabilities = self.probabilities()
        terms = []
        for key in left:
            slot, op, _ = key.split("/")
            p = probabilities[slot][self.space.slot(slot).candidates.index(op)]
            terms.append(p * recovery(list(self.op_parameters.slope_means(key))))
        return torch.stack(terms).sum()

    # -- state -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Derive from the masks what the forward pass needs on the host."""
        self._survivors: dict[str, list[int]] = {
            s.name: getattr(self.mask, s.name).nonzero().flatten().tolist() for s in self.space.slots
        }
        self._is_discrete = all(len(left) == 1 for left in self._survivors.values())
        # Known without a look at α, which on an accelerator would be a wait at every site.
        self._only = {slot: ops[0] for slot, ops in self.survivors.items()} if self._is_discrete else None
        self._order = tuple(slot.name for slot in self.space.slots)
        self._inputs = {slot.name: slot.inputs for slot in self.space.slots}
        self.evaluator.refresh(self._survivors)
        # Mirror on the host of the buffer, so that a step does not wait for the device.
        self._n_draws = int(self.draws)

    def extra_repr(self) -> str:
        return f"{self.space.name}, {self.n_survivors} candidates, {len(self.site_names)} sites, {self.mode}"


def _refresh_after_load(cell: Any, incompatible_keys: Any) -> None:
    cell._refresh()
