"""Downloads that are whole or not there."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from actsearch.errors import DataError

STALLED = 30  # seconds without a byte


def download_into(root: Path, fetch: Callable[[Path], object], title: str, wanted: Path, url: str) -> None:
    """Let `fetch(folder)` download to a temporary folder in `root`, then move its files to the same places in `root`.

    A download that is cut off leaves nothing, and processes that download at the same time do not disturb each other.
    Raises DataError, which names the `wanted` file and its `url`, if the network or the disk refuses.
    """
    timeout = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            socket.setdefaulttimeout(STALLED)
            fetch(Path(folder))
            for file in Path(folder).rglob("*"):
                if file.is_file() and not file.is_symlink():
                    target = root / file.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{title}: no usable {wanted}, and no download ({reason}); put the file from {url} there"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
