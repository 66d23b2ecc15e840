"""OpSpec, the one description of an operation, and the registry in which every operation is entered once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from actsearch.errors import UnknownNameError

Scope = Literal["network", "site", "channel"]
Value = float | tuple[float, ...]
Monotonicity = Literal["increasing", "decreasing", "constant"] | None

REALS = (-math.inf, math.inf)


@dataclass(frozen=True)
class OpParameter:
    """What an operation can be trained in: a scalar, such as the slope β of `beta_mul`, or a vector of coefficients.

    Attributes:
        name: of the argument of the operation's function.
        mean, std: it starts at a draw from N(mean, std²); a vector has a tuple of means.
        scope: who shares one value: the whole `network` (GAAF, arXiv 1906.01170), each activation `site` (L-LAAF,
            arXiv 1909.12228), or each `channel` of a site (N-LAAF).
        trained_with: the level that trains it where a search leaves that open: `alpha`, as published for β, or the
            `weights`, as published for slopes and coefficients.
        is_slope: whether the slope-recovery term counts it.

    The function is given a tensor whose first dimension is that of the vector, if it is one, and whose other
    dimensions broadcast with the input.
    """

    name: str
    mean: Value
    std: float = 0.0
    scope: Scope = "network"
    trained_with: Literal["alpha", "weights"] = "alpha"
    is_slope: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """() of a scalar, (n,) of a vector."""
        return (len(self.mean),) if isinstance(self.mean, tuple) else ()


@dataclass(frozen=True, eq=False)
class OpSpec:
    """What actsearch knows about an operation; the cell, the tests, the space checker and the exporters all read it.

    Attributes:
        id: lower-case name, the same in YAML, state_dict, TensorBoard, genotypes, formulas and errors.
        arity: 1 or 2.
        function: element-wise `(x, **parameters)` or `(x1, x2, **parameters)`; the tensors broadcast, the result has
            their common shape and dtype. Finite, with finite first and second derivatives, at every finite input.
        formula: the same in the language of `actsearch.ops.formula`, in `x` or in `x1` and `x2`.
        printed: how a formula shows it, with `{0}` and `{1}` for its arguments, `{name}` for a parameter and
            `{name_share}`, `{name_rest}` for its sigmoid and the rest to 1; default `id({0}, …)`.
        parameters: its trainable scalars.
        range: closure of the set of its values, parameters at their means.
        smoothness: k if it is C^k on the reals (`math.inf` for C^∞, -1 for discontinuous).
        kinks: points x at which a derivative up to the second is not continuous (unary operations).
        tie_kinks: whether a binary operation has a kink along x1 = x2.
        monotonic: on all of the reals, in its strict or weak sense; None if neither or binary.
        contracting: whether |f(x)| <= |x| (binary: <= max |x_i|), so that a limit on the inputs limits the output.
        exact_within: the greatest |input| up to which it follows its formula in the given dtype; beyond, a guard
            keeps it finite.
        commutative: f(x1, x2) = f(x2, x1).
        idempotent: f(x, x) = x.
        projection: it hands one of its inputs through unchanged (`identity`, `left`, `right`).
        complexity: what it adds to the complexity of a genotype.
        groups: names under which a search space may ask for it.
        reference: where it comes from.
    """

    id: str
    arity: int
    function: Callable[..., Tensor]
    formula: str
    reference: str
    printed: str = ""
    parameters: tuple[OpParameter, ...] = ()
    range: tuple[float, float] = REALS
    smoothness: float = math.inf
    kinks: tuple[float, ...] = ()
    tie_kinks: bool = False
    monotonic: Monotonicity = None
    contracting: bool = False
    exact_within: Mapping[str, float] = field(default_factory=dict)
    commutative: bool = False
    idempotent: bool = False
    projection: bool = False
    complexity: int = 1
    groups: frozenset[str] = frozenset()

    @property
    def bounded(self) -> bool:
        """Whether its values stay between finite limits for all inputs."""
        return all(math.isfinite(end) for end in self.range)

    @property
    def constant(self) -> bool:
        """Whether it ignores its input."""
        return self.monotonic == "constant"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of its arguments in `formula`."""
        return ("x",) if self.arity == 1 else ("x1", "x2")

    def __repr__(self) -> str:
        return f"OpSpec({self.id!r}: {self.formula})"

    def __reduce__(self) -> tuple[Callable[[str], OpSpec], tuple[str]]:
        # A copy of a cell, in this process or in another one, refers to the registered operation.
        return _registered, (self.id,)


class Registry(Mapping[str, OpSpec]):
    """Operations by id, in the order of their registration."""

    def __init__(self) -> None:
        self._specs: dict[str, OpSpec] = {}

    def register(self, spec: OpSpec) -> OpSpec:
        """Enter `spec`; raises ValueError if its id is taken."""
        if spec.id in self._specs:
            raise ValueError(f"operation {spec.id!r} is already registered")
        self._specs[spec.id] = spec
        return spec

    def __getitem__(self, op: str) -> OpSpec:
        """The spec of `op`; raises UnknownNameError, which lists near matches."""
        try:
            return self._specs[op]
        except KeyError:
            raise UnknownNameError("operation", op, self._specs) from None

    def __contains__(self, op: object) -> bool:
        return op in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def of_arity(self, arity: int) -> tuple[OpSpec, ...]:
        """All operations that take `arity` inputs."""
        return tuple(spec for spec in self._specs.values() if spec.arity == arity)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Ids of the members of every group."""
        members: dict[str, list[str]] = {}
        for spec in self._specs.values():
            for group in sorted(spec.groups):
                members.setdefault(group, []).append(spec.id)
        return {group: tuple(ids) for group, ids in sorted(members.items())}

    def select(self, names: Iterable[str], arity: int) -> tuple[str, ...]:
        """Ids of `arity` for a list of ids and `group:NAME`s, without repetition, in the order given.

        Raises UnknownNameError for an unknown id or group, and ValueError for an id of the other arity.
        """
        groups = self.groups()
        chosen: dict[str, None] = {}
        for name in names:
            if name.startswith("group:"):
                group = name.removeprefix("group:")
                if group not in groups:
                    raise UnknownNameError("group of operations", group, groups)
                chosen.update(dict.fromkeys(op for op in groups[group] if self[op].arity == arity))
            elif self[name].arity != arity:
                raise ValueError(f"{name!r} takes {self[name].arity} input(s); an operation of {arity} is needed here")
            else:
                chosen[name] = None
        return tuple(chosen)


registry = Registry()


def registrar(arity: int, group: str, reference: str) -> Callable[..., OpSpec]:
    """A function `(id, function, formula, **facts)` that registers operations of one arity, group and reference."""

    def register(op: str, function: Callable[..., Tensor], formula: str, **facts: Any) -> OpSpec:
        spec = OpSpec(op, arity, function, formula, reference, groups=frozenset({group}), **facts)
        return registry.register(spec)

    return register


def _registered(op: str) -> OpSpec:
    return registry[op]
