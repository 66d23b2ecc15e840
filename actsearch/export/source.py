"""A function as a Python file that needs torch alone and reads as written by hand."""

from __future__ import annotations

import json
import keyword
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

import actsearch
from actsearch.errors import SettingsError
from actsearch.export.inline import Bound, Dialect, constant_name, formatted, write
from actsearch.genotype import Genotype
from actsearch.ops import guard
from actsearch.ops.spec import Value

_MODULES = {"torch": torch, "F": F, "math": math}
_IMPORTS = {"torch": "import torch", "F": "import torch.nn.functional as F", "math": "import math"}
_TAKEN = {"F", "Tensor", "math", "nn", "np", "numpy", "special", "torch"}

_LIMIT = '''def _limit(x: Tensor, bound: dict[torch.dtype, float]) -> Tensor:
    """`x`, kept where the function and its derivatives are finite."""
    return x.clamp(-bound[x.dtype], bound[x.dtype])'''

_SMOOTH_CLIP = '''def _clip(y: Tensor) -> Tensor:
    """`y`, smoothly kept within ±{limit:g}."""
    ratio = (y / {limit}).clamp(-100, 100)
    return {limit} * ratio * (1 + ratio.square().square().square()) ** (-1 / 8)'''

TORCH = Dialect(
    function=lambda spec: spec.function,
    modules=_MODULES,
    limit=guard.limit,
    clamp="{0}.clamp(-{1}, {1})",
    full_like="torch.full_like({0}, {1})",
    constant=lambda function, value: float(function(torch.tensor(value, dtype=torch.float32))),
    smooth_clip=_SMOOTH_CLIP,
)


def to_source(genotype: Genotype, name: str | None = None, trainable: bool = False) -> str:
    """The text of a Python file with the function, and an nn.Module of it; both of one tensor of any shape.

    It computes the same bits as `Activation`. Parameters of operations (β, γ) are constants in it, of float32 as in
    the Activation; if `trainable`, they are the module's, with the same keys in its state_dict, and there is no
    function beside the module.

    Args:
        genotype: the function.
        name: of the module's class, and in lower case of the function; default: as in the zoo, or `Activation`.
        trainable: whether the parameters can be trained.

    Raises SettingsError for a name that Python does not allow, GenotypeError if an operation's source cannot be read.
    """
    cls, function = names(genotype, name)
    sites = len(genotype.sites)
    genotype = as_computed(genotype)
    written = write(
        genotype,
        TORCH,
        (lambda slot, parameter: f"self.{slot}_{parameter}") if trainable else None,
        reserved={*_TAKEN, cls, function},
        indent=8 if trainable else 4,
    )
    imports = [_IMPORTS["math"]] if "math" in written.modules else []
    third = [_IMPORTS[module] for module in ("torch", "F") if module in written.modules | {"torch"}]
    parts = [
        header(genotype, cls, "It needs torch alone.", sites),
        "\n\n".join("\n".join(block) for block in (imports, [*third, "from torch import Tensor, nn"]) if block),
        *constants(_vectors(genotype) if trainable else written.constants),
        *tables(written.bounds, "torch."),
    ]
    helpers = [*([_LIMIT] if written.bounds else []), *written.helpers.values()]
    body = "\n".join(written.body)
    if trainable:
        main = [_trainable_class(genotype, cls, body)]
    else:
        main = [_function(genotype, function, body), _class(cls, function)]
    return "\n\n".join(parts) + "\n\n\n" + "\n\n\n".join([*helpers, *main]) + "\n"


def names(genotype: Genotype, name: str | None) -> tuple[str, str]:
    """Names of the class and of the function. Raises SettingsError."""
    given = name or str(genotype.provenance.get("zoo") or "Activation")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", given):
        raise SettingsError(f"{given!r} cannot name a class; use letters, digits and underscores, a letter first")
    cls = given if given[0].isupper() else "".join(part[:1].upper() + part[1:] for part in given.split("_"))
    function = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", given).lower()
    for word in (cls, function):
        if keyword.iskeyword(word) or word in _TAKEN or word == "x":
            raise SettingsError(f"{given!r} cannot name a class: Python, torch or the file itself uses {word!r}")
    return cls, function


def as_computed(genotype: Genotype) -> Genotype:
    """The genotype with its parameters rounded to float32, as Activation holds them."""
    data = genotype.to_dict()
    for slot in data["slots"].values():
        slot.pop("at_sites", None)
        slot["parameters"] = {
            name: torch.tensor(value, dtype=torch.float32).tolist() for name, value in slot["parameters"].items()
        }
    return Genotype.from_dict(data)


def header(genotype: Genotype, title: str, needs: str, sites: int = 0) -> str:
    """The docstring of an exported file: what the function is and where it comes from; means over so many sites."""
    clip = genotype.clip
    lines = [f"{title}: {genotype.formula}", ""]
    if clip.kind != "none":
        lines += [f"The value of every unbounded operation is kept within ±{clip.limit:g} by a {clip.kind} clip.", ""]
    if sites:
        lines += [f"Its parameters are means over the {sites} sites of the network that was searched.", ""]
    lines += [f"Written by actsearch {actsearch.__version__}. {needs}"]
    space = {"space": dict(genotype.space)} if genotype.space else {}
    origin: dict[str, Any] = {**space, **genotype.provenance}
    if origin:
        lines += ["", "Where it comes from:"]
        for key, value in origin.items():
            lines += textwrap.wrap(
                f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}",
                width=84,
                initial_indent="    ",
                subsequent_indent="        ",
            )
    # Whatever the provenance holds, it stays within the docstring, and the file can be read.
    text = "\n".join(line.rstrip() for line in lines).replace('"""', "'''")
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return f'{"r" if chr(92) in text else ""}"""{text}\n"""'


def constants(vectors: Mapping[str, Sequence[float]]) -> list[str]:
    """The module-level constants: coefficients by name."""
    lines = []
    for name, values in vectors.items():
        lines += [f"{name} = (", *(f"    {formatted(repr(value))}," for value in values), ")"]
    return ["\n".join(lines)] if lines else []


def tables(bounds: dict[str, Bound], dtype_prefix: str) -> list[str]:
    """The module-level tables of guards, by dtype."""
    if not bounds:
        return []
    lines = ["# By dtype, beyond what an operation or its derivatives would overflow."]
    for name, bound in sorted(bounds.items()):
        lines.append(f"{name} = {{")
        lines += [
            f"    {_dtype(dtype, dtype_prefix)}: {formatted(repr(bound[dtype]))}," for dtype in ("float32", "float64")
        ]
        lines.append("}")
    return ["\n".join(lines)]


def _dtype(name: str, prefix: str) -> str:
    return f"{prefix}{name}" if prefix else f'"{name}"'


def _function(genotype: Genotype, name: str, body: str) -> str:
    return f'''def {name}(x: Tensor) -> Tensor:
    """{summary(genotype)}"""
{_HALF.format(call=name)}
{textwrap.indent(body, "    ")}'''


_HALF = """    if x.dtype in (torch.float16, torch.bfloat16):  # computed in float32
        return {call}(x.float()).to(x.dtype)"""


def _class(name: str, function: str) -> str:
    return f'''class {name}(nn.Module):
    """`{function}` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return {function}(x)'''


def _trainable_class(genotype: Genotype, name: str, body: str) -> str:
    parameters = [
        f"self.{slot}_{parameter} = nn.Parameter(torch.tensor({_literal(slot, parameter, value)}))"
        for slot in genotype.order
        for parameter, value in genotype.slots[slot].parameters.items()
    ]
    start = ["    def __init__(self) -> None:", "        super().__init__()", *(f"        {p}" for p in parameters), ""]
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            f'    """{summary(genotype)}"""',
            "",
            *(start if parameters else []),
            "    def forward(self, x: Tensor) -> Tensor:",
            textwrap.indent(_HALF.format(call="self.forward"), "    "),
            textwrap.indent(body, "        "),
        ]
    )


def _literal(slot: str, parameter: str, value: Value) -> str:
    return constant_name(slot, parameter) if isinstance(value, tuple) else formatted(repr(value))


def _vectors(genotype: Genotype) -> dict[str, tuple[float, ...]]:
    return {
        constant_name(slot, parameter): value
        for slot in genotype.order
        for parameter, value in genotype.slots[slot].parameters.items()
        if isinstance(value, tuple)
    }


def summary(genotype: Genotype) -> str:
    """The one line that says what an exported function is."""
    formula = genotype.formula
    return f"{formula}, element by element." if len(formula) <= 60 else "The function, element by element."
