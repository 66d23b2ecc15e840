"""Genotype: the discrete choice of a search, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import sympy

from actsearch.errors import ActsearchError, GenotypeError, unknown_name
from actsearch.files import write_text
from actsearch.ops import formula as formulas
from actsearch.ops.clip import Clip
from actsearch.ops.graph import INPUT, LEAF, Tree, node, topological_order
from actsearch.ops.spec import OpParameter, Value, registry

FORMAT = "actsearch.genotype"
# What is written is of the lowest version that can say it: 2 adds the scale, 3 vectors and values at sites.
VERSION = 3
_NUMBERS = re.compile(r"\[\s+-?\d[-+.,\s\de]*\]")  # a list of numbers, one a line
GREATEST = 1e30  # of a parameter's magnitude: well within float32


@dataclass(frozen=True)
class Choice:
    """What stands in one slot: an operation, what it reads, and the values of its parameters.

    Attributes:
        op: id.
        inputs: slots, or `x`.
        parameters: by name: a number, or the numbers of a vector. Of a parameter that sites or channels do not share,
            the mean over those of the network that was searched.
        at_sites: by the name of a site, the values that such parameters had there. By channel there is one number a
            channel, or of a vector of n as many numbers for its first entry, then for its second, …
    """

    op: str
    inputs: tuple[str, ...]
    parameters: Mapping[str, Value] = field(default_factory=dict)
    at_sites: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = registry[self.op]
        if len(self.inputs) != spec.arity:
            raise GenotypeError(f"operation {self.op!r} takes {spec.arity} input(s), not {len(self.inputs)}")
        expected = {parameter.name for parameter in spec.parameters}
        if set(self.parameters) != expected:
            raise GenotypeError(
                f"operation {self.op!r} needs a value for {sorted(expected) or 'no parameter'}, not for "
                f"{sorted(self.parameters)}"
            )
        parameters = {p.name: _value(self.op, p, self.parameters[p.name]) for p in spec.parameters}
        object.__setattr__(self, "parameters", {name: parameters[name] for name in self.parameters})
        own = {p.name: p for p in spec.parameters if p.scope != "network"}
        for site, values in self.at_sites.items():
            if not isinstance(values, Mapping) or set(values) != set(own):
                raise GenotypeError(
                    f"operation {self.op!r} needs values for {sorted(own) or 'no parameter'} at site {site!r}, not "
                    f"{reprlib.repr(values)}"
                )
        at_sites = {
            str(site): {name: _value(self.op, own[name], value, at_site=True) for name, value in values.items()}
            for site, values in self.at_sites.items()
        }
        object.__setattr__(self, "at_sites", at_sites)


@dataclass(frozen=True, eq=False)
class Genotype:
    """A discrete cell: one operation in every slot.

    Equality is that of the functions' canonical trees and clips: the order of commutative arguments, and slots that do
    not reach the output, make no difference; nor do the values at single sites.

    Attributes:
        slots: the choice in every slot.
        output: the slot whose value is the activation's.
        clip: the clip of unbounded operations, part of the function.
        space: name and hash of the search space that it came from; empty if written by hand.
        provenance: anything that is worth keeping (run, seed, task, score); plain JSON data.
        scale: the function is this constant times the cell's output; applied after the clip.

    Raises GenotypeError or UnknownNameError if it is not a complete acyclic cell of registered operations.
    """

    slots: Mapping[str, Choice]
    output: str
    clip: Clip = field(default_factory=Clip)
    space: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not _is_number(self.scale) or self.scale == 0:
            raise GenotypeError(
                f"the scale must be a number within ±{GREATEST:g}, and not 0, not {reprlib.repr(self.scale)}"
            )
        for name in self.slots:
            if name == INPUT or not name.isidentifier():
                raise GenotypeError(f"{name!r} cannot name a slot; use letters, digits and underscores (not {INPUT!r})")
        if self.output not in self.slots:
            raise GenotypeError(unknown_name("slot as output", self.output, self.slots))
        inputs = {name: choice.inputs for name, choice in self.slots.items()}
        try:
            for name in self.slots:  # those that the output does not need too
                topological_order(inputs, name)
        except ActsearchError as error:
            raise GenotypeError(str(error)) from None

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The slots that the output needs, each after its inputs."""
        return topological_order({name: choice.inputs for name, choice in self.slots.items()}, self.output)

    @cached_property
    def tree(self) -> Tree:
        """The canonical form of the function, without its clip and its scale."""
        trees = {INPUT: LEAF}
        for name in self.order:
            choice = self.slots[name]
            trees[name] = node(choice.op, [trees[i] for i in choice.inputs], choice.parameters)
        return trees[self.output]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Genotype):
            return NotImplemented
        return self.tree == other.tree and self.clip == other.clip and self.scale == other.scale

    def __hash__(self) -> int:
        return hash((self.tree, self.clip, self.scale))

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites at which operations have values of their own."""
        return tuple(dict.fromkeys(site for name in self.order for site in self.slots[name].at_sites))

    def at_site(self, site: str) -> Genotype:
        """The function with the values that its parameters had at `site`; those by channel keep their mean.

        The genotype itself if it has none of that site.
        """
        if site not in self.sites:
            return self
        slots = {}
        for name, choice in self.slots.items():
            here = choice.at_sites.get(site, {})
            by_site = {p.name for p in registry[choice.op].parameters if p.scope == "site"}
            values = {p: here[p] if p in here and p in by_site else value for p, value in choice.parameters.items()}
            slots[name] = Choice(choice.op, choice.inputs, values)
        return dataclasses.replace(self, slots=slots)

    @property
    def complexity(self) -> int:
        """Sum of the complexities of the operations that the output needs, as `SearchSpace` constrains it."""
        return sum(registry[self.slots[name].op].complexity for name in self.order)

    @property
    def smoothness(self) -> float:
        """k such that the function is C^k, as far as its operations and its clip tell (a lower bound)."""
        smoothness = math.inf
        for name in self.order:
            choice = self.slots[name]
            spec = registry[choice.op]
            smoothness = min(smoothness, spec.smoothness)
            if self.clip.needed(spec, inputs_limited=INPUT not in choice.inputs):
                smoothness = min(smoothness, self.clip.smoothness)
        return smoothness

    @property
    def formula(self) -> str:
        """The canonical formula in the language of `actsearch.ops.formula`, without the clip; it can be parsed back."""
        printed = _print(self.tree)
        return _unwrapped(printed) if self.scale == 1 else f"{_short(self.scale)} * {_factor(printed)}"

    def expression(self, x: sympy.Symbol | None = None) -> sympy.Expr:
        """The function without its clip as a sympy expression in a real `x`, lightly simplified."""
        symbol = x if x is not None else sympy.Symbol("x", real=True)
        plain = _to_sympy(self.tree, symbol)
        if self.scale != 1:
            plain = sympy.Float(_short(self.scale)) * plain
        # sympy.simplify can run for minutes on nested Max and erf; collecting factors and powers cannot.
        return sympy.factor_terms(sympy.powsimp(plain))

    def to_latex(self) -> str:
        """The expression in LaTeX."""
        return sympy.latex(rounded(self.expression()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return {
            "format": FORMAT,
            "version": self._version,
            "formula": self.formula,
            "slots": {
                name: {
                    "op": c.op,
                    "inputs": list(c.inputs),
                    "parameters": _plain(c.parameters),
                    **({"at_sites": {s: _plain(v) for s, v in c.at_sites.items()}} if c.at_sites else {}),
                }
                for name, c in self.slots.items()
            },
            "output": self.output,
            "clip": {"kind": self.clip.kind, "limit": self.clip.limit},
            "space": dict(self.space),
            "provenance": dict(self.provenance),
            **({} if self.scale == 1 else {"scale": self.scale}),
        }

    @property
    def _version(self) -> int:
        if any(c.at_sites or any(isinstance(v, tuple) for v in c.parameters.values()) for c in self.slots.values()):
            return 3
        return 1 if self.scale == 1 else 2

    def to_json(self) -> str:
        """`to_dict` as indented JSON. Raises GenotypeError if the provenance is not plain data."""
        try:
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
            text = _NUMBERS.sub(lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
            text.encode()
        except (TypeError, ValueError) as error:
            raise GenotypeError(f"genotype cannot be written as JSON: {error}") from None
        return text

    def save(self, path: Path | str) -> Path:
        """Write `to_json` to `path`, whole or not at all. Raises RunError."""
        return write_text(path, self.to_json() + "\n")

    @classmethod
    def from_dict(cls, data: Any) -> Genotype:
        """Read what `to_dict` wrote. Raises GenotypeError in one line if it is anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise GenotypeError(f'not a genotype: "format" must be {FORMAT!r}')
        version = data.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise GenotypeError(f"genotype version {reprlib.repr(version)} is not a positive whole number")
        if version > VERSION:
            raise GenotypeError(
                f"genotype of version {version}; this actsearch reads up to {VERSION}: upgrade actsearch"
            )
        try:
            slots = {
                str(name): Choice(
                    str(c["op"]), _names(c["inputs"]), dict(c.get("parameters", {})), dict(c.get("at_sites", {}))
                )
                for name, c in data["slots"].items()
            }
            clip = Clip(**data["clip"])
            space, provenance = (dict(data.get(key, {})) for key in ("space", "provenance"))
            return cls(slots, str(data["output"]), clip, space, provenance, data.get("scale", 1.0))
        except GenotypeError:
            raise
        except ActsearchError as error:
            raise GenotypeError(f"genotype cannot be read: {error}") from None
        except KeyError as error:
            raise GenotypeError(f"genotype is incomplete: it has no {error}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise GenotypeError(f"genotype is malformed: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what `to_json` wrote. Raises GenotypeError."""
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise GenotypeError(f"genotype is not valid JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: Path | str) -> Genotype:
        """Read a file that `save` wrote. Raises GenotypeError."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise GenotypeError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        except GenotypeError as error:
            raise GenotypeError(f"{path}: {error}") from None

    @classmethod
    def of_op(cls, op: str, clip: Clip | None = None) -> Genotype:
        """The genotype that is the unary operation `op` alone, parameters at their means."""
        spec = registry[op]
        choice = Choice(op, (INPUT,), {p.name: p.mean for p in spec.parameters})
        return cls({"u1": choice}, "u1", clip or Clip("none"))

    def __repr__(self) -> str:
        return f"Genotype({self.formula})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= GREATEST


def _value(op: str, parameter: OpParameter, value: Any, at_site: bool = False) -> Value:
    """A parameter's value as it is kept. Raises GenotypeError."""
    by_channel = at_site and parameter.scope == "channel"
    if not parameter.shape and not by_channel:
        if _is_number(value):
            return value
        raise GenotypeError(
            f"parameter {parameter.name!r} of {op!r} must be a number within ±{GREATEST:g}, not {reprlib.repr(value)}"
        )
    n = math.prod(parameter.shape)
    counted = isinstance(value, list | tuple) and len(value) > 0
    counted = counted and (len(value) % n == 0 if by_channel else len(value) == n)
    if counted and all(map(_is_number, value)):
        return tuple(value)
    raise GenotypeError(
        f"parameter {parameter.name!r} of {op!r} must be a list of {n}{' times the channels' if by_channel else ''} "
        f"numbers within ±{GREATEST:g}, not {reprlib.repr(value)}"
    )


def _plain(parameters: Mapping[str, Value]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in parameters.items()}


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise GenotypeError(f'"inputs" must be a list of names, not {reprlib.repr(value)}')
    return tuple(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def rounded(expression: sympy.Expr, digits: int = 6) -> sympy.Expr:
    """`expression` with its floating-point numbers rounded, for people to read."""
    return expression.xreplace({number: sympy.Float(number, digits) for number in expression.atoms(sympy.Float)})


def _to_sympy(tree: Tree, x: sympy.Symbol) -> sympy.Expr:
    if tree == LEAF:
        return x
    spec = registry[tree.op]
    arguments = [_to_sympy(argument, x) for argument in tree.arguments] or [x] * spec.arity
    parameters = {
        name: tuple(sympy.Float(_short(v)) for v in value) if isinstance(value, tuple) else sympy.Float(_short(value))
        for name, value in tree.parameters
    }
    return formulas.of_op(spec, *arguments, **parameters)


def _print(tree: Tree) -> str:
    if tree == LEAF:
        return INPUT
    spec = registry[tree.op]
    arguments = [_print(argument) for argument in tree.arguments]
    if not spec.printed:
        numbers = [_short(v) for _, value in tree.parameters for v in (value if isinstance(value, tuple) else (value,))]
        return f"{tree.op}({', '.join([*map(_unwrapped, arguments), *numbers])})"
    if "**" in spec.printed:
        arguments = [a if _is_atom(a) else f"({a})" for a in arguments]
    if spec.printed.startswith("-"):
        arguments = [f"({a})" if a.startswith("-") else a for a in arguments]
    if spec.printed.startswith("sigmoid({0})"):
        arguments[0] = _unwrapped(arguments[0])
    scalars = {name: value for name, value in tree.parameters if not isinstance(value, tuple)}
    values = {name: _short(value) for name, value in scalars.items()}
    # A mixing parameter is shown as the two shares that its sigmoid gives.
    for name, value in scalars.items():
        share = 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))
        values |= {f"{name}_share": _short(share), f"{name}_rest": _short(1 - share)}
    return spec.printed.format(*arguments, **values)


def _short(value: float) -> str:
    return format(value, ".6g")


def _factor(text: str) -> str:
    """`text` as it stands after a `*`."""
    return text if _is_atom(text) else f"({_unwrapped(text)})"


def _is_atom(text: str) -> bool:
    """Whether `text` is a name, a number, or a bracket with at most a function's name before it."""
    return re.fullmatch(r"[\w.]+", text) is not None or (
        re.match(r"\w*\(", text) is not None and _closes_at(text, text.index("(")) == len(text) - 1
    )


def _unwrapped(text: str) -> str:
    return text[1:-1] if text.startswith("(") and _closes_at(text, 0) == len(text) - 1 else text


def _closes_at(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return -1
