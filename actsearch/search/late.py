"""LateReadings: numbers on the device that the host reads some steps later, when they are long there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# The host is rarely so many steps ahead of the device. A fixed number, not "when it has come": all processes then
# read, and stop, at the same step.
DELAY = 4


class LateReadings:
    """A queue of small tensors on their way to the host, each with what it is about.

    On CUDA they are copied into pinned memory behind the work that makes them, without waiting. What has become `due`
    is `DELAY` steps old, so waiting for it holds nobody up unless the host is that far ahead.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Any, Tensor, Any]] = deque()

    def add(self, step: int, about: Any, values: Tensor) -> None:
        """Send `values` (1-d) of `step` on their way."""
        event = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(values.device))
        else:
            host = values.detach().clone()
        self._queue.append((step, about, host, event))

    def due(self, step: int | None = None) -> Iterator[tuple[Any, list[float]]]:
        """What was added `DELAY` steps before `step` or earlier, in order; without `step`, everything."""
        while self._queue and (step is None or self._queue[0][0] <= step - DELAY):
            _, about, host, event = self._queue.popleft()
            if event is not None:
                event.synchronize()
            yield about, host.tolist()
