"""What an activation costs: the time of a training step, memory, and what it keeps for the backward pass."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from actsearch.swap import Site

WARM_UP, MOST_STEPS = 3, 300


class StepClock(pl.Callback):
    """Times the training steps, without their data: the `WARM_UP` first ones are left out, `MOST_STEPS` are enough.

    On CUDA by events on the stream, which need no synchronisation; elsewhere by the wall clock.
    """

    def __init__(self) -> None:
        self._count = 0
        self._starts: list[Any] = []
        self._ends: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._wanted():
            self._starts.append(_now(pl_module.device))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._wanted():
            self._ends.append(_now(pl_module.device))
        self._count += 1

    def _wanted(self) -> bool:
        return self._count < WARM_UP + MOST_STEPS

    def seconds(self) -> float:
        """The median step. With fewer than 2 steps after the warm-up, of all there were; NaN if there was none."""
        steps = [_between(start, end) for start, end in zip(self._starts, self._ends, strict=False)]
        steps = steps[WARM_UP:] if len(steps) > WARM_UP + 1 else steps
        return median(steps) if steps else float("nan")


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def saved_bytes(make: Callable[[Site], nn.Module]) -> float:
    """Bytes that an activation keeps for the backward pass, for each float32 element of its input, on CPU.

    Counted on 2¹⁶ elements, each storage once; the input counts if it is kept. What a neighbour in a network keeps as
    well costs it nothing more, so this is an upper bound of what the activation adds.
    """
    module = copy.deepcopy(make)(Site("", ""))
    # As (B, C, H, W) with 16 channels and as many tokens: whichever axis a parameter by channel belongs to.
    x = torch.linspace(-3, 3, 2**16).reshape(16, 16, 16, 16)
    with torch.random.fork_rng(devices=[]):
        module(x)  # gives lazy parameters their shape
        owned = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = module(x.requires_grad_())
    del y  # lives until here, so that no storage is counted twice or takes another's address
    return sum(kept.values()) / x.numel()
