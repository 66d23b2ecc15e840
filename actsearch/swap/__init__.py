"""swap: find the activation sites of a model and replace them, telling what was and what was not replaced."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from actsearch.swap.catalog import ACTIVATION_TYPES, FUNCTIONS, GATE_TYPES
from actsearch.swap.core import swap, unswap
from actsearch.swap.report import Site, SwapReport

__all__ = ["ACTIVATION_TYPES", "FUNCTIONS", "GATE_TYPES", "Site", "SwapReport", "swap", "unswap"]


class _Callable(ModuleType):
    """Makes `actsearch.swap(...)` work although the package has the function's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> SwapReport:
        return swap(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
