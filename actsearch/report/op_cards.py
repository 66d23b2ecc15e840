"""Cards of the operations, in Markdown with LaTeX between dollars: everything that the registry knows of each."""

from __future__ import annotations

import functools
import math
import re

import sympy
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actsearch.ops import formula as formulas
from actsearch.ops.bases import BASES
from actsearch.ops.spec import OpParameter, OpSpec, registry
from actsearch.report.facts import number, smoothness_in_words
from actsearch.report.terminal import FAMILIES
from actsearch.space import SearchSpace

ABOUT = {
    "grafs": "The 32 operations of the published search space (Strack et al. 2024, arXiv 2408.06820).",
    "literature": "Operations of the older literature (Ramachandran et al. 2017, arXiv 1710.05941), off in `grafs`.",
    "laaf": "Adaptive slopes: a trained factor, shared by the network, a site or a channel (Jagtap et al. 2020, "
    "arXiv 1909.12228). The search combines them with other operations.",
    "taafs": "Series of ten trained coefficients in tanh x (Li 2024, arXiv 2412.14655). The pictures show the "
    "functions that the coefficients weigh, the first four in colour; they start at the least-squares fit to tanh.",
}


class _Count(TorchDispatchMode):
    """Counts the tensor operations that write a result; views and other looks at what is there are free."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        if any(r.alias_info is None or r.alias_info.is_write for r in returns):
            self.n += 1
        return func(*args, **(kwargs or {}))


def cost(spec: OpSpec) -> tuple[int, int]:
    """Tensor operations that torch runs for one call: forwards, and backwards to the input."""
    x = [torch.linspace(-1, 1, 8, requires_grad=True) for _ in range(spec.arity)]
    parameters = {p.name: torch.tensor(p.mean) for p in spec.parameters}
    with _Count() as forwards:
        y = spec.function(*x, **parameters)
    start = torch.ones_like(y)
    if not y.requires_grad:
        return forwards.n, 0
    with _Count() as backwards:
        torch.autograd.grad(y, x, start, allow_unused=True)
    return forwards.n, backwards.n


def latex(spec: OpSpec) -> str:
    """The formula in LaTeX; of a series that of its sum, whose functions `terms` tells."""
    if spec.id in BASES:
        last = spec.parameters[0].shape[0] - 1
        return rf"\sum_{{k=0}}^{{{last}}} c_k\, \varphi_k(x)"
    arguments = [sympy.Symbol(name, real=True) for name in spec.arguments]
    parameters = {p.name: sympy.Symbol(p.name, real=True) for p in spec.parameters}
    return _readable(sympy.latex(formulas.of_op(spec, *arguments, **parameters)))


def terms(spec: OpSpec, n: int = 3) -> list[str]:
    """The first n functions of a series in LaTeX; none of another operation."""
    if spec.id not in BASES:
        return []
    (coefficients,) = spec.parameters
    found = []
    for k in range(n):
        expression = formulas.to_sympy(BASES[spec.id].formula(k, *coefficients.shape))
        expression = expression.replace(lambda e: e.is_Float, lambda e: sympy.nsimplify(e / sympy.pi) * sympy.pi)
        found.append(rf"\varphi_{k} = {_readable(sympy.latex(expression))}")
    return found


def _readable(text: str) -> str:
    """sympy's LaTeX without brackets around a single x, and without bars, which end the cell of a table."""
    text = re.sub(r"\{\\left\((x(?:_\{\d\})?) \\right\)\}", r" \1", text).replace(r"\log", r"\ln")
    return text.replace(r"\left|", r"\left\vert").replace(r"\right|", r"\right\vert")


def linked(reference: str) -> str:
    """`reference` with links to what it quotes of arXiv."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", reference)


def picture_name(spec: OpSpec) -> str:
    """The file of an operation's picture: contours are many times larger as SVG."""
    return f"{spec.id}.{'svg' if spec.arity == 1 else 'png'}"


def card(spec: OpSpec, picture: str) -> str:
    """One operation: heading, picture at the address `picture`, formula, and a table of facts."""
    lines = [f"### `{spec.id}` {{ #{spec.id} }}", "", '<div class="card" markdown>', "", f"![{_alt(spec)}]({picture})"]
    lines += ["", "<div markdown>", "", f"$$ y = {latex(spec)} $$", ""]
    for term in terms(spec):
        lines += [f"$$ {term} $$", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts(spec)), "", "</div>", ""]
    return "\n".join([*lines, "</div>", ""])


def facts(spec: OpSpec) -> list[tuple[str, str]]:
    """Names and values of a card's table, in Markdown."""
    forwards, backwards = cost(spec)
    found = [
        ("takes", f"{'one input' if spec.arity == 1 else 'two inputs'}, any real number"),
        ("exact", _domain(spec)),
        ("range", _range(spec)),
        ("bounded", "yes" if spec.bounded else "no"),
        ("smoothness", _smoothness(spec)),
    ]
    if spec.monotonic:
        found.append(("monotonic", spec.monotonic))
    properties = [name for name in ("commutative", "idempotent", "contracting") if getattr(spec, name)]
    if properties:
        found.append(("also", ", ".join(properties)))
    found += [("trained", "; ".join(map(_parameter, spec.parameters)))] if spec.parameters else []
    found += [
        ("cost", f"{forwards} tensor operation{'s' * (forwards != 1)} forwards, {backwards} backwards"),
        ("complexity", str(spec.complexity)),
        ("spaces", ", ".join(f"[{name}](../spaces.md#{name})" for name in _spaces(spec)) or "none that is shipped"),
        ("reference", linked(spec.reference)),
    ]
    return found


def family(group: str, pictures: str) -> str:
    """The page of a family; `pictures` is the address of the folder of pictures, which `picture_name` names."""
    lines = [f"# Operations: {FAMILIES[group]}", "", linked(ABOUT[group]), ""]
    for arity, heading in ((1, "Of one input"), (2, "Of two inputs")):
        members = [spec for spec in registry.of_arity(arity) if group in spec.groups]
        if members:
            lines += [f"## {heading}", "", *(card(spec, f"{pictures}/{picture_name(spec)}") for spec in members)]
    return "\n".join(lines)


def index() -> str:
    """The page that lists all operations by family."""
    lines = [
        "# Operations",
        "",
        f"What a cell can hold: {len(registry)} operations in {len(FAMILIES)} families. A search space names them by "
        "id, or a whole family as `group:NAME`. Every id links to a card.",
        "",
        "Every operation is finite, with finite first and second derivatives, at every finite input. Where its formula "
        "would overflow, a guard keeps it finite; the card says up to which input it follows its formula exactly.",
        "",
        "The cost on a card counts the tensor operations that torch runs for one call of the operation by itself, as "
        "the dense evaluator makes it; it says nothing of their size. A search by the table evaluator calls an "
        "operation for some thousand knots only, whatever the batch, and a discovered function can be compiled "
        "into one kernel: [performance](../performance.md) has what was measured.",
        "",
    ]
    for group, title in FAMILIES.items():
        lines += [f"## {title}", "", linked(ABOUT[group]), ""]
        lines += ["| id | formula | range | smoothness | trained |", "| --- | --- | --- | --- | --- |"]
        for spec in registry.values():
            if group in spec.groups:
                trained = ", ".join(_symbol(p) for p in spec.parameters) or "–"
                lines.append(
                    f"| [`{spec.id}`]({group}.md#{spec.id}) | ${latex(spec)}$ | {_range(spec)} | "
                    f"{smoothness_in_words(spec.smoothness)} | {trained} |"
                )
        lines.append("")
    return "\n".join(lines)


def _alt(spec: OpSpec) -> str:
    if spec.arity == 2:
        return f"{spec.id} over its two inputs"
    return f"the functions of {spec.id}" if spec.id in BASES else f"{spec.id} with its first two derivatives"


def _domain(spec: OpSpec) -> str:
    if not spec.exact_within:
        return "everywhere"
    return "for inputs within " + ", ".join(f"±{number(end)} ({dtype})" for dtype, end in spec.exact_within.items())


def _range(spec: OpSpec) -> str:
    low, high = spec.range
    if low == high:
        return f"{{{number(low)}}} at its start"
    left, right = "(" if math.isinf(low) else "[", ")" if math.isinf(high) else "]"
    return f"{left}{number(low)}, {number(high)}{right}"


def _smoothness(spec: OpSpec) -> str:
    words = smoothness_in_words(spec.smoothness)
    where = [f"x = {number(kink)}" for kink in spec.kinks] + ["x₁ = x₂"] * spec.tie_kinks
    return f"{words}, kink at {', '.join(where)}" if where else words


def _symbol(parameter: OpParameter) -> str:
    return {"beta": "β", "gamma": "γ", "coefficients": "c"}.get(parameter.name, parameter.name)


def _parameter(parameter: OpParameter) -> str:
    if isinstance(parameter.mean, tuple):
        start = f"{len(parameter.mean)} numbers, which start at the fit to tanh"
    elif parameter.std:
        start = f"starts at a draw from N({number(parameter.mean)}, {number(parameter.std)}²)"
    else:
        start = f"starts at {number(parameter.mean)}"
    level = "α" if parameter.trained_with == "alpha" else "the weights"
    whose = "one for the network" if parameter.scope == "network" else f"one for each {parameter.scope}"
    return f"{_symbol(parameter)}: {start}; {whose}; trained with {level}"


def _spaces(spec: OpSpec) -> list[str]:
    """The shipped spaces that have it among their candidates."""
    return [name for name, ops in _candidates().items() if spec.id in ops]


@functools.cache
def _candidates() -> dict[str, set[str]]:
    spaces = map(SearchSpace.load, SearchSpace.names())
    return {space.name: {op for slot in space.slots for op in slot.candidates} for space in spaces}
