"""The shipped search spaces, in Markdown."""

from __future__ import annotations

from actsearch.files import named_files
from actsearch.report.op_cards import linked
from actsearch.space import FOLDER, SearchSpace


def spaces(picture: str) -> str:
    """The page of all shipped spaces; `picture` is the address of a picture with `{}` for the name."""
    lines = [
        "# Search spaces",
        "",
        "A search space is a YAML file: the cell, a graph of slots; the candidates of each; the clip. These are "
        "shipped, and `--space NAME` takes one. [Your own](own_space.md) is written the same way.",
        "",
        "| space | slots | candidates | genotypes | distinct functions |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    loaded = [SearchSpace.load(name) for name in SearchSpace.names()]
    for space in loaded:
        distinct = "not counted" if space.distinct is None else f"{space.distinct:,}"
        counts = [len(space.slots), space.n_candidates, f"{space.size:,}", distinct]
        lines.append(f"| [{space.name}](#{space.name}) | {' | '.join(map(str, counts))} |")
    lines += ["", *(card(space, picture.format(space.name)) for space in loaded)]
    return "\n".join(lines)


def card(space: SearchSpace, picture: str) -> str:
    """One shipped space: heading, what it is, picture at the address `picture`, and its file."""
    lines = [f"## {space.name} {{ #{space.name} }}", "", linked(space.description), ""]
    if space.reference:
        lines += [linked(f"Reference: {space.reference}."), ""]
    lines += [f"![The cell of {space.name}]({picture})", "", f'```yaml title="{FOLDER}/{space.name}.yaml"']
    lines += [named_files(FOLDER)[space.name].read_text(encoding="utf-8").strip(), "```", ""]
    return "\n".join(lines)
