"""Freed memory that stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc is not there")

CODE = """
import ctypes, resource, sys
from actsearch.heap import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
blocks, size = [None] * 20, 1 << 22
def step():
    for k in range(20):
        blocks[k] = libc.malloc(size)
        libc.memset(blocks[k], 1, size)
    for k in reversed(range(20)):
        libc.free(blocks[k])
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
before = faults()
for _ in range(10): step()
print(faults() - before)
"""


def run(how: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    said, count = done.stdout.split()
    return said, int(count)


def test_steps_that_keep_their_memory_do_not_ask_the_system_again() -> None:
    said, kept = run("keep")
    assert said == "True"
    assert kept < 2000
    # Otherwise each of 200 blocks of 4 MiB is asked for page by page, a thousand of them.
    assert run("leave")[1] > 10 * max(kept, 1)


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_chose_stays(name: str) -> None:
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    assert run("keep", **{name: value})[0] == "False"
