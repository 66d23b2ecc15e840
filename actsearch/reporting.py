"""The verb report: one page of a run or of a comparison, made again at any time."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actsearch.compare import Comparison
from actsearch.compare.comparison import FILE as COMPARISON
from actsearch.compare.strategies import FILE as STRATEGIES
from actsearch.errors import ActsearchError, RunError, Stopped
from actsearch.files import read_json, write_text
from actsearch.process import say
from actsearch.record import is_run, read_run
from actsearch.report.page import comparison_page, run_page
from actsearch.report.strategies import searches_of

FILE = "report.html"


def write_report(directory: Path | str, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not, or of a comparison; its path.

    Args:
        directory: of the run, or one with a comparison.json.
        out: where to; default: report.html in `directory`.

    Raises RunError if there is neither, or if it cannot be written.
    """
    directory = Path(directory)
    out = out or directory / FILE
    if is_run(directory):
        return write_text(out, run_page(read_run(directory)))
    if not (directory / COMPARISON).is_file():
        raise RunError(
            f"{directory} holds neither a run nor a finished comparison; give a folder runs/NAME/DATE, or one with a "
            f"{COMPARISON}"
        )
    environment: dict[str, Any] = {}
    with suppress(ActsearchError):  # older folders have none
        environment = read_json(directory / "environment.json")
    searches = searches_of(read_json(directory / STRATEGIES)) if (directory / STRATEGIES).is_file() else None
    return write_text(out, comparison_page(Comparison.load(directory), directory, environment, searches))


def report(directory: Path, out: Path | None, show: bool) -> None:
    """Write the page, print its path, and open it in the browser if `show`."""
    page = write_report(directory, out)
    say(f"report  {page}")
    if show and not webbrowser.open(page.resolve().as_uri()):
        say("no browser could be started; open the file in one")


@contextmanager
def reported_when_stopped(directory: Any) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM leave a page of what there is in `directory()`, a path or None, as well."""
    try:
        yield
    except Stopped:
        path = directory()
        if path is not None:
            # The user is told how to go on, which matters more than a page that `report` can write too.
            with suppress(ActsearchError):
                write_report(path)
        raise
