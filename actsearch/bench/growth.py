"""Spaces of any number of candidates and slots, to see what a step costs as they grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actsearch.errors import SettingsError
from actsearch.ops.spec import registry
from actsearch.space import SearchSpace


@dataclass(frozen=True)
class Size:
    """So many candidates, over so many slots."""

    candidates: int
    slots: int


# A slot holds an operation once, so 300 candidates need 15 slots; 30 are measured in as many as well, to tell the two
# apart. The last three differ in slots alone.
SIZES = (Size(10, 6), Size(30, 6), Size(110, 6), Size(30, 15), Size(300, 15), Size(36, 2), Size(36, 6), Size(36, 12))


def grown(size: Size) -> SearchSpace:
    """A space of that size.

    Half of the slots, rounded up, are unary and read x; binary slots join them as a balanced tree. One more unary slot
    stands on top if the number is even (2 slots: one unary, and a binary of it and x; 6 slots: that of the published
    cell). Candidates are dealt round the registry, slot by slot, so that different slots hold different ones.
    Raises SettingsError for a size that cannot be.
    """
    cell = dict(_graph(size.slots))
    room = {slot: len(_operations(len(inputs))) for slot, inputs in cell.items()}
    if not size.slots <= size.candidates <= sum(room.values()):
        raise SettingsError(
            f"{size.slots} slots hold from {size.slots} to {sum(room.values())} candidates, not {size.candidates}"
        )
    counts = _dealt(size.candidates, room)
    next_op = {1: 0, 2: 0}
    chosen = {}
    for slot, inputs in cell.items():
        ops = _operations(len(inputs))
        start = next_op[len(inputs)]
        chosen[slot] = [ops[(start + k) % len(ops)] for k in range(counts[slot])]
        next_op[len(inputs)] += counts[slot]
    return SearchSpace.from_dict(
        {
            "name": f"grown_{size.candidates}_{size.slots}",
            "cell": {slot: {"inputs": list(inputs), "candidates": chosen[slot]} for slot, inputs in cell.items()},
        }
    )


def _operations(arity: int) -> list[str]:
    """Those whose parameters are of the network, if they have any: the others are always dense, or fitted by site.

    The one with a pole, which the shipped spaces deny too, is left out: through many sites its gradient overflows.
    """
    return [
        spec.id
        for spec in registry.of_arity(arity)
        if spec.id != "div" and all(p.scope == "network" for p in spec.parameters)
    ]


def _graph(slots: int) -> Iterator[tuple[str, Sequence[str]]]:
    """Names and inputs of the slots, in topological order."""
    if slots == 2:
        yield from (("u1", ["x"]), ("b1", ["u1", "x"]))
        return
    if slots == 6:  # the published graph
        yield from (("u1", ["x"]), ("u2", ["x"]), ("b1", ["u1", "u2"]))
        yield from (("u3", ["b1"]), ("u4", ["x"]), ("b2", ["u3", "u4"]))
        return
    leaves = [f"u{k + 1}" for k in range((slots + 1) // 2)]
    yield from ((leaf, ["x"]) for leaf in leaves)
    waiting, made = leaves, 0
    while len(waiting) > 1:
        made += 1
        yield f"b{made}", waiting[:2]
        waiting = [*waiting[2:], f"b{made}"]
    if slots % 2 == 0:
        yield "top", waiting


def _dealt(total: int, room: dict[str, int]) -> dict[str, int]:
    """`total` candidates over the slots in proportion to their room, one in each at least."""
    counts = dict.fromkeys(room, 1)
    for _ in range(total - len(room)):
        slot = min((s for s in room if counts[s] < room[s]), key=lambda s: counts[s] / room[s])
        counts[slot] += 1
    return counts
