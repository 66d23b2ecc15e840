"""Peak memory of one step: bytes held by tensors, from the allocator's own reports, and resident size."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from actsearch.bench.steps import Step

# The profiler's library writes two lines on standard error at each start and end; read at its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

_SECOND = "actsearch: second run"


def allocations(step: Step) -> list[int]:
    """Bytes that `step` allocates (positive) and frees (negative) for tensors on the CPU, in order.

    It is run twice, and the second run is told of: the profiler does not see that something is freed whose allocation
    it did not see, and a step may free what the one before it left.
    """
    gc.collect()  # what earlier steps left in cycles is not to be freed within this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = step()
        del result
        with record_function(_SECOND):
            result = step()
    del result  # here and not before: it is among what the step holds
    events = profiler.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == _SECOND)
    found = [
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU and event.start_ns() >= start
    ]
    return [n for _, n in sorted(found, key=lambda event: event[0])]


def highest(changes: Sequence[int]) -> int:
    """Most bytes held at once beyond those at the start, given the changes in order."""
    return max(accumulate(changes, initial=0))


def peak_bytes(step: Step, device: torch.device) -> int:
    """Most bytes that tensors hold during `step` beyond those that they held at its start.

    Exact on the CPU for what goes through torch's allocator; scratch space that libraries allocate by themselves is
    seen by `resident_growth` alone. On CUDA it is the allocator's peak.
    """
    if device.type != "cuda":
        return highest(allocations(step))
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held


def kept_bytes(step: Step, device: torch.device) -> int:
    """Bytes that tensors hold after `step` beyond those before, with its result: what a forward pass leaves."""
    if device.type != "cuda":
        return sum(allocations(step))
    held = torch.cuda.memory_allocated(device)
    result = step()
    left = torch.cuda.memory_allocated(device) - held
    del result
    return left


def resident_growth(step: Step) -> int | None:
    """Bytes by which the process's peak resident size during `step` exceeds its size before; None off Linux.

    A step that finds freed but resident memory to reuse shows less than it needs, so such memory is handed back first.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if hasattr(ctypes, "CDLL") else None
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from the present size
        before = _status("VmRSS")
        step()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    """Bytes of a line of the process's status. Raises OSError or KeyError where there is none."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be had; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
