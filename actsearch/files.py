"""Files that are either whole or not there, and the named YAML files that travel with the package."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from actsearch.errors import ActsearchError, RunError, UnknownNameError

_PACKAGE = Path(__file__).parent
END = "..."  # of a document, in YAML


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path` and rename it, so that a reader never sees half of it.

    Raises RunError, with the operating system's reason, when that cannot be done; what was at `path` is then intact.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path | str, text: str) -> Path:
    """`text` in UTF-8 at `path`, whole or not at all. Raises RunError."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_line(path: Path | str, line: str) -> None:
    """Add `line` to the file at `path`. Raises RunError; the file is then as it was."""
    data = memoryview((line + "\n").encode())
    try:
        with open(path, "ab", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(length)
                raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def read_json_lines(path: Path | str, advice: str) -> list[dict[str, Any]]:
    """What `append_line` added to the file at `path`, each line an object of JSON; nothing if there is no file.

    A last line that a kill cut off is removed from the file.
    Raises RunError, with `advice`, for a line that is damaged, and if the file cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, lambda temporary: temporary.write_bytes(whole))
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
            if not isinstance(lines[-1], dict):
                raise ValueError("it holds no keys and values")
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is damaged at line {number} ({error}): {advice}") from None
    return lines


def read_json(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file. Raises RunError in one line."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} must hold keys and values")
    return found


def whole_json_lines(path: Path | str) -> tuple[list[dict[str, Any]], int]:
    """The lines of the file at `path` that are objects of JSON, and how many others it has; nothing is changed.

    No file has no lines. Raises RunError if it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    lines, damaged = [], 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            lines.append(found)
        else:
            damaged += 1
    return lines, damaged


def is_whole_archive(path: Path | str) -> bool:
    """Whether every member of a zip file, such as torch writes, has the checksum that it was written with.

    torch itself does not look at them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises those of zlib, struct and codecs too
        return False


def write_yaml(path: Path | str, data: Mapping[str, Any]) -> Path:
    """`data` as YAML that ends with the mark of its end, so that `check_end` can tell whether it was cut off."""
    text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    return write_text(path, text + END + "\n")


def check_end(path: Path | str) -> None:
    """Raise RunError if a file that `write_yaml` wrote lost its end: what is left can be read, but is not the whole."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    if not lines or lines[-1] != END:
        raise RunError(f"{path} was cut off: its last line is not {END}; restore it, or add that line if it is whole")


def read_yaml(path: Path | str, error: type[ActsearchError]) -> dict[str, Any]:
    """The mapping in a YAML file, read by the safe loader. Raises `error` in one line."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"cannot read {path}: {getattr(reason, 'strerror', None) or reason}") from None
    except Exception as reason:  # beside its own errors PyYAML lets those of int, datetime and dict through
        mark = getattr(reason, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        what = " ".join(str(getattr(reason, "problem", None) or reason).split())
        raise error(f"{path} is not valid YAML{where}: {what}") from None
    if not isinstance(content, dict):
        raise error(f"{path} must hold a mapping of keys to values")
    return content


def named_files(folder: str) -> dict[str, Path]:
    """The YAML files of `search_spaces` or of `configs/<verb>` by name, from the checkout or from the wheel."""
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        if (root / folder).is_dir():
            return {path.stem: path for path in sorted((root / folder).glob("*.yaml"))}
    return {}


def find_named(kind: str, folder: str, name: str | Path) -> Path:
    """The file that `name` means: an existing path, or a name in `folder`. Raises UnknownNameError."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml", ".json"} or os.sep in str(name):
        if path.is_file():
            return path
        raise UnknownNameError(f"{kind} file", str(name), named_files(folder))
    files = named_files(folder)
    if str(name) not in files:
        raise UnknownNameError(kind, str(name), files)
    return files[str(name)]
