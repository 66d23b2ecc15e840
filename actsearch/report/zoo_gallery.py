"""The gallery of the zoo, in Markdown with LaTeX between dollars."""

from __future__ import annotations

import re

from actsearch import zoo
from actsearch.export.symbolic import to_latex
from actsearch.report.op_cards import linked

KINDS = {
    "published": ("Published", "Functions of the literature, without a clip."),
    "found": ("Found", "Finds of searches with actsearch, with the clip that they were searched with."),
}


def gallery(picture: str) -> str:
    """The page of all entries; `picture` is the address of a picture with `{}` for the name."""
    lines = [
        "# Zoo",
        "",
        f"{len(zoo.names())} functions that are ready to use. `zoo:NAME` stands wherever a run can: "
        '`actsearch.load("zoo:mish")` in Python, `actsearch transfer zoo:mish`, `actsearch export zoo:mish`. '
        "`actsearch zoo show NAME` tells limits, extrema and more. The pictures have f in blue and f′ in orange.",
        "",
    ]
    entries = [zoo.entry(name) for name in zoo.names()]
    for kind, (heading, about) in KINDS.items():
        lines += [f"## {heading}", "", about, "", '<div class="gallery" markdown>', ""]
        for found in entries:
            if found.kind == kind:
                lines += [item(found, picture.format(found.name)), ""]
        lines += ["</div>", ""]
    return "\n".join(lines)


def item(entry: zoo.Entry, picture: str) -> str:
    """One function: title, picture at the address `picture`, formula, name, where it is from."""
    lines = ['<div class="item" markdown>', "", f"### {entry.title} {{ #{entry.name} }}", ""]
    lines += [f"![{entry.title} with its derivative]({picture})", ""]
    for formula in formulas(entry):
        lines += [f"$$ {formula} $$", ""]
    if entry.kind == "found":  # those have long formulas
        lines += [f"In short, without the clip: `{entry.genotype.formula}`", ""]
    names = [entry.name, *entry.aliases]
    lines += [", ".join(f"`zoo:{name}`" for name in names), "", _told(entry.reference), ""]
    origin = entry.origin or {}
    for key in ("task", "score", "command"):
        if key in origin:
            lines += [f"{key.capitalize()}: `{origin[key]}`" if key == "command" else _told(origin[key]), ""]
    if entry.note:
        lines += [_told(entry.note), ""]
    return "\n".join([*lines, "</div>"])


def formulas(entry: zoo.Entry) -> list[str]:
    """The formula in LaTeX, and what its clip means if it has one."""
    printed = to_latex(entry.genotype)
    body = re.sub(r"\\(?:begin|end)\{align\*\}|\\[][]", "", printed).replace("&=", "=").replace(r"\log", r"\ln")
    return [" ".join(line.split()) for line in body.strip().split("\\\\\n")]


def _told(text: str) -> str:
    """A sentence, with links."""
    sentence = text if text.endswith(".") else f"{text}."
    return linked(sentence).replace("docs/results.md", "[results](results.md)")
