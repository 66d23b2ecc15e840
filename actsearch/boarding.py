"""The verb tensorboard: TensorBoard on what a search logged, and the addresses of what to look at."""

from __future__ import annotations

import json
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actsearch.errors import RunError, SettingsError, Stopped
from actsearch.process import say, stoppable
from actsearch.report.tensorboard import IMAGES, without_tensorflow

FILES = "events.out.tfevents.*"
RELOAD = 5.0  # seconds after which a running search is read again
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Our address of a page: what it shows, and TensorBoard's own address, which says which tab, tags and smoothing. Of few
# epochs, a smoothed line would show what was not there.
PAGES = {
    "slots": ("slots", "/#custom_scalars&_smoothingWeight=0"),
    "losses": ("losses", "/?smoothing=0&tagFilter=%5E%28loss%7Csurvivors%7Ctrial%29#timeseries"),
    "pictures": ("pictures", "/#images"),
    "text": ("text", "/#text"),
    "scores": ("final scores", "/#hparams"),
}
# What TensorBoard takes for outliers, and leaves out unless its box is unticked, are the probabilities of the winners.
# It remembers that box in the browser.
DOOR = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>actsearch</title><link rel="icon" href="data:,"></head>
<body><script>
localStorage.setItem("_ignoreYOutliers", "false");
location.replace(PAGE);
</script></body></html>
"""


def board(source: Path, port: int | None = None, host: str = "localhost", in_browser: bool = False) -> None:
    """Serve TensorBoard on a run, or on all runs in a folder, until told to end.

    Args:
        source: a run directory, or a folder that holds some.
        port: default: the first that is free from TensorBoard's own on.
        host: to listen at.
        in_browser: open the first of the addresses there.

    Raises RunError if there is nothing to show, or if the port is in use.
    """
    if port is not None and not 0 < port < 2**16:
        raise SettingsError(f"--port must be from 1 to 65535, not {port}")
    _check(source)
    with serving(source, port, host) as address:
        pages = addresses(address)
        for name, page in pages.items():
            say(f"{name:<14} {page}")
        say("Ctrl-C ends it")
        if in_browser:
            webbrowser.open(pages["slots"])
        try:
            with stoppable(lambda: "TensorBoard is closed"):
                threading.Event().wait()
        except Stopped:
            say("closed")


def _check(source: Path) -> None:
    if not source.is_dir():
        raise RunError(f"{source} is no folder; give a run such as runs/NAME/DATE, or the folder of all runs")
    if next(source.rglob(FILES), None) is None:
        raise RunError(f"{source} holds no events of a search: give a run such as runs/NAME/DATE, or its folder")


def addresses(server: str) -> dict[str, str]:
    """Our doors to the pages of a TensorBoard at the address `server`, by what they show."""
    return {name: f"{server.rstrip('/')}/{door}" for door, (name, _) in PAGES.items()}


def with_doors(application: Application) -> Application:
    """TensorBoard's own application, with a short address for each of PAGES."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        page = PAGES.get(environ.get("PATH_INFO", "").strip("/"))
        if page is None:
            return application(environ, start_response)
        body = DOOR.replace("PAGE", json.dumps(page[1])).encode()
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("200 OK", [*headers, ("Cache-Control", "no-store")])
        return [body]

    return answer


@contextmanager
def serving(source: Path, port: int | None, host: str) -> Iterator[str]:
    """Within it, TensorBoard shows the event files in `source`; gives its address. Raises RunError."""
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise RunError(f"cannot listen at {host}: {error.strerror or error}; give another --host") from None
    with without_tensorflow():
        from tensorboard import default, program

    server: list[Any] = []
    make = program.create_port_scanning_werkzeug_server

    def remembered(application: Any, flags: Any) -> Any:
        server.append(make(with_doors(application), flags))
        return server[0]

    board = program.TensorBoard(plugins=default.get_plugins(), server_class=remembered)
    board.configure(
        argv=("",),
        logdir=str(source),
        port=port,
        host=host,
        reload_interval=RELOAD,
        # All images of a series, and all texts.
        samples_per_plugin={"images": IMAGES, "text": 1000},
        # Its other way to read files is a process of its own, which outlives a kill.
        load_fast="false",
    )
    try:
        address = board.launch()
    except program.TensorBoardServerException as error:
        reason = " ".join(str(error.msg).split())
        raise RunError(f"{reason.rstrip('.')}; give another --port, or leave it out for one that is free") from None
    try:
        yield address
    finally:
        for one in server:
            one.shutdown()
            one.server_close()
