"""actsearch: differentiable search for activation functions.

    result = actsearch.search(my_lightning_module, my_datamodule, space="grafs")
    actsearch.swap(my_model, result.activation)

Importing this package does not import torch; the first use of one of its names does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from actsearch.activation import Activation, load
    from actsearch.api import SearchResult, search
    from actsearch.cell.mixed import MixedCell
    from actsearch.errors import ActsearchError
    from actsearch.genotype import Genotype
    from actsearch.ops.adaptive_slope import AdaptiveSlope
    from actsearch.ops.basis_activation import BasisActivation
    from actsearch.record import RunRecord, read_run
    from actsearch.space import SearchSpace
    from actsearch.swap import SwapReport, swap, unswap

# `search` and `swap` are also the names of modules. Those are callable and hand the call to their function, so it makes
# no difference which of the two a program imported first.
_HOME = {
    "Activation": "activation",
    "ActsearchError": "errors",
    "AdaptiveSlope": "ops.adaptive_slope",
    "BasisActivation": "ops.basis_activation",
    "Genotype": "genotype",
    "MixedCell": "cell.mixed",
    "RunRecord": "record",
    "SearchResult": "api",
    "SearchSpace": "space",
    "SwapReport": "swap",
    "load": "activation",
    "read_run": "record",
    "unswap": "swap",
}
_MODULES = ("cell", "data", "export", "models", "ops", "search", "swap", "tasks", "zoo")

__all__ = [
    "Activation",
    "ActsearchError",
    "AdaptiveSlope",
    "BasisActivation",
    "Genotype",
    "MixedCell",
    "RunRecord",
    "SearchResult",
    "SearchSpace",
    "SwapReport",
    "load",
    "read_run",
    "search",
    "swap",
    "unswap",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
