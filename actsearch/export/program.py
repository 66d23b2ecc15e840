"""A function as a program of torch.export: a .pt2 file that torch runs without any Python of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from actsearch.files import write_atomically


def to_program(module: nn.Module, path: Path | str, rank: int = 2) -> Path:
    """Export `module` for float32 tensors of `rank` dimensions of any size. Raises RunError if it cannot be written."""
    example = torch.linspace(-2, 2, 6**rank).reshape([6] * rank)
    sizes = {k: torch.export.Dim(f"n{k}", min=1) for k in range(rank)}
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=(sizes,))

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            torch.export.save(program, file)

    return write_atomically(path, write)


def load_program(path: Path | str) -> Callable[[Tensor], Tensor]:
    """What `to_program` wrote, as a function of a tensor."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()
