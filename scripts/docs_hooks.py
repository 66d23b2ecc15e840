"""Hooks of the site (mkdocs.yml): pages that are made of the registry, the zoo and the files, MathML, and notebooks.

Nothing that is made here is committed. What the pages say is written in `actsearch.report`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import html
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from matplotlib.figure import Figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

from actsearch import cli, zoo
from actsearch.activation import Activation
from actsearch.files import named_files
from actsearch.ops import registry
from actsearch.report import op_cards, op_plots, space_cards, zoo_gallery
from actsearch.report.plots import draw_cell, save
from actsearch.report.terminal import FAMILIES
from actsearch.space import SearchSpace

ROOT = Path(__file__).parent.parent
CONFIGS = {"search": "actsearch search", "transfer": "actsearch transfer", "tune": "actsearch tune"}
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SECONDS = 300  # of one cell of a notebook


@event_priority(100)  # before mkdocs-jupyter, which is to show the executed notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and puts executed notebooks in the place of those in the folder."""
    for name, content in pages():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    folder = Path(tempfile.mkdtemp(prefix="actsearch-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        execute(Path(str(file.abs_src_path)), folder / file.src_uri)
        files.append(File(file.src_uri, str(folder), config.site_dir, config.use_directory_urls))
    return files


def on_page_content(text: str, **_: object) -> str:
    """MathML in the place of LaTeX, so that no script is needed to read it."""
    return MATH.sub(lambda found: mathml(html.unescape(found[2]).strip(), found[1] == "div"), text)


def pages() -> Iterator[tuple[str, str | bytes]]:
    """Addresses and contents of all pages and pictures that are made."""
    yield "ops/index.md", op_cards.index()
    for group in FAMILIES:
        yield f"ops/{group}.md", op_cards.family(group, "pictures")
    for spec in registry.values():
        name = op_cards.picture_name(spec)
        yield f"ops/pictures/{name}", picture(op_plots.draw_op(spec), name)
    yield "zoo.md", zoo_gallery.gallery("pictures/zoo/{}.svg")
    for name in zoo.names():
        yield f"pictures/zoo/{name}.svg", picture(op_plots.draw_function(Activation(zoo.load(name))), ".svg")
    yield "spaces.md", space_cards.spaces("pictures/spaces/{}.png")
    for name in SearchSpace.names():
        yield f"pictures/spaces/{name}.png", picture(draw_cell(SearchSpace.load(name)), ".png")
    yield "configs.md", configs()
    yield "cli.md", commands()


def picture(figure: Figure, name: str) -> bytes:
    """The content of the file that a figure would be saved as."""
    with tempfile.TemporaryDirectory() as folder:
        return save(figure, Path(folder, f"picture{Path(name).suffix or name}")).read_bytes()


def configs() -> str:
    """The shipped configurations, each with its first comment and its text."""
    lines = [
        "# Configurations",
        "",
        "What `--config NAME` takes. Every key can be overridden on the command line: `--search.epochs 20`. A file of "
        "your own is given by its path; `actsearch VERB --print_config` prints one to start from.",
    ]
    for folder, verb in CONFIGS.items():
        lines += ["", f"## `{verb} --config NAME`"]
        for name, path in named_files(f"configs/{folder}").items():
            text = path.read_text(encoding="utf-8").strip()
            first = re.match(r"(?:#.*\n)+", text)
            about = " ".join(line.lstrip("# ") for line in first[0].splitlines()) if first else ""
            fence = [
                f'    ```yaml title="configs/{folder}/{name}.yaml"',
                *(f"    {t}" for t in text.splitlines()),
                "    ```",
            ]
            lines += ["", f"### {name} {{ #{folder}-{name} }}", "", about, "", '??? note "The file"', "", *fence]
    return "\n".join([*lines, ""])


def commands() -> str:
    """What each verb says of itself when it is asked for --help."""
    lines = ["# Command line", "", "```text", printed(["--help"]), "```"]
    for verb in cli.VERBS:
        about = (cli.VERBS[verb].__doc__ or "").strip()
        lines += ["", f"## actsearch {verb} {{ #{verb} }}", "", about, "", "```text", printed([verb, "--help"]), "```"]
    return "\n".join([*lines, ""])


def printed(arguments: list[str]) -> str:
    """What the command line prints, 88 columns wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            cli.main(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return output.getvalue().strip()


@functools.cache
def mathml(latex: str, block: bool) -> str:
    if not block:
        return convert(latex)
    return f'<div class="formula">{convert(latex, display="block")}</div>'  # a wide one scrolls by itself


def execute(path: Path, target: Path) -> None:
    """Run the notebook at `path` in the folder of `target`, where it is written with its outputs.

    Raises CellExecutionError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(target.parent)}},
        extra_arguments=["--log-level=ERROR"],  # it warns of who might listen
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries tell of the machine that builds the site
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, target)
