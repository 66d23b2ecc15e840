"""A function as a sympy expression with its clip and its scale, and as LaTeX."""

from __future__ import annotations

import sympy

from actsearch.export import bounds
from actsearch.export.source import as_computed, header, names
from actsearch.genotype import Genotype, rounded
from actsearch.ops import formula as formulas
from actsearch.ops.clip import Clip
from actsearch.ops.graph import INPUT
from actsearch.ops.spec import REALS, Value, registry

CLIP = sympy.Function("clip")


def to_sympy(genotype: Genotype, x: sympy.Symbol | None = None, named_clip: bool = False) -> sympy.Expr:
    """The function as it is computed, clip and scale included, in a real `x`.

    Guards are left out: they act only where a value would overflow (`OpSpec.exact_within`).

    Args:
        genotype: the function.
        x: the variable; default: a real `x`.
        named_clip: write a clip as `clip(y)`, which reads better, and not as what it computes.
    """
    symbol = x if x is not None else sympy.Symbol("x", real=True)
    genotype = as_computed(genotype)
    values: dict[str, sympy.Expr] = {INPUT: symbol}
    intervals: dict[str, bounds.Interval] = {INPUT: REALS}
    clip = genotype.clip
    for slot in genotype.order:
        choice = genotype.slots[slot]
        spec = registry[choice.op]
        parameters = {name: _number(value) for name, value in choice.parameters.items()}
        value = formulas.of_op(spec, *(values[name] for name in choice.inputs), **parameters)
        low, high = bounds.of_op(spec, [intervals[name] for name in choice.inputs], choice.parameters)
        if clip.needed(spec, inputs_limited=INPUT not in choice.inputs):
            if clip.kind == "smooth" or max(-low, high) > clip.limit:
                value = CLIP(value) if named_clip else _clipped(value, clip, (low, high))
            low, high = max(low, -clip.limit), min(high, clip.limit)
        values[slot], intervals[slot] = value, (low, high)
    scale = sympy.Float(repr(genotype.scale), 17) if genotype.scale != 1 else sympy.Integer(1)
    return scale * values[genotype.output]


def _number(value: Value) -> sympy.Expr | tuple[sympy.Expr, ...]:
    if isinstance(value, tuple):
        return tuple(sympy.Float(repr(v), 17) for v in value)
    return sympy.Float(repr(value), 17)


def _clipped(value: sympy.Expr, clip: Clip, interval: bounds.Interval) -> sympy.Expr:
    limit = sympy.nsimplify(clip.limit, rational=True)
    if clip.kind == "smooth":
        return value / (1 + (value / limit) ** 8) ** sympy.Rational(1, 8)
    # The side that cannot be reached is left out: comparisons are what makes sympy slow.
    if interval[1] > clip.limit:
        value = sympy.Min(value, limit)
    return sympy.Max(value, -limit) if interval[0] < -clip.limit else value


def to_sympy_source(genotype: Genotype, name: str | None = None) -> str:
    """The text of a Python file with the expression, its derivatives on demand; it needs sympy alone."""
    cls, _ = names(genotype, name)
    return f'''{header(genotype, cls, "It needs sympy alone.", len(genotype.sites))}

import sympy

x = sympy.Symbol("x", real=True)
expression = sympy.sympify(
    "{to_sympy(genotype)}",
    locals={{"x": x}},
)
'''


def to_latex(genotype: Genotype) -> str:
    """The function in LaTeX, numbers rounded to six digits; what `clip` means is said below it."""
    expression = rounded(to_sympy(genotype, named_clip=True))
    printed = sympy.latex(expression)
    lines = ["f(x) = " + printed]
    if expression.has(CLIP):
        limit = f"{genotype.clip.limit:g}"
        meaning = {
            "hard": rf"\min(\max(y, -{limit}), {limit})",
            "smooth": rf"\frac{{y}}{{\left(1 + (y / {limit})^8\right)^{{1/8}}}}",
        }[genotype.clip.kind]
        lines.append(rf"\operatorname{{clip}}(y) = {meaning}")
    if len(lines) == 1:
        return f"\\[\n  {lines[0]}\n\\]\n"
    body = " \\\\\n".join("  " + line.replace(" = ", " &= ", 1) for line in lines)
    return f"\\begin{{align*}}\n{body}\n\\end{{align*}}\n"
