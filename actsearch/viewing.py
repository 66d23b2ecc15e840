"""The verbs of the command line that look at what is there: spaces, and show."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from actsearch.activation import Activation
from actsearch.errors import RunError
from actsearch.genotype import Genotype
from actsearch.report import terminal
from actsearch.report.plots import cell_text, draw_activation, draw_cell, save
from actsearch.run import RunDirectory
from actsearch.space import SearchSpace

console = terminal.make_console()


def list_spaces() -> None:
    """The shipped spaces in a table."""
    table = Table("space", "slots", "candidates", "genotypes", "distinct functions", box=None)
    descriptions = []
    for name in SearchSpace.names():
        space = SearchSpace.load(name)
        distinct = "not counted" if space.distinct is None else f"{space.distinct:,}"
        table.add_row(name, str(len(space.slots)), str(space.n_candidates), f"{space.size:,}", distinct)
        descriptions.append(f"[bold]{name}[/]: {space.description}")
    console.print(table, *descriptions, sep="\n")


def show_space(name: str, png: Path | None) -> None:
    """One space as a tree, and as a picture if `png` says where."""
    space = SearchSpace.load(name)
    console.print(cell_text(space))
    if space.description:
        console.print(space.description, markup=False, highlight=False)
    if space.reference:
        console.print(space.reference, markup=False, highlight=False, style="dim")
    if png is not None:
        console.print(f"picture  {save(draw_cell(space), png)}", markup=False, highlight=False, soft_wrap=True)


def show(source: Path, png: Path | None) -> None:
    """Formula, derivative, facts and picture of a genotype file, or of the one in a run directory."""
    run = RunDirectory(source) if source.is_dir() else None
    if run is not None and not run.genotype.is_file():
        raise RunError(f"{source} holds no genotype.json: the search did not finish; see `search --resume {source}`")
    genotype = Genotype.load(source if run is None else run.genotype)
    inputs = None if run is None else run.read_inputs()
    terminal.show(genotype, inputs, console)
    where = png or (run.figures / "activation.png" if run is not None else source.with_suffix(".png"))
    console.print(
        f"picture  {save(draw_activation(Activation(genotype), inputs), where)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
