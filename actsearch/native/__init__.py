"""Kernels in C++ for the CPU: compiled for this machine when they are first needed, and kept on disk.

A file of C++ stands beside the module that calls it, and takes its constants from there. What is compiled depends on
the source, the constants, the compiler and the processor, and so does its name on disk: a home that several machines
share holds one for each. It is moved into place when it is complete, so that no process finds half of one, and none
waits for another.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

_FLAGS = (
    "-std=c++17",
    "-O3",
    # The bits of PyTorch's own operations: a product is rounded before it is added to.
    "-ffp-contract=off",
    # Nobody looks at the floating-point flags, and comparisons that may set them are not turned into vectors.
    "-fno-trapping-math",
    "-fno-math-errno",
    "-Wno-psabi",  # how wide vectors are handed over matters to nobody outside the file
    "-shared",
    "-fPIC",
)
# Tried in turn. OpenMP is that of PyTorch, already in the process, where both have GCC's.
_EXTRAS = (("-march=native", "-fopenmp"), ("-march=native",), ())
_SHARED = Path(__file__).with_name("rows.hpp")
_TIMEOUT = 120  # seconds
_FEW = 1 << 14  # elements: below, to wake threads takes longer than the work

_told = False


class Library:
    """The kernels of the C++ file `source`, compiled with `constants` as macros."""

    def __init__(self, source: Path, constants: Mapping[str, int]) -> None:
        self.source = source
        self.constants = constants

    @cached_property
    def kernels(self) -> ctypes.CDLL | None:
        """Its functions; None if there is no compiler or it fails, of which a process warns once and tries no more."""
        try:
            return self._load()
        except (OSError, subprocess.SubprocessError) as error:
            _warn(error)
            return None

    def _load(self) -> ctypes.CDLL:
        name, *options = shlex.split(os.environ.get("CXX", "")) or ["c++"]  # "ccache g++" is one too
        found = shutil.which(name)
        if found is None:
            raise FileNotFoundError(f"no C++ compiler {name!r}")
        compiler = [found, *options]
        macros = [f"-D{key}={value}" for key, value in sorted(self.constants.items())]
        sources = [path.read_text(encoding="utf-8") for path in (_SHARED, self.source)]
        parts = (*sources, *macros, *_FLAGS, *compiler, _machine())
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
        path = _folder() / f"{self.source.stem}-{digest}.so"
        if not path.exists():
            _compile(compiler, [*macros, f"-I{_SHARED.parent}", str(self.source)], path)
        return ctypes.CDLL(str(path))


def threads(elements: int) -> int:
    """On how many threads a kernel with so many elements runs: those of PyTorch, or one for few."""
    return 1 if elements < _FEW else torch.get_num_threads()


def pointer(t: Tensor) -> ctypes.c_void_p:
    """Where the elements of a contiguous tensor on the CPU begin."""
    assert t.is_contiguous()
    assert t.device.type == "cpu"
    return ctypes.c_void_p(t.data_ptr())


def _compile(compiler: list[str], arguments: list[str], library: Path) -> None:
    handle, unfinished = tempfile.mkstemp(suffix=".tmp", dir=library.parent)
    os.close(handle)
    try:
        for extra in _EXTRAS:
            command = [*compiler, *_FLAGS, *extra, *arguments, "-o", unfinished]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode == 0:
                os.replace(unfinished, library)
                return
        raise OSError(f"{' '.join(compiler)} fails: {done.stderr.strip() or done.returncode}")
    finally:
        Path(unfinished).unlink(missing_ok=True)


@cache
def _folder() -> Path:
    """Where libraries are kept; for this process alone if the user's cache cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "actsearch" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        own = tempfile.TemporaryDirectory(prefix="actsearch-")
        atexit.register(own.cleanup)
        return Path(own.name)


def _machine() -> str:
    """What the compiler's `native` depends on, and the libraries that it links."""
    told = platform.machine() + "".join(platform.libc_ver())
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told += next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return told + platform.processor()


def _warn(error: Exception) -> None:
    global _told
    if _told:
        return
    _told = True
    reason = " ".join(f"{error}".split())[:300]
    warnings.warn(
        f"tables are looked up without compiled kernels, several times slower: {reason}; is there a C++ compiler?",
        stacklevel=4,
    )
