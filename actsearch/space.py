"""SearchSpace: which cells a search may build, read from YAML."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from actsearch.errors import ActsearchError, SettingsError, SpaceError, UnknownNameError, unknown_name
from actsearch.files import find_named, named_files, read_yaml
from actsearch.genotype import Choice, Genotype
from actsearch.ops.clip import Clip
from actsearch.ops.graph import INPUT, LEAF, Tree, node, topological_order
from actsearch.ops.spec import OpParameter, Value, registry

Sharing = Literal["network", "block", "site"]
FOLDER = "search_spaces"
# A slot names parameters of a ParameterDict, whose own attributes a slot must not hide.
_RESERVED = frozenset({INPUT, *dir(nn.ParameterDict())})


@dataclass(frozen=True)
class Slot:
    """A place in the cell's graph, and the operations that may stand in it."""

    name: str
    inputs: tuple[str, ...]
    candidates: tuple[str, ...]

    @property
    def arity(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Constraints:
    """What every function of a space must meet.

    Attributes:
        smoothness: least k such that every candidate, and the clip, is C^k.
        bounded: every candidate that is unary or reads the input is bounded, and every other binary one is if its
            inputs are: then so is the function.
        allow: if given, only these candidates.
        deny: not these candidates.
        max_complexity: greatest sum of the complexities of the chosen operations.
    """

    smoothness: int | None = None
    bounded: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_complexity: int | None = None

    def __post_init__(self) -> None:
        for name in ("smoothness", "max_complexity"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise SpaceError(f"constraint {name} must be a whole number from 0 on, not {value!r}")
        if not isinstance(self.bounded, bool):
            raise SpaceError(f"constraint bounded must be true or false, not {self.bounded!r}")
        for name in ("allow", "deny"):
            for op in getattr(self, name):
                if op not in registry:
                    raise SpaceError(f"constraint {name}: {unknown_name('operation', op, registry)}")

    def reason_against(self, op: str, reads_input: bool = True) -> str | None:
        """Why `op` may not be a candidate of a slot that reads the cell's input, or that does not; None if it may."""
        spec = registry[op]
        if self.allow and op not in self.allow:
            return "it is not in `allow`"
        if op in self.deny:
            return "it is in `deny`"
        if self.smoothness is not None and spec.smoothness < self.smoothness:
            return f"it is not C^{self.smoothness}"
        if self.bounded and (spec.arity == 1 or reads_input) and not spec.bounded:
            return "it is unbounded"
        if self.bounded and spec.smoothness < 0:
            return "it has a pole"
        return None


@dataclass(frozen=True)
class SearchSpace:
    """A directed acyclic cell of slots, the candidates of each, and what holds for all of them.

    Attributes:
        name: as in its file.
        slots: in topological order.
        output: the slot whose value is the activation's.
        clip: what happens to outputs of unbounded operations.
        sharing: one cell for the whole `network` (published), for each `block`, or for each `site`.
        constraints: already applied to the candidates; `max_complexity` also restricts their combinations.
        description, reference: for people.
    """

    name: str
    slots: tuple[Slot, ...]
    output: str
    clip: Clip = field(default_factory=Clip)
    sharing: Sharing = "network"
    constraints: Constraints = field(default_factory=Constraints)
    description: str = ""
    reference: str = ""

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | SearchSpace) -> SearchSpace:
        """A space by the name of a shipped file, by path, from a mapping as in YAML, or as it is.

        Raises SpaceError or UnknownNameError in one line that names the slot and what is wrong.
        """
        if isinstance(source, SearchSpace):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        path = find_named("search space", FOLDER, source)
        try:
            return cls.from_dict({"name": path.stem, **read_yaml(path, SpaceError)})
        except ActsearchError as error:
            raise SpaceError(f"search space {path.stem}: {error}") from None

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names of the shipped spaces."""
        return tuple(named_files(FOLDER))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """A space from the keys of its YAML file. Raises SpaceError or UnknownNameError."""
        known = {"name", "description", "reference", "cell", "output", "clip", "sharing", "constraints"}
        _check_keys("key", data, known)
        cell = data.get("cell")
        if not isinstance(cell, Mapping) or not cell:
            raise SpaceError("a search space needs a `cell` with at least one slot")
        limits = _mapping(data.get("constraints"), "constraints")
        _check_keys("constraint", limits, set(Constraints.__dataclass_fields__))
        options: dict[str, Any] = {k: tuple(_strings(v, k)) if k in ("allow", "deny") else v for k, v in limits.items()}
        constraints = Constraints(**options)
        inputs = {name: _slot_inputs(name, slot) for name, slot in cell.items()}
        output = data.get("output", list(cell)[-1])
        order = topological_order(inputs, str(output))
        if unread := sorted(set(inputs) - set(order)):
            raise SpaceError(f"slot {unread[0]!r} does not reach the output {output!r}: remove it or read it")
        slots = tuple(Slot(name, inputs[name], _candidates(name, cell[name], constraints)) for name in order)
        clip_options = _mapping(data.get("clip"), "clip")
        _check_keys("clip setting", clip_options, {"kind", "limit"})
        try:
            clip = Clip(**clip_options)
        except SettingsError as error:
            raise SpaceError(str(error)) from None
        if constraints.smoothness is not None and clip.smoothness < constraints.smoothness:
            raise SpaceError(
                f"constraint smoothness: {constraints.smoothness} rules out the hard clip; "
                "set clip kind to smooth or none"
            )
        sharing = data.get("sharing", "network")
        if sharing not in get_args(Sharing):
            raise SpaceError(unknown_name("sharing", str(sharing), get_args(Sharing)))
        space = cls(
            name=str(data.get("name") or "unnamed"),
            slots=slots,
            output=str(output),
            clip=clip,
            sharing=sharing,
            constraints=constraints,
            description=str(data.get("description") or "").strip(),
            reference=str(data.get("reference") or "").strip(),
        )
        if space.size == 0:
            raise SpaceError(
                f"no function has a complexity of at most {constraints.max_complexity}; raise max_complexity"
            )
        return space

    def to_dict(self) -> dict[str, Any]:
        """The keys of a YAML file that gives this space again, candidates written out."""
        constraints: dict[str, Any] = {}
        if self.constraints.max_complexity is not None:
            constraints["max_complexity"] = self.constraints.max_complexity
        if self.constraints.smoothness is not None:
            constraints["smoothness"] = self.constraints.smoothness
        return {
            "name": self.name,
            "description": self.description,
            "reference": self.reference,
            "cell": {s.name: {"inputs": list(s.inputs), "candidates": list(s.candidates)} for s in self.slots},
            "output": self.output,
            "clip": {"kind": self.clip.kind, "limit": self.clip.limit},
            "sharing": self.sharing,
            "constraints": constraints,
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that decides which functions the space holds; not of its name or description."""
        decisive = {k: v for k, v in self.to_dict().items() if k not in ("name", "description", "reference", "sharing")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def slot(self, name: str) -> Slot:
        """The slot of that name. Raises SpaceError."""
        for slot in self.slots:
            if slot.name == name:
                return slot
        raise SpaceError(unknown_name("slot", name, [s.name for s in self.slots]))

    @property
    def n_candidates(self) -> int:
        """Candidate operations over all slots."""
        return sum(len(slot.candidates) for slot in self.slots)

    @property
    def size(self) -> int:
        """Number of genotypes: ways to fill the slots within the greatest complexity."""
        limit = self.constraints.max_complexity
        if limit is None:
            return math.prod(len(slot.candidates) for slot in self.slots)
        return sum(count for complexity, count in self._complexities(self.slots).items() if complexity <= limit)

    @staticmethod
    def _complexities(slots: Sequence[Slot]) -> Counter[int]:
        """Number of ways to fill `slots` by total complexity."""
        ways: Counter[int] = Counter({0: 1})
        for slot in slots:
            longer: Counter[int] = Counter()
            for (total, count), op in product(ways.items(), slot.candidates):
                longer[total + registry[op].complexity] += count
            ways = longer
        return ways

    @cached_property
    def distinct(self) -> int | None:
        """Number of distinct functions, by canonical tree and with parameters free; None where it is not counted.

        It is counted for cells in which no slot is read twice and whose complexity is not constrained. The last slot's
        functions are counted without being built: all pairs, less what commutativity and projections identify.
        """
        readers = Counter(name for slot in self.slots for name in slot.inputs if name != INPUT)
        if self.constraints.max_complexity is not None or any(n > 1 for n in readers.values()):
            return None
        functions: dict[str, set[Tree]] = {INPUT: {LEAF}}
        for slot in self.slots[:-1]:
            if math.prod(len(functions[i]) for i in slot.inputs) * len(slot.candidates) > 2_000_000:
                return None
            functions[slot.name] = {
                node(op, arguments)
                for op in slot.candidates
                for arguments in product(*(functions[i] for i in slot.inputs))
            }
        last = self.slots[-1]
        sets = [functions[i] for i in last.inputs]
        specs = [registry[op] for op in last.candidates]
        handed_through: set[Tree] = set()
        for spec in specs:
            if spec.projection:
                handed_through |= sets[-1 if spec.id == "right" else 0]
            elif spec.constant:
                handed_through.add(node(spec.id, [LEAF]))
            elif spec.idempotent:
                handed_through |= set.intersection(*sets)
        builders = {spec.id: spec for spec in specs if not (spec.projection or spec.constant)}

        def built_again(tree: Tree) -> bool:
            """Whether a tree that a projection hands through is also built by the last slot itself."""
            if tree.op not in builders:
                return False
            orders = [tree.arguments, tree.arguments[::-1]] if builders[tree.op].commutative else [tree.arguments]
            return any(all(a in s for a, s in zip(order, sets, strict=True)) for order in orders)

        pairs = math.prod(map(len, sets))
        both = len(set.intersection(*sets)) if len(sets) == 2 else 0
        built = sum(
            pairs - (math.comb(both, 2) if spec.commutative else 0) - (both if spec.idempotent else 0)
            for spec in builders.values()
        )
        return built + sum(not built_again(tree) for tree in handed_through)

    def admits(self, ops: Mapping[str, str]) -> bool:
        """Whether a full choice of candidates keeps within the greatest complexity."""
        limit = self.constraints.max_complexity
        return limit is None or sum(registry[op].complexity for op in ops.values()) <= limit

    def random(self, seed: int) -> Genotype:
        """A genotype drawn uniformly from the space; parameters from their starting distributions."""
        generator = np.random.default_rng(seed)
        left = self.constraints.max_complexity
        chosen: dict[str, str] = {}
        for k, slot in enumerate(self.slots):
            # Each candidate counts as often as the slots after it can be filled within what it leaves.
            rest = self._complexities(self.slots[k + 1 :])
            weights = np.array(
                [
                    sum(n for c, n in rest.items() if left is None or c + registry[op].complexity <= left)
                    for op in slot.candidates
                ],
                dtype=float,
            )
            op = slot.candidates[generator.choice(len(weights), p=weights / weights.sum())]
            chosen[slot.name] = op
            if left is not None:
                left -= registry[op].complexity
        values = {
            (slot, parameter.name): _drawn(parameter, generator)
            for slot, op in chosen.items()
            for parameter in registry[op].parameters
        }
        return self.genotype(chosen, values, provenance={"random_seed": seed})

    def genotype(
        self,
        ops: Mapping[str, str],
        parameters: Mapping[tuple[str, str], Value] | None = None,
        provenance: Mapping[str, Any] | None = None,
        at_sites: Mapping[str, Mapping[str, Mapping[str, Value]]] | None = None,
    ) -> Genotype:
        """The genotype with the given operation in every slot.

        `parameters` gives values by (slot, parameter name); a missing one is its starting mean. `at_sites` gives those
        at single sites, by slot, site and name. Raises SpaceError if an operation is not a candidate of its slot.
        """
        parameters, at_sites = parameters or {}, at_sites or {}
        slots = {}
        for slot in self.slots:
            op = ops[slot.name]
            if op not in slot.candidates:
                raise SpaceError(unknown_name(f"candidate of slot {slot.name}", op, slot.candidates))
            values = {p.name: parameters.get((slot.name, p.name), p.mean) for p in registry[op].parameters}
            slots[slot.name] = Choice(op, slot.inputs, values, at_sites.get(slot.name, {}))
        return Genotype(slots, self.output, self.clip, {"name": self.name, "hash": self.hash}, provenance or {})


def _drawn(parameter: OpParameter, generator: np.random.Generator) -> Value:
    drawn = generator.normal(parameter.mean, parameter.std)
    return tuple(drawn.tolist()) if parameter.shape else float(drawn)


def _check_keys(kind: str, data: Mapping[str, Any], known: set[str]) -> None:
    for key in data:
        if key not in known:
            raise SpaceError(unknown_name(kind, str(key), known))


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SpaceError(f"`{key}` must hold keys and values, not {reprlib.repr(value)}")
    return value


def _strings(value: Any, key: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise SpaceError(f"`{key}` must be a name or a list of names, not {reprlib.repr(value)}")
    return list(value)


def _slot_inputs(name: Any, slot: Any) -> tuple[str, ...]:
    if not isinstance(name, str) or not name.isidentifier():
        raise SpaceError(f"{name!r} cannot name a slot; use letters, digits and underscores (YAML reads yes as true)")
    if name in _RESERVED:
        raise SpaceError(f"{name!r} cannot name a slot: the name is taken; try {name + '1'!r}")
    if not isinstance(slot, Mapping):
        raise SpaceError(f"slot {name!r} needs `inputs` and `candidates`")
    _check_keys(f"key of slot {name}", slot, {"inputs", "candidates"})
    inputs = tuple(_strings(slot.get("inputs", []), f"inputs of slot {name}"))
    if len(inputs) not in (1, 2):
        raise SpaceError(f"slot {name!r} must have one or two inputs, not {len(inputs)}")
    return inputs


def _candidates(name: str, slot: Mapping[str, Any], constraints: Constraints) -> tuple[str, ...]:
    inputs = _slot_inputs(name, slot)
    names = _strings(slot.get("candidates", []), f"candidates of slot {name}")
    try:
        asked = registry.select(names, len(inputs))
    except (ValueError, UnknownNameError) as error:
        raise SpaceError(f"slot {name!r}: {error}") from None
    reasons = {op: constraints.reason_against(op, INPUT in inputs) for op in asked}
    kept = tuple(op for op, reason in reasons.items() if reason is None)
    if not kept:
        why = "; ".join(f"{op}: {reason}" for op, reason in list(reasons.items())[:3]) or "it lists none"
        raise SpaceError(f"slot {name!r} has no candidate left ({why}); list more or relax the constraints")
    return kept
