"""The machine that is measured on, and whether it is quiet."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

import actsearch

BUSY = 0.2  # cores at work for others: above it a measurement is not to be trusted


def facts(device: torch.device) -> dict[str, Any]:
    """Plain data by which a result can be placed."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "actsearch": actsearch.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": "float32",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


class Quiet:
    """How much of the machine others use from its making on."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        """Seconds on the clock; core-seconds at work on the whole machine, None off Linux; those of this process."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        try:
            fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        except OSError:
            return time.perf_counter(), None, own
        idle = int(fields[3]) + int(fields[4])  # idle, and waiting for a disk
        busy = sum(map(int, fields[:8])) - idle
        return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own

    def others(self) -> float | None:
        """Cores that were at work for other processes, on the mean; None where nobody counts."""
        (t0, busy0, own0), (t1, busy1, own1) = self._start, self._now()
        if busy0 is None or busy1 is None or t1 <= t0:
            return None
        return max(0.0, (busy1 - busy0 - (own1 - own0)) / (t1 - t0))


def load_average() -> float | None:
    """The load average of the last minute; None where there is none."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def loudness(seconds: float = 1.0) -> float | None:
    """Cores that others use, watched for so many seconds."""
    quiet = Quiet()
    time.sleep(seconds)
    return quiet.others()
