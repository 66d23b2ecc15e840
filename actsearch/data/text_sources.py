"""Texts by name: what is read, and which part of it is the test."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actsearch.data.download import MIB, fetch_file
from actsearch.errors import DataError, SettingsError
from actsearch.work import under_way

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
    "/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
STORIES_URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
CHUNK = 1 << 22  # characters


@dataclass(frozen=True)
class TextSource:
    """Training and test text in pieces, each of which can be gone through several times."""

    title: str
    train: Iterable[str]
    test: Iterable[str]


def python_reference(test_fraction: float = 0.1) -> TextSource:
    """The chapters of Python's language reference that its `help` shows, about 450,000 characters; no download.

    They differ a little between versions of Python, which the title therefore names.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("this Python comes without pydoc_data, its own reference; use the data set 'text'") from error
    whole = "\n".join(topics[name] for name in sorted(topics))
    return _divide(f"Python reference ({sys.version_info[0]}.{sys.version_info[1]})", whole, test_fraction)


def tinyshakespeare(root: Path, test_fraction: float = 0.1) -> TextSource:
    """Karpathy's 1.1 million characters of Shakespeare: <root>/[text/]tinyshakespeare/input.txt."""
    path = text_root(root) / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        fetch_file(SHAKESPEARE_URL, path, "tinyshakespeare", sha256=SHAKESPEARE_SHA256)
    return _divide("tinyshakespeare", _read(path), test_fraction)


def tinystories(root: Path, head: bool = False) -> TextSource:
    """TinyStories (Eldan and Li 2023, arXiv:2305.07759): <root>/[text/]tinystories/TinyStories-{train,valid}.txt.

    The test part is the official validation file. `head`: read the first parts alone, from TinyStories-train.head….txt
    and TinyStories-valid.head….txt (such as `head -c 2M` makes); the title says so.
    """
    folder = text_root(root) / "tinystories"
    if head:
        return TextSource("TinyStories (head)", *(TextFile(_head(folder, part)) for part in ("train", "valid")))
    paths = [folder / f"TinyStories-{part}.txt" for part in ("train", "valid")]
    for path in paths:
        if not path.is_file():
            fetch_file(f"{STORIES_URL}/{path.name}", path, "TinyStories in full (head: true is for its first part)")
    return TextSource("TinyStories", *map(TextFile, paths))


def text(root: Path, test_fraction: float = 0.1) -> TextSource:
    """Any UTF-8 text: the file `root`, or all .txt files in the folder `root` in the order of their names."""
    if root.is_dir():
        files = sorted(root.glob("*.txt"))
        if not files:
            raise DataError(f"the data set 'text' needs root = a text file or a folder of .txt files; {root} has none")
        return _divide(root.name, "\n".join(map(_read, files)), test_fraction)
    if not root.is_file():
        raise DataError(f"the data set 'text' needs root = a text file or a folder of .txt files; no {root}")
    return _divide(root.name, _read(root), test_fraction)


def text_root(root: Path) -> Path:
    """Texts may have a folder of their own, `text`, in a root shared with images and force fields."""
    return root / "text" if (root / "text").is_dir() else root


class TextFile:
    """A UTF-8 file that is too large to be held as text: iterating gives pieces that end at the end of a line."""

    def __init__(self, path: Path, chunk: int = CHUNK) -> None:
        self.path, self.chunk = path, chunk

    def __iter__(self) -> Iterator[str]:
        try:
            size = self.path.stat().st_size / MIB
            with (
                self.path.open("rb") as raw,
                io.TextIOWrapper(raw, encoding="utf-8") as file,
                under_way(f"reading tokens of {self.path.name}", size, "MiB") as work,
            ):
                while piece := file.read(self.chunk):
                    yield piece + file.readline()
                    work.at(raw.tell() / MIB)
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.path, error) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{path} cannot be read as UTF-8 text ({reason}): repair or convert it")


def _divide(title: str, whole: str, test_fraction: float) -> TextSource:
    """The last part is the test: texts have no order that could be shuffled."""
    if not 0 < test_fraction < 1:
        raise SettingsError(f"test_fraction must be above 0 and below 1, not {test_fraction}")
    cut = round(len(whole) * (1 - test_fraction))
    return TextSource(title, [whole[:cut]], [whole[cut:]])


def _head(folder: Path, part: str) -> Path:
    pattern = re.compile(rf"TinyStories-{part}\.head[^.]*\.txt")
    found = [p for p in sorted(folder.glob("*.txt")) if pattern.fullmatch(p.name)]
    if len(found) != 1:
        raise DataError(
            f"TinyStories with head: true needs one file TinyStories-{part}.head….txt in {folder}; there are "
            f"{len(found)}; make it from {STORIES_URL}/TinyStories-{part}.txt, or leave out head"
        )
    return found[0]
