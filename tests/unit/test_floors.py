"""The floors of the house: a module imports from its own floor and from those below, wherever the import stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "actsearch"

# Low to high; the modules of one line may import one another.
FLOORS = [
    {"errors", "files", "heap", "launched", "lock", "native", "ranks", "seeds", "work", "_torchvision"},
    {"ops"},
    {"genotype"},
    {"space", "zoo"},
    {"cell"},
    {"activation", "export"},
    {"swap"},
    {"advancing", "endings", "execution", "together"},
    {"models", "data", "tasks", "forcefield"},
    {"search"},
    {"run"},
    {"compare", "tune"},
    {"record"},
    {"report"},
    {"config", "options", "build"},
    {"api", "bench", "trials"},
    {"process"},
    {
        "session",
        "transfer",
        "tuning",
        "viewing",
        "reporting",
        "carrying",
        "benching",
        "simulating",
        "doctor",
        "competing",
        "boarding",
    },
    {"cli", "__main__"},
]
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
# The public name `actsearch.search(...)` is a function of the top floor, looked up when it is called.
# So is `actsearch.ops.slopes.adapt(...)`, by the contract of the design; it is a swap.
EXCEPTIONS = {("search/__init__.py", "api"), ("ops/slopes.py", "swap")}


def room(path: Path) -> str:
    """The room that a file is in; the package's own __init__ stands above all."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import from the package, at any depth, relative ones too, and of every `actsearch.name`.

    The version is no room: anyone may tell it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ("actsearch", *path.relative_to(PACKAGE).parent.parts)
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            names = [f"actsearch.{a.name}" for a in node.names] if base == "actsearch" else [base]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "actsearch":
            names = [f"actsearch.{node.attr}"]
        for name in names:
            parts = name.split(".")
            if parts[0] == "actsearch" and len(parts) > 1 and parts[1] != "__version__":
                yield node.lineno, parts[1]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_a_higher_floor(path: Path) -> None:
    own = room(path)
    assert own in LEVEL, f"{own} stands on no floor: enter it in FLOORS"
    relative = path.relative_to(PACKAGE).as_posix()
    for line, other in imported_rooms(path):
        if (relative, other) in EXCEPTIONS:
            continue
        assert LEVEL.get(other, len(FLOORS)) <= LEVEL[own], f"{relative}:{line} imports {other} from a higher floor"


def test_ops_know_nothing_of_lightning_and_search_nothing_of_vision() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        modules = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        if room(path) in ("ops", "genotype", "space", "cell", "activation", "swap", "export"):
            assert not {"pytorch_lightning", "lightning"} & modules, path
        if room(path) in ("ops", "genotype", "space", "cell", "activation", "swap", "export", "search"):
            assert "torchvision" not in modules, path
