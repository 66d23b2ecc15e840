"""What is timed, by name. A new contestant is an entry of `CONTESTANTS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from actsearch.activation import Activation
from actsearch.bench.compiled import CompiledDenseCell
from actsearch.cell import MixedCell
from actsearch.genotype import Genotype
from actsearch.space import SearchSpace

BASELINE = "relu"  # every ratio is to its training step


@dataclass(frozen=True)
class Kit:
    """What contestants are made of.

    Attributes:
        space: of the mixed cells.
        winner: the discrete function.
        backend: of torch.compile.
    """

    space: SearchSpace
    winner: Genotype
    backend: str = "inductor"


@dataclass(frozen=True)
class Contestant:
    """An activation under search (`cell`), or one that is only trained with (`module`); the other is None.

    A module is made once for all sites: none of them has parameters, and compiled code is then shared.
    """

    name: str
    label: str
    module: Callable[[Kit], nn.Module] | None = None
    cell: Callable[[Kit], MixedCell] | None = None


def winner_compiled(kit: Kit) -> nn.Module:
    """The discrete function by its fused kernels."""
    return Activation(kit.winner, compiled=True)


CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("relu", "ReLU", module=lambda kit: nn.ReLU()),
        Contestant("gelu", "GELU", module=lambda kit: nn.GELU()),
        Contestant("silu", "SiLU", module=lambda kit: nn.SiLU()),
        Contestant("dense", "dense, eager", cell=lambda kit: MixedCell(kit.space, evaluator="dense")),
        Contestant(
            "dense_compiled", "dense, compiled", cell=lambda kit: CompiledDenseCell(kit.space, backend=kit.backend)
        ),
        Contestant("table", "table", cell=lambda kit: MixedCell(kit.space, evaluator="table")),
        Contestant("winner", "winner, eager", module=lambda kit: Activation(kit.winner)),
        Contestant("winner_compiled", "winner, compiled", module=winner_compiled),
    )
}
