"""Functions of tensors that are compiled when they are first called, where a compiler is at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch

# Indices into a table lie within it by construction; and the number of threads is read when a kernel runs, so that it
# need not be compiled again for another.
_OPTIONS: dict[str, Any] = {"assert_indirect_indexing": False, "cpp.dynamic_threads": True}


class Compiled:
    """`function`, compiled for tensors of any length at its first call; plain, after one warning, if that fails.

    `function` must be pure and take tensors. Once compiling has failed in a process, it is not tried again there.
    """

    failed: ClassVar[bool] = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._run: Callable[..., Any] | None = None

    def __call__(self, *tensors: torch.Tensor) -> Any:
        if Compiled.failed:
            return self._function(*tensors)
        if self._run is None:
            self._run = torch.compile(self._function, dynamic=True, options=_OPTIONS)
        try:
            return self._run(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = self._function(*tensors)  # what is wrong with the tensors themselves is raised here
            Compiled.failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(
                f"tables are looked up without compiled kernels, several times slower: {reason}; is there a C++ "
                "compiler?",
                stacklevel=2,
            )
            return result
