"""Formula: a function as MathML, which browsers set without a script."""

from __future__ import annotations

import re

import sympy
from latex2mathml import converter
from markupsafe import Markup

from actsearch.genotype import Genotype, rounded

DIGITS = 4
LONGEST = 1_500  # characters of LaTeX; more cannot be read, and sympy's text is there too

# TeX leaves room before a function's name and a large bracket, which MathML does not.
_ROOM = re.compile(r"(?<=[\w})]) (?=\\(?:operatorname|left\(|a?(?:sin|cos|tan)h?\b|log\b|max\b|min\b|sqrt\b))")


def mathml(genotype: Genotype) -> Markup:
    """f(x) = … without the clip, as a block of MathML; empty if it is too long to be read."""
    latex = sympy.latex(rounded(genotype.expression(), DIGITS))
    if len(latex) > LONGEST:
        return Markup("")
    # A genotype holds names of operations and numbers only, so what comes out of its LaTeX is safe.
    return Markup(converter.convert("f(x) = " + _ROOM.sub(r" \\, ", latex), display="block"))
