"""C++ beside a module, compiled when it is first needed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from actsearch import native

SOURCE = """
extern "C" int answer() { return VALUE; }
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_told", False)
    native._folder.cache_clear()
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def answer(library: native.Library) -> int:
    assert library.kernels is not None
    found: int = library.kernels.answer()
    return found


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/actsearch/kernels").iterdir())


def test_a_library_is_compiled_once_and_again_for_other_constants(source: Path, tmp_path: Path) -> None:
    library = native.Library(source, {"VALUE": 41})
    assert answer(library) == 41
    assert library.kernels is library.kernels
    assert len(kept(tmp_path)) == 1
    assert answer(native.Library(source, {"VALUE": 42})) == 42
    assert [path.suffix for path in kept(tmp_path)] == [".so", ".so"]  # and nothing unfinished


def test_what_another_process_compiled_is_taken(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert answer(native.Library(source, {"VALUE": 1})) == 1
    monkeypatch.setattr(native, "_compile", lambda *given: pytest.fail("compiled again"))
    assert answer(native.Library(source, {"VALUE": 1})) == 1


def test_another_processor_has_a_library_of_its_own(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert answer(native.Library(source, {"VALUE": 1})) == 1
    monkeypatch.setattr(native, "_machine", lambda: "another")
    assert answer(native.Library(source, {"VALUE": 1})) == 1
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize(("compiler", "reason"), [("missing", "no C\\+\\+ compiler"), ("false", "fails")])
def test_without_a_compiler_there_is_none_after_one_warning(
    source: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=f"without compiled kernels.*{reason}"):
        assert native.Library(source, {"VALUE": 1}).kernels is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.Library(source, {"VALUE": 1}).kernels is None
        assert native.Library(source, {"VALUE": 2}).kernels is None
    folder = tmp_path / "cache/actsearch/kernels"
    assert not folder.exists() or not list(folder.iterdir())


def test_a_compiler_may_be_a_command_with_options(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env c++ -DVALUE=3")
    assert answer(native.Library(source, {})) == 3


def test_a_mistake_in_the_source_names_the_line(source: Path) -> None:
    source.write_text("nonsense", encoding="utf-8")
    with pytest.warns(UserWarning, match="answer.cpp:1"):
        assert native.Library(source, {"VALUE": 1}).kernels is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written_is_done_without(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert answer(native.Library(source, {"VALUE": 7})) == 7


def test_a_file_in_place_of_the_cache_is_done_without(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    assert answer(native.Library(source, {"VALUE": 7})) == 7


def test_many_processes_at_once_find_whole_libraries(source: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from actsearch import native
print(native.Library(Path({str(source)!r}), {{"VALUE": 5}}).kernels.answer())
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == ["5"] * 3
    assert len(kept(tmp_path)) == 1


def test_few_elements_wake_no_threads() -> None:
    assert native.threads(10) == 1
    assert native.threads(1 << 20) == torch.get_num_threads()
