"""Mutated genotypes, spaces, configurations and formulas are read, or refused by an ActsearchError; no code is run."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actsearch import options
from actsearch.activation import Activation
from actsearch.config import SearchConfig, TransferConfig
from actsearch.errors import ActsearchError
from actsearch.files import named_files
from actsearch.genotype import Genotype
from actsearch.ops.formula import to_torch
from actsearch.space import SearchSpace
from actsearch.tune import Plan, Range
from actsearch.tuning import Work
from actsearch.zoo import _FOLDER

TRAP = "actsearch_fuzz_trap"
# What may be tried to get code run, by whoever evaluates, unpickles, instantiates or interpolates.
PAYLOADS = [
    f"__import__('{TRAP}').spring()",
    f"!!python/object/apply:{TRAP}.spring []",
    f"!!python/name:{TRAP}.spring",
    f"!!python/object/new:{TRAP}.Spring []",
    f"{{class_path: {TRAP}.Spring, init_args: {{}}}}",
    f'"""\n__import__("{TRAP}").spring()\n"""',
    f"${{oc.env:HOME}} {{{{{TRAP}.spring()}}}}",
    f"{TRAP}.Spring",
]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**400, 1e308, -0.0, float("inf"), float("nan"), "", "x", "x" * 5000, "\u0000",
    "\ud7ff", "é", [], {}, [[]], {"": {}}, [None], {"class_path": f"{TRAP}.Spring"}, {"kind": {}}, "hard", "u1", "relu",
    [1.0] * 50, *PAYLOADS,
]  # fmt: skip
SNIPPETS = [
    "{", "}", "[", "]", ":", ",", '"', "'", "\n", "\t", "- ", "&a ", "*a", "<<: *a", "!!", "? ", "|", "#", "---\n",
    "...", "0x", "1e999", "NaN", "-Infinity", "2026-11-29", "\u0000", "\ufeff", "=", "~", "null", *PAYLOADS,
]  # fmt: skip


class Trap(types.ModuleType):
    """A module that notes whether anything of it was called."""

    sprung = 0

    def spring(self, *args: Any, **kwargs: Any) -> int:
        type(self).sprung += 1
        return 0


@pytest.fixture(autouse=True)
def _trap() -> Iterator[None]:
    trap = Trap(TRAP)

    class Spring:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            trap.spring()

    trap.Spring = Spring  # type: ignore[attr-defined]
    Trap.sprung = 0
    sys.modules[TRAP] = trap
    yield
    del sys.modules[TRAP]
    assert Trap.sprung == 0, "code of a file was run"


def test_the_trap_is_sprung_by_code() -> None:
    eval(PAYLOADS[0])
    yaml.load(PAYLOADS[1], Loader=yaml.UnsafeLoader)
    assert Trap.sprung == 2
    Trap.sprung = 0


# -- mutations -----------------------------------------------------------------------------------------------------


def mutated_text(text: str, rng: random.Random) -> str:
    """A few insertions, deletions, repetitions and replacements."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        to = min(len(text), at + rng.choice([1, 2, 5, 40, 400]))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + rng.choice(SNIPPETS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[to:]
        elif kind == 2:
            text = text[:to] + text[at:to] * rng.randint(1, 3) + text[to:]
        elif kind == 3:
            text = text[:at] + rng.choice(SNIPPETS) + text[to:]
        elif kind == 4:
            text = text[:at]
        else:
            text = text[:at] + "".join(chr(rng.choice([0, 9, 34, 39, 58, 91, 123, 133, 233, 8232])) for _ in range(3))
    return text


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from nodes(tree[key])


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """A few values replaced, removed, renamed, nested or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 4)):
        places = list(nodes(tree))
        if not places:
            return tree
        holder, key = rng.choice(places)
        other, its = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 1:
            del holder[key]
        elif kind == 2:
            holder[key] = {str(rng.choice(VALUES))[:40]: holder[key]}
        elif kind == 3 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "u1", "op", "class_path", 3, None, True, 1.5, *PAYLOADS])] = holder.pop(key)
        elif kind == 4:
            holder[key] = copy.deepcopy(other[its])
        else:
            holder[key] = [holder[key]] * rng.randint(0, 3)
    return tree


def check(
    seeds: list[str],
    parse: Callable[[str], Any],
    print_: Callable[[Any], str],
    read: Callable[[str], Any],
    use: Callable[[Any], object],
    rng: random.Random,
) -> None:
    """Reads one mutation of one of the `seeds`; what is read must be of use, too."""
    text = rng.choice(seeds)
    if rng.random() < 0.6:
        text = print_(mutated_tree(parse(text), rng))
    if rng.random() < 0.5:
        text = mutated_text(text, rng)
    try:
        found = read(text)
    except ActsearchError:
        return
    use(found)


# -- what is read --------------------------------------------------------------------------------------------------


def genotypes() -> list[str]:
    zoo = [json.dumps(json.loads(p.read_text(encoding="utf-8"))["genotype"]) for p in sorted(_FOLDER.glob("*.json"))]
    drawn = [
        SearchSpace.load(name).random(seed).to_json() for name in ("tiny", "taafs", "laaf", "full") for seed in range(3)
    ]
    return [text for text in zoo if '"format"' in text] + drawn


def use_genotype(genotype: Genotype) -> None:
    assert isinstance(genotype, Genotype)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert genotype.formula
    x = torch.linspace(-3, 3, 7)
    try:
        assert Activation(genotype)(x).shape == x.shape
    except ActsearchError:
        return  # such as parameters by channel, of which a vector without channels has none


def dumped(tree: Any) -> str:
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)


def spaces() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in named_files("search_spaces").values()]


def use_space(space: SearchSpace) -> None:
    assert SearchSpace.load(yaml.safe_load(dumped(space.to_dict()))).hash == space.hash
    assert isinstance(space.random(0), Genotype)


def configs(kind: str) -> list[str]:
    files = named_files(f"configs/{kind}").values()
    return [path.read_text(encoding="utf-8") for path in files]


def check_genotype(rng: random.Random, folder: Path) -> None:
    check(GENOTYPES, json.loads, lambda tree: json.dumps(tree, default=str), Genotype.from_json, use_genotype, rng)


def check_space(rng: random.Random, folder: Path) -> None:
    def read(text: str) -> SearchSpace:
        file = folder / "space.yaml"
        file.write_text(text, encoding="utf-8")
        return SearchSpace.load(file)

    check(SPACES, yaml.safe_load, dumped, read, use_space, rng)


def check_config(rng: random.Random, folder: Path) -> None:
    cls: Any = rng.choice([SearchConfig, TransferConfig])
    file = folder / "config.yaml"

    def read(text: str) -> Any:
        file.write_text(text, encoding="utf-8")
        return options.read_config(PARSERS[cls], [f"--config={file}"], cls)[0]

    def use(config: Any) -> None:
        assert read(dumped(config.to_dict())).to_dict() == config.to_dict()

    check(CONFIGS[cls], yaml.safe_load, dumped, read, use, rng)


class First:
    """Stands for a trial of Optuna's: of each range the first value."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        return low

    def suggest_float(self, name: str, low: float, high: float, step: float | None = None, log: bool = False) -> float:
        return low


def check_plan(rng: random.Random, folder: Path) -> None:
    file = folder / "plan.yaml"

    def read(text: str) -> Plan:
        file.write_text(text, encoding="utf-8")
        return Plan.load(file)

    def use(plan: Plan) -> None:
        values = plan.suggest(First())
        assert set(values) <= set(plan.parameters)
        assert all(plan.parameters[key].holds(value) for key, value in values.items())
        assert all(Range.parse(key, one.to_dict()) == one for key, one in plan.parameters.items())
        if rng.random() < 0.03:  # it takes a second
            with contextlib.suppress(ActsearchError):
                Work(plan, "study").check()

    check(PLANS, yaml.safe_load, dumped, read, use, rng)


def check_formula(rng: random.Random, folder: Path) -> None:
    text = mutated_text(rng.choice(FORMULAS), rng)
    x = torch.linspace(-3, 3, 7)
    with contextlib.suppress(ActsearchError):
        assert isinstance(to_torch(text)(x), torch.Tensor)


GENOTYPES = genotypes()
FORMULAS = [Genotype.from_json(text).formula for text in GENOTYPES]
SPACES = spaces()
PLANS = configs("tune")
CONFIGS: dict[Any, list[str]] = {SearchConfig: configs("search"), TransferConfig: configs("transfer")}
PARSERS: dict[Any, Any] = {}
for _cls in CONFIGS:
    PARSERS[_cls] = options.make_parser("")
    options.add_config(PARSERS[_cls], _cls)

KINDS = {
    "genotype": check_genotype,
    "space": check_space,
    "config": check_config,
    "plan": check_plan,
    "formula": check_formula,
}
EXAMPLES = {"genotype": 150, "space": 60, "config": 60, "plan": 100, "formula": 200}


def fuzz(kind: str, examples: int, folder: Path) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**63))
    def one(seed: int) -> None:
        KINDS[kind](random.Random(seed), folder)

    one()


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_are_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    fuzz(kind, EXAMPLES[kind], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_mutations_are_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    fuzz(kind, 2000, tmp_path)
