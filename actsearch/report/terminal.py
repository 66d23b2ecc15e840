"""Functions and comparisons as text: for a terminal with colour, for a file or a pipe without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from actsearch.activation import Activation
from actsearch.genotype import Genotype, rounded
from actsearch.ops.spec import registry
from actsearch.report.facts import facts

LONGEST = 400  # characters of a printed derivative
MOST_OPERATIONS = 150  # of an expression that sympy is asked to differentiate
PLAIN_WIDTH = 160  # of tables that go to a file
# Families of operations, by group.
FAMILIES = {"grafs": "GRAFS", "literature": "literature", "laaf": "LAAF", "taafs": "TAAFS"}

# What a terminal without Unicode gets instead.
_ASCII = str.maketrans(
    {"·": "|", "∞": "inf", "→": "->", "±": "+/-", "≤": "<=", "−": "-", "…": "...", "–": "-", "—": "-", "α": "alpha"}
)


@dataclass(frozen=True)
class ComparisonRow:
    """One activation of a comparison.

    Attributes:
        name: of the activation.
        seeds: number of runs.
        mean, sd: of the score over the seeds; sd is None for a single run.
        difference: mean difference to the reference over paired seeds; None for the reference itself.
        interval: (low, high) of the 95 % confidence interval of the difference.
        p: p value of the paired test, corrected for the number of comparisons if the caller says so in the title.
        kind: `discovered` rows are emphasised; others are controls.
    """

    name: str
    seeds: int
    mean: float
    sd: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    kind: str = "control"


def plain(text: str, console: Console) -> str:
    """`text` as it is, or without the signs that the console's encoding lacks."""
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    return text


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def make_console() -> Console:
    """A console on standard output; lines that go to a file or a pipe are not cut at 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def show(genotype: Genotype | Activation, inputs: Tensor | None = None, console: Console | None = None) -> None:
    """Print the formula of a function, its derivative, LaTeX, clip and facts.

    Args:
        genotype: the function.
        inputs: recorded pre-activations of any shape, for the facts that refer to them.
        console: where to; default: standard output.
    """
    console = console or make_console()
    activation = genotype if isinstance(genotype, Activation) else Activation(genotype)
    genotype = activation.genotype
    clip = genotype.clip
    lines = [
        ("f(x)", genotype.formula),
        ("f'(x)", derivative_text(genotype)),
        ("LaTeX", genotype.to_latex()),
        ("slots", families(genotype)),
        ("clip", "none" if clip.kind == "none" else f"{clip.kind}, at {clip.limit:g} (not part of the formulas)"),
    ]
    for name, value in lines:
        # Never wrapped by force: a formula in a file stays one line that can be copied.
        console.print(Text.assemble((f"{name:<6}", "bold cyan"), "  ", plain(value, console)), soft_wrap=True)
    console.print()
    console.print(_facts_table(facts(activation, inputs).rows(), console))


def families(genotype: Genotype) -> str:
    """The operation in every slot that the output needs, and the family that it comes from."""
    found = []
    for slot in genotype.order:
        op = genotype.slots[slot].op
        found.append(f"{slot}: {op} ({'/'.join(FAMILIES.get(g, g) for g in sorted(registry[op].groups))})")
    return ", ".join(found)


def derivative_text(genotype: Genotype) -> str:
    """f' without the clip, as sympy prints it after light simplification; in words if that is too long to be read."""
    x = sympy.Symbol("x", real=True)
    expression = genotype.expression(x)
    n_operations = int(sympy.count_ops(expression))
    if n_operations > MOST_OPERATIONS:
        return f"(not derived: the formula has {n_operations} operations)"
    derivative = str(rounded(sympy.factor_terms(sympy.diff(expression, x))))
    if len(derivative) > LONGEST:
        return f"(too long to show: {len(derivative)} characters)"
    return derivative


def _facts_table(rows: Sequence[tuple[str, str]], console: Console) -> Table:
    table = _table(console, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(plain(escape(name), console), plain(escape(value), console))
    return table


def comparison_table(
    rows: Sequence[ComparisonRow],
    *,
    metric: str = "score",
    reference: str = "ReLU",
    digits: int = 2,
    title: str = "",
    console: Console | None = None,
) -> Table:
    """The table that sets a discovered activation against its controls, in the order given.

    Args:
        rows: one for each activation.
        metric: what the means are of, with its unit, such as `accuracy (%)`.
        reference: the activation that differences are taken to.
        digits: decimals.
        title: above the table.
        console: that it will be printed on; decides on borders and signs. Default: standard output.
    """
    console = console or make_console()
    table = _table(console, title=plain(title, console) or None, title_justify="left")
    table.add_column("activation", no_wrap=True)
    names = ["seeds", f"{metric}, mean ± sd", f"difference to {reference} [95 % CI]", "p"]
    for name in names:
        table.add_column(plain(escape(name), console), justify="right")
    for row in rows:
        cells = [row.name, str(row.seeds), _mean(row, digits), _difference(row, digits), _p(row.p)]
        style = "bold green" if row.kind in ("discovered", "adapted") else ""
        table.add_row(*(plain(escape(cell), console) for cell in cells), style=style)
    return table


def _table(console: Console, **options: object) -> Table:
    borders = box.ROUNDED if console.is_terminal else None
    return Table(box=borders, pad_edge=console.is_terminal, padding=(0, 1), **options)  # type: ignore[arg-type]


def _mean(row: ComparisonRow, digits: int) -> str:
    mean = f"{row.mean:.{digits}f}"
    return mean if row.sd is None or math.isnan(row.sd) else f"{mean} ± {row.sd:.{digits}f}"


def _difference(row: ComparisonRow, digits: int) -> str:
    if row.difference is None:
        return "–"
    difference = f"{row.difference:+.{digits}f}"
    if row.interval is None:
        return difference
    low, high = (f"{end:+.{digits}f}" for end in row.interval)
    return f"{difference} [{low}, {high}]"


def _p(p: float | None) -> str:
    if p is None or math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
