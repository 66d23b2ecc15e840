"""A function as a Python file that needs NumPy alone, and SciPy where it takes erf."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

import numpy as np
import torch
from scipy import special

from actsearch.export import numpy_ops
from actsearch.export.inline import Dialect, write
from actsearch.export.source import as_computed, constants, header, names, summary, tables
from actsearch.genotype import Genotype

_IMPORTS = {"math": "import math", "np": "import numpy as np", "special": "from scipy import special"}
_TAKEN = {"NDArray", "Any", *_IMPORTS}

_LIMIT = '''def _limit(x: np.ndarray, bound: dict[str, float]) -> np.ndarray:
    """`x`, kept where the function is finite."""
    return np.clip(x, -bound[x.dtype.name], bound[x.dtype.name])'''

_SMOOTH_CLIP = '''def _clip(y: np.ndarray) -> np.ndarray:
    """`y`, smoothly kept within ±{limit:g}."""
    ratio = np.clip(y / {limit}, -100, 100)
    return {limit} * ratio * (1 + ratio**8) ** (-1 / 8)'''


def _constant(function: Callable[[float], float], value: float) -> float:
    """A function of a constant; the share of a mixture as in the Activation, where torch computes it in float32."""
    if function is special.expit:
        return float(torch.sigmoid(torch.tensor(value, dtype=torch.float32)))
    return float(function(value))


NUMPY = Dialect(
    function=numpy_ops.of_op,
    modules={"math": math, "np": np, "special": special},
    limit=numpy_ops.limit,
    clamp="np.clip({0}, -{1}, {1})",
    full_like="np.full_like({0}, {1})",
    constant=_constant,
    smooth_clip=_SMOOTH_CLIP,
)


def to_numpy_source(genotype: Genotype, name: str | None = None) -> str:
    """The text of a Python file with the function of an array of any shape.

    Values only. float32 stays float32, half precision is computed in it, everything else in float64.

    Args:
        genotype: the function.
        name: of the function, as in `to_source`.

    Raises SettingsError for a name that Python does not allow.
    """
    cls, function = names(genotype, name)
    sites = len(genotype.sites)
    genotype = as_computed(genotype)
    written = write(genotype, NUMPY, None, reserved={*_TAKEN, function, "dtype"})
    needs = "It needs NumPy and SciPy (for erf)." if "special" in written.modules else "It needs NumPy alone."
    used = written.modules | {"np"}
    blocks = ["\n".join(_IMPORTS[m] for m in group if m in used) for group in (["math"], ["np", "special"])]
    parts = [
        header(genotype, cls, needs, sites),
        *(block for block in blocks if block),
        *constants(written.constants),
        *tables(written.bounds, ""),
    ]
    helpers = [text.replace("Array", "np.ndarray") for text in written.helpers.values()]
    main = f'''def {function}(x: np.ndarray) -> np.ndarray:
    """{summary(genotype)}"""
    x = np.asarray(x)
    if x.dtype == np.float16:  # computed in float32
        with np.errstate(over="ignore"):
            return {function}(x.astype(np.float32)).astype(x.dtype)
    if x.dtype != np.float32:
        x = x.astype(np.float64)
{textwrap.indent(chr(10).join(written.body), "    ")}'''
    functions = [*([_LIMIT] if written.bounds else []), *helpers, main]
    return "\n\n".join(parts) + "\n\n\n" + "\n\n\n".join(functions) + "\n"
