"""Lock: one process at a time writes a folder; what a killed process left is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actsearch.errors import RunError

try:
    import fcntl
except ImportError:  # Windows has none: there the process that the file names decides
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
ORPHANS = 10.0  # seconds that loader workers of a killed process may take to see that it is gone, and let go


@contextmanager
def locked(directory: Path | str) -> Iterator[None]:
    """Within it, no other process that asks for the same lock can be in `directory`, which is made if need be.

    The operating system holds the lock (flock), so it ends with the process, however that ends; the file `.lock` names
    the process and its host for people. Where there is no flock, a process of this host that is alive holds it, and one
    of another host until the file is deleted.

    Raises RunError, which names the holder, if it is taken, or if the folder cannot be written.
    """
    path = Path(directory) / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(path)
    except OSError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        # Deleted while it is held: whoever waits for the old file sees that it is gone.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def in_use(directory: Path | str) -> bool:
    """Whether a process that is alive writes `directory`, as far as one can know; nothing is locked or changed."""
    try:
        descriptor = os.open(Path(directory) / FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _alive(_read(descriptor))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _acquired(path: Path) -> int:
    """The descriptor of the lock's file, with the lock, and this process written into it."""
    deadline = time.monotonic() + ORPHANS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _read(descriptor)
            if _is_free(descriptor, holder):
                if _is_at(descriptor, path):
                    _write(descriptor)
                    return descriptor
                os.close(descriptor)  # the former holder deleted it just now
                continue
            if _alive(holder) or time.monotonic() > deadline:
                raise RunError(_taken(path, holder))
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.2)


def _is_free(descriptor: int, holder: dict[str, Any]) -> bool:
    """Whether nobody holds it; where the system has locks, it is held now."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return not holder or (holder["host"] == socket.gethostname() and not _alive(holder))


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _read(descriptor: int) -> dict[str, Any]:
    """Who holds it, or held it; empty if that cannot be read."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 4096))
    except (ValueError, RecursionError):
        return {}
    well_formed = isinstance(found, dict) and isinstance(found.get("host"), str)
    return found if well_formed and type(found.get("pid")) is int and 0 < found["pid"] < 2**31 else {}


def _write(descriptor: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(holder).encode())


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process that is named is there, as far as one can know: of another host it is taken to be."""
    if not holder:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # Another process may have its number by now.
    return holder.get("started") == _started(holder["pid"])


def _started(pid: int) -> str | None:
    """When a process started, in the system's ticks, which no clock that is set moves; None where it is not told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _taken(path: Path, holder: dict[str, Any]) -> str:
    if not holder:
        return f"{path.parent} is in use by another process; wait for it, or end it"
    who = f"process {holder['pid']} on {holder['host']}"
    if holder["host"] == socket.gethostname():
        return f"{path.parent} is in use by {who}; wait for it, or end it"
    return f"{path.parent} is in use by {who}; wait for it, or end it, or, if it is gone, delete {path}"
