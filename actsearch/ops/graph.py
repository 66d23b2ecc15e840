"""A cell as a directed acyclic graph of slots: its order, and its function as a tree of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from actsearch.errors import SpaceError
from actsearch.ops.clip import Clip
from actsearch.ops.spec import Value, registry

INPUT = "x"
MAX_DEPTH = 30  # slots on a path: a formula of such a depth can still be parsed
MAX_OPERATIONS = 500  # of the cell written out as a formula, in which a slot that is read twice stands twice


def topological_order(inputs: Mapping[str, Sequence[str]], output: str) -> tuple[str, ...]:
    """The slots that `output` needs, each after its inputs.

    Raises SpaceError if a slot reads what does not exist, if there is a cycle, or if the cell's formula would be too
    large.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(slot: str, reader: str) -> None:
        if slot == INPUT or slot in order:
            return
        if slot not in inputs:
            raise SpaceError(
                f"{reader} reads {slot!r}, which is neither {INPUT!r} nor a slot; slots: {', '.join(inputs)}"
            )
        if slot in path:
            cycle = [*path[path.index(slot) :], slot]
            raise SpaceError(
                f"the cell has a cycle: {' -> '.join(reversed(cycle))}; a slot may only read earlier slots"
            )
        if len(path) == MAX_DEPTH:
            raise SpaceError(f"the cell is deeper than {MAX_DEPTH} slots")
        path.append(slot)
        for name in inputs[slot]:
            visit(name, f"slot {slot!r}")
        path.pop()
        order.append(slot)

    visit(output, "the output")
    operations = {INPUT: 0}
    for slot in order:
        operations[slot] = 1 + sum(operations[name] for name in inputs[slot])
        if operations[slot] > MAX_OPERATIONS:
            raise SpaceError(f"the cell's formula has more than {MAX_OPERATIONS} operations; read slots less often")
    return tuple(order)


def evaluate(
    x: Tensor,
    order: Sequence[str],
    ops: Mapping[str, str],
    inputs: Mapping[str, Sequence[str]],
    parameters: Callable[[str, str, str], Tensor],
    clip: Clip,
) -> Tensor:
    """The discrete cell at `x` (any shape): the value of the last slot of `order`.

    `ops` and `inputs` are by slot; `parameters(slot, op, name)` hands out the tensor of a parameter. This one function
    is what the cell runs once it is discrete, and what the Activation runs afterwards.
    """
    values = {INPUT: x}
    for slot in order:
        spec = registry[ops[slot]]
        named = {p.name: parameters(slot, spec.id, p.name) for p in spec.parameters}
        y = spec.function(*(values[name] for name in inputs[slot]), **named)
        if clip.needed(spec, inputs_limited=INPUT not in inputs[slot]):
            y = clip(y)
        values[slot] = y
    return values[order[-1]]


class Tree(NamedTuple):
    """A function in canonical form: an operation, its parameter values, its arguments. A leaf is the input x.

    Two cells with equal trees compute the same function up to rounding (and, where an identity of the raw input was
    dropped, up to the clip of that input).
    """

    op: str
    parameters: tuple[tuple[str, Value], ...] = ()
    arguments: tuple[Tree, ...] = ()

    def ops(self) -> frozenset[str]:
        """The operations of the function."""
        own = frozenset() if self == LEAF else frozenset({self.op})
        return own.union(*(argument.ops() for argument in self.arguments))


LEAF = Tree(INPUT)


def node(op: str, arguments: Sequence[Tree], parameters: Mapping[str, Value] | None = None) -> Tree:
    """The canonical tree of `op` applied to canonical `arguments`.

    Projections vanish, as does an idempotent operation of equal arguments; constants drop their argument; the
    arguments of a commutative operation are sorted.
    """
    spec = registry[op]
    if spec.projection:
        return arguments[-1 if op == "right" else 0]
    values = tuple(sorted((parameters or {}).items()))
    if spec.constant:
        return Tree(op, values)
    if spec.idempotent and arguments[0] == arguments[1]:
        return arguments[0]
    return Tree(op, values, tuple(sorted(arguments) if spec.commutative else arguments))
