"""Gate: steps of an optimiser that change nothing where a flag on the device is false, without waiting for the flag."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


class Gate:
    """Takes the steps of one optimiser, each under a flag that the host does not know yet.

    Where the flag is false, parameters and state end as they were, to the same bits. How depends on the optimiser:

    - torch's fused ones decide in their kernel (`found_inf`). On CUDA, SGD, Adam and AdamW whose implementation was
      left to torch become fused; their results agree to rounding.
    - Of torch's others with all their state beside the parameters, what was there is kept, and put back on the device.
    - Whatever else counts on the host, such as RMSprop (unless it is `capturable`) or an optimiser that is not torch's:
      each step waits for its flag.

    The first step of a parameter makes its state, and what was not there cannot be put back: it waits, too.

    Args:
        optimizer: an Optimizer, or Lightning's wrapper of one; its state is loaded already.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._raw: Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._known: set[int] = set()
        self._beside = False
        prefer_fused(self._raw)

    def step(self, finite: Tensor | None = None) -> None:
        """One step of the optimiser, if `finite` (0-d, bool, on the device of the parameters) is true or left out."""
        if finite is None:
            self._optimizer.step()
            return
        parameters = [p for group in self._raw.param_groups for p in group["params"] if p.grad is not None]
        new = {id(p) for p in parameters} - self._known
        if new or not self._beside:
            if bool(finite):
                self._optimizer.step()
                self._known |= new
                self._beside = self._state_is_beside(parameters)
        elif getattr(self._raw, "_step_supports_amp_scaling", False):
            raw: Any = self._raw
            raw.found_inf = finite.logical_not().float()
            try:
                self._optimizer.step()
            finally:
                del raw.found_inf
        else:
            tensors = [*parameters, *(t for p in parameters for t in self._raw.state.get(p, {}).values())]
            with torch.no_grad():
                kept = [t.clone() for t in tensors]
                self._optimizer.step()
                for t, before in zip(tensors, kept, strict=True):
                    torch.where(finite, t, before, out=t)

    def _state_is_beside(self, parameters: list[nn.Parameter]) -> bool:
        """Whether all that a step changes is known, and lies on the device: only of torch's own is it known."""
        return type(self._raw).__module__.startswith("torch.optim.") and all(
            isinstance(value, Tensor) and value.device == p.device
            for p in parameters
            for value in self._raw.state.get(p, {}).values()
        )


def prefer_fused(optimizer: Optimizer) -> None:
    """Let torch's SGD, Adam and AdamW on CUDA be fused, where their implementation was left to torch.

    It is one kernel, and its count of steps lies on the device.
    """
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    if type(optimizer) not in (SGD, Adam, AdamW) or not all(p.is_cuda and p.is_floating_point() for p in parameters):
        return
    if any(group["foreach"] is not None or group["fused"] is False or group["differentiable"] for group in groups):
        return
    for group in groups:
        group["fused"] = True
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]  # as its constructor does
    for p, state in optimizer.state.items():  # of a checkpoint that was written elsewhere
        state.update({key: value.to(p.device) for key, value in state.items() if isinstance(value, Tensor)})
