"""Memory of the CPU that was freed stays with the process, for the next step to take.

glibc hands large freed blocks back to the system at once, and the next step pays for every page of them again: that is
a fifth to a quarter of a training step of a small network. The process's peak is the same.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Of mallopt(3); see glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 1 << 30  # bytes of a block that is kept
_NEVER = 2**31 - 1
# Whoever set one of these has chosen.
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, up to blocks of 1 GiB, until it ends; whether it does now.

    Only with glibc, and not where the environment sets glibc's own variables for this (`MALLOC_TRIM_THRESHOLD_` and
    the like, `GLIBC_TUNABLES`). A process that wants its memory back calls `malloc_trim(0)` of glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in _CHOSEN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
