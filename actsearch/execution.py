"""Execution: how a network is run, not what it computes: the layout of its images in memory, and compilation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from actsearch.cell.mixed import MixedSite
from actsearch.errors import SettingsError, unknown_name
from actsearch.heap import keep_freed_memory


@dataclass(frozen=True)
class Execution:
    """How a task is run while it is `applied`. Results agree up to rounding whatever is chosen.

    channels_last: weights with four axes, and such batches, lie in memory with the channel last. Convolutions keep it.
    compile: True compiles each submodule of the task that has parameters by torch.compile, which needs a C++ compiler
        on CPU; "reduce-overhead" also captures CUDA graphs, and works on CUDA only. Sites of a mixed cell stay as they
        are (the graph breaks there), so that nothing is compiled again when α, tables or masks change.

    Raises SettingsError for other values.
    """

    channels_last: bool = False
    compile: bool | Literal["reduce-overhead"] = False

    def __post_init__(self) -> None:
        if not isinstance(self.channels_last, bool):
            raise SettingsError(f"channels_last must be true or false, not {self.channels_last!r}")
        if not isinstance(self.compile, bool) and self.compile != GRAPHS:
            raise SettingsError(unknown_name("value of compile", str(self.compile), ("true", "false", GRAPHS)))

    def check(self, accelerator: str = "auto", accumulate: int = 1, order: int = 1) -> None:
        """Raises SettingsError for CUDA graphs where there can be none.

        A graph's gradients lie in memory that its next pass writes again: they cannot wait for a second batch, as with
        `accumulate` above 1, or for the further passes of `order` 2.
        """
        if self.compile != GRAPHS:
            return
        if accelerator == "cpu" or not torch.cuda.is_available():
            raise SettingsError(f"compile {GRAPHS!r} captures CUDA graphs and needs a CUDA device; use true or false")
        if accumulate > 1 or order > 1:
            raise SettingsError(f"compile {GRAPHS!r} needs accumulate 1 and order 1; use true or false")

    @contextmanager
    def applied(self, task: pl.LightningModule) -> Iterator[None]:
        """Within it, `task` is run so; afterwards it is as it was. Swap activations before, and unswap after it."""
        with ExitStack() as stack:
            if self.channels_last:
                stack.enter_context(_channels_last(task))
            if self.compile:
                stack.enter_context(_compiled(task, None if self.compile is True else self.compile))
            yield


def make_trainer(options: Mapping[str, Any]) -> pl.Trainer:
    """Lightning's Trainer; one on the CPU keeps the memory that steps free, see `actsearch.heap`.

    Raises SettingsError for what Lightning refuses, such as an accelerator that is not there.
    """
    try:
        trainer = pl.Trainer(**options)
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise SettingsError(f"Lightning's Trainer refuses its settings: {' '.join(str(error).split())}") from error
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


GRAPHS = "reduce-overhead"
# Of one piece of code: blocks of several widths, two levels, evaluation, a last batch that is smaller.
RECOMPILATIONS = 128


@contextmanager
def _channels_last(task: pl.LightningModule) -> Iterator[None]:
    receive = task.on_after_batch_transfer

    def converted(batch: Any, dataloader_idx: int) -> Any:
        return apply_to_collection(receive(batch, dataloader_idx), Tensor, _to_channels_last)

    _lay_out(task, torch.channels_last)
    try:
        with _replaced(task, "on_after_batch_transfer", converted):
            yield
    finally:
        _lay_out(task, torch.contiguous_format)


def _lay_out(task: nn.Module, layout: torch.memory_format) -> None:
    for tensor in (*task.parameters(), *task.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def _to_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@contextmanager
def _compiled(task: nn.Module, mode: str | None) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS))
        for module in task.modules():
            if isinstance(module, MixedSite):
                stack.enter_context(_replaced(module, "forward", torch.compiler.disable(module.forward)))
        for child in task.children():
            if any(True for _ in child.parameters()):  # metrics and losses have none
                stack.enter_context(_replaced(child, "forward", torch.compile(child.forward, mode=mode)))
        yield


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Within it, the attribute `name` of this one module is `value`."""
    own = vars(module)
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        if had:
            own[name] = before
