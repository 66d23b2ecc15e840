"""Files that are whole or absent, and seeds that mix."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from actsearch.errors import ActsearchError, RunError, SettingsError, UnknownNameError, unknown_name
from actsearch.files import append_line, find_named, named_files, read_yaml, write_atomically, write_text
from actsearch.seeds import mix_seed, seed_all


def test_a_written_file_is_there_with_its_folders_and_readable_by_others(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b" / "c.txt", "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert [p.name for p in path.parent.iterdir()] == ["c.txt"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert write_text(path, "new").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = write_text(tmp_path / "f.txt", "old")

    def fail(temporary: Path) -> None:
        assert temporary.parent == path.parent
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_run_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "f.txt", "old")

    def fail(temporary: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write .*f\.txt: No space left on device"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="Permission denied"):
        write_text(tmp_path / "f.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_unicode_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "f.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = write_text(tmp_path / "f.txt", "old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "new"


def test_a_path_that_cannot_be_written_is_a_run_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (write_text, append_line):
        with pytest.raises(RunError, match="cannot write") as error:
            write(tmp_path / "file" / "f.txt", "x")
        assert "\n" not in str(error.value)


def test_lines_are_appended(tmp_path: Path) -> None:
    for line in ("one", "zwölf"):
        append_line(tmp_path / "log.jsonl", line)
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == "one\nzwölf\n"


def test_yaml_is_read_safely_and_its_errors_are_those_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb: [x, y]")
    assert read_yaml(path, SettingsError) == {"a": 1, "b": ["x", "y"]}
    path.write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(SettingsError, match=r"not valid YAML \(line 1\)"):
        read_yaml(path, SettingsError)
    with pytest.raises(RunError, match=r"cannot read .*: No such file"):
        read_yaml(tmp_path / "none.yaml", RunError)


def test_a_named_file_is_found_by_name_and_by_path() -> None:
    files = named_files("search_spaces")
    assert find_named("search space", "search_spaces", "grafs") == files["grafs"]
    assert find_named("search space", "search_spaces", files["tiny"]) == files["tiny"]
    assert named_files("no_such_folder") == {}
    with pytest.raises(UnknownNameError, match="unknown search space 'grfs'; did you mean 'grafs'"):
        find_named("search space", "search_spaces", "grfs")
    with pytest.raises(UnknownNameError, match=r"unknown search space file 'a\.yaml'"):
        find_named("search space", "search_spaces", Path("a.yaml"))


def test_errors_can_be_caught_together_and_by_their_python_kind() -> None:
    error = UnknownNameError("op", "rely", ["relu"])
    assert isinstance(error, ActsearchError)
    assert isinstance(error, KeyError)
    assert str(error) == "unknown op 'rely'; did you mean 'relu'?"
    assert unknown_name("op", "zzz", [f"a{k:02}" for k in range(20)]).endswith("a11, …")


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_mixed_seeds_differ_for_near_numbers_and_their_order() -> None:
    seeds = {mix_seed(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 20**3
    assert all(0 <= s < 2**63 for s in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert mix_seed(1) != mix_seed(1, 0)
    assert mix_seed(-1) == mix_seed(-1) != mix_seed(1)


def test_every_bit_of_a_mixed_seed_depends_on_every_number() -> None:
    for position in range(3):
        flips = np.zeros(63)
        for k in range(400):
            numbers = [k, k + 1, 7]
            one = mix_seed(*numbers)
            numbers[position] ^= 1
            flips += [(one ^ mix_seed(*numbers)) >> bit & 1 for bit in range(63)]
        assert flips.min() / 400 > 0.35
        assert flips.max() / 400 < 0.65


def test_the_same_numbers_give_the_same_seed_in_every_version() -> None:
    """Resumed searches rely on it."""
    assert [mix_seed(), mix_seed(0), mix_seed(1, 2, 3)] == [
        5700357409661599242,
        441288258402679257,
        3761933955746900752,
    ]


def test_all_global_generators_are_seeded() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002

    seed_all(1, 2)
    first = draw()
    seed_all(1, 2)
    assert draw() == first
    torch.manual_seed(mix_seed(1, 2))
    assert torch.rand(()).item() == first[2]
    seed_all(1, 3)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
