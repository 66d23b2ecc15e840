"""Downloads that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from actsearch.errors import DataError
from actsearch.work import under_way

STALLED = 30  # seconds without a byte
MIB = 2**20


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


def fetch_file(url: str, path: Path, title: str, sha256: str | None = None) -> None:
    """Download `url` to `path`. Raises DataError if that fails, or if length or checksum are not as announced."""

    def fetch(folder: Path) -> None:
        part = folder / path.name
        with urllib.request.urlopen(url, timeout=STALLED) as answer, part.open("wb") as file:
            announced = answer.headers.get("Content-Length")
            total = None if announced is None else int(announced) / MIB
            with under_way(f"downloading {path.name}", total, "MiB") as work:
                while piece := answer.read(MIB):
                    file.write(piece)
                    work.advance(len(piece) / MIB)
        if announced is not None and part.stat().st_size != int(announced):
            raise OSError(f"{part.stat().st_size} of {announced} bytes came")
        if sha256 is not None:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise OSError(f"the checksum of what came is {found[:12]}…, not {sha256[:12]}…")

    download_into(path.parent, fetch, title, path, url)
