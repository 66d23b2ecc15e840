"""SearchSpace: what its file says is what it holds, it counts right, and a bad file is told so in one line."""

from __future__ import annotations

import copy
import math
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actsearch.activation import Activation
from actsearch.errors import ActsearchError, SpaceError, UnknownNameError
from actsearch.ops import registry
from actsearch.space import FOLDER, SearchSpace

YAMLS = sorted((Path(__file__).parents[2] / FOLDER).glob("*.yaml"))
UNARY = [s.id for s in registry.of_arity(1)]
BINARY = [s.id for s in registry.of_arity(2)]


def every_choice(space: SearchSpace) -> list[dict[str, str]]:
    names = [slot.name for slot in space.slots]
    choices = product(*(slot.candidates for slot in space.slots))
    return [ops for c in choices if space.admits(ops := dict(zip(names, c, strict=True)))]


def small(**changes: Any) -> dict[str, Any]:
    """A valid mapping of one unary slot pair, with changes."""
    return {
        "cell": {
            "u1": {"inputs": "x", "candidates": ["relu", "tanh"]},
            "b1": {"inputs": ["x", "u1"], "candidates": ["add", "mul"]},
        },
        **changes,
    }


def slot(candidates: Any = "tanh", inputs: Any = "x", **other: Any) -> dict[str, Any]:
    return {"inputs": inputs, "candidates": candidates, **other}


# -- the shipped spaces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_shipped_space_loads_and_comes_back_from_its_own_dictionary(path: Path) -> None:
    space = SearchSpace.load(path.stem)
    assert space.name == path.stem
    assert space.description
    assert SearchSpace.load(path) == space
    again = SearchSpace.from_dict(space.to_dict())
    assert (again.hash, again.slots, again.size, again.clip) == (space.hash, space.slots, space.size, space.clip)
    assert space.random(0).space == {"name": space.name, "hash": space.hash}


def test_the_names_are_those_of_the_files() -> None:
    assert SearchSpace.names() == tuple(p.stem for p in YAMLS)
    assert {"grafs", "swish", "smooth_c2", "full", "tiny"} <= set(SearchSpace.names())


def test_grafs_is_the_published_space() -> None:
    space = SearchSpace.load("grafs")
    assert space.n_candidates == 110
    assert space.size == 23**4 * 9**2
    assert [(s.name, s.inputs, len(s.candidates)) for s in space.slots] == [
        ("u1", ("x",), 23),
        ("u2", ("x",), 23),
        ("b1", ("u1", "u2"), 9),
        ("u3", ("b1",), 23),
        ("u4", ("x",), 23),
        ("b2", ("u3", "u4"), 9),
    ]
    assert (space.output, space.clip.kind, space.clip.limit, space.sharing) == ("b2", "hard", 10.0, "network")


def test_smooth_c2_holds_smooth_functions_only() -> None:
    space = SearchSpace.load("smooth_c2")
    assert space.clip.smoothness == math.inf
    assert all(registry[op].smoothness >= 2 for slot in space.slots for op in slot.candidates)
    assert all(space.random(seed).smoothness >= 2 for seed in range(50))
    assert not {"relu", "abs", "sqrt", "elu"} & set(space.slot("u1").candidates)


def test_full_holds_every_operation_without_a_pole_and_without_parameters_by_channel() -> None:
    held = {op for slot in SearchSpace.load("full").slots for op in slot.candidates}
    by_channel = {op for op, spec in registry.items() if any(p.scope == "channel" for p in spec.parameters)}
    assert by_channel
    assert held == {op for op, spec in registry.items() if spec.smoothness >= 0} - by_channel


# -- counting ----------------------------------------------------------------------------------------------------------

SHAPES: list[dict[str, list[str]]] = [
    {"u1": ["x"]},
    {"b1": ["x", "x"]},
    {"u1": ["x"], "b1": ["u1", "x"]},
    {"u1": ["x"], "u2": ["u1"]},
    {"u1": ["x"], "u2": ["x"], "b1": ["u1", "u2"]},
    {"u1": ["x"], "u2": ["x"], "b1": ["u1", "u2"], "u3": ["b1"]},
    {"u1": ["x"], "u2": ["x"], "b1": ["u1", "u2"], "u3": ["b1"], "u4": ["x"], "b2": ["u3", "u4"]},
    {"b1": ["x", "x"], "b2": ["x", "x"], "b3": ["b1", "b2"]},
]


@st.composite
def small_spaces(draw: Any) -> SearchSpace:
    shape = draw(st.sampled_from(SHAPES))
    most = 3 if len(shape) > 4 else 6
    cell = {}
    for name, inputs in shape.items():
        # Operations whose canonical form is special come up more often than one in thirty.
        special = (
            ["identity", "beta", "neg"] if len(inputs) == 1 else ["left", "right", "max", "add", "mul", "beta_mix"]
        )
        pool = st.one_of(st.sampled_from(special), st.sampled_from(UNARY if len(inputs) == 1 else BINARY))
        cell[name] = slot(draw(st.lists(pool, min_size=1, max_size=most, unique=True)), inputs)
    return SearchSpace.from_dict({"cell": cell})


@settings(deadline=None, derandomize=True, max_examples=150)
@given(small_spaces())
def test_distinct_functions_are_counted_as_brute_force_counts_them(space: SearchSpace) -> None:
    choices = every_choice(space)
    assert space.size == len(choices)
    assert space.distinct == len({space.genotype(ops).tree for ops in choices})


@pytest.mark.parametrize(
    ("binary", "expected"),
    [("add", 6), ("sub", 9), ("max", 6), ("left", 3), ("right", 3), ("beta_mix", 9)],
)
def test_distinct_by_hand_for_one_core_unit_of_three(binary: str, expected: int) -> None:
    three = ["identity", "tanh", "sin"]
    cell = {"u1": slot(three), "u2": slot(three), "b1": slot([binary], ["u1", "u2"])}
    assert SearchSpace.from_dict({"cell": cell}).distinct == expected


def test_distinct_by_hand_with_projections_constants_and_idempotent_operations() -> None:
    three = ["identity", "tanh", "beta"]  # as functions: x, tanh, β
    cell = {"u1": slot(three), "u2": slot(three), "b1": slot(["add", "max", "left"], ["u1", "u2"])}
    # Six sums; three maxima of two different functions; the three themselves.
    assert SearchSpace.from_dict({"cell": cell}).distinct == 12


def test_distinct_is_not_counted_where_it_would_be_wrong() -> None:
    twice = {"u1": slot(["tanh", "sin"]), "b1": slot(["add"], ["u1", "u1"])}
    assert SearchSpace.from_dict({"cell": twice}).distinct is None
    assert SearchSpace.from_dict(small(constraints={"max_complexity": 2})).distinct is None


@pytest.mark.parametrize("limit", range(6))
def test_size_within_a_greatest_complexity_is_that_of_brute_force(limit: int) -> None:
    cell = SearchSpace.load("tiny").to_dict()["cell"]
    everything = [SearchSpace.load("tiny").genotype(ops).complexity for ops in every_choice(SearchSpace.load("tiny"))]
    expected = sum(complexity <= limit for complexity in everything)
    space = SearchSpace.from_dict({"cell": cell, "constraints": {"max_complexity": limit}})
    assert space.size == expected == len(every_choice(space))


# -- random genotypes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_random_genotypes_are_uniform_over_the_space(limit: int | None) -> None:
    constraints = {} if limit is None else {"max_complexity": limit}
    cell = {
        "u1": slot(["identity", "neg", "relu", "tanh"]),
        "u2": slot(["identity", "tanh"]),
        "b1": slot(["add", "left", "right"], ["u1", "u2"]),
    }
    space = SearchSpace.from_dict({"cell": cell, "constraints": constraints})
    choices = [tuple(ops[s.name] for s in space.slots) for ops in every_choice(space)]
    draws = 100 * len(choices)
    seen = Counter(tuple(space.random(seed).slots[s.name].op for s in space.slots) for seed in range(draws))
    assert set(seen) <= set(choices)
    assert scipy.stats.chisquare([seen[c] for c in choices]).pvalue > 1e-3


def test_random_is_a_function_of_the_seed_and_leaves_the_global_generators_alone() -> None:
    space = SearchSpace.load("grafs")
    torch_state = torch.random.get_rng_state()
    assert space.random(7).to_dict() == space.random(7).to_dict()
    assert len({space.random(seed) for seed in range(30)}) > 25
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_random_parameters_are_draws_of_their_starting_distribution() -> None:
    space = SearchSpace.from_dict({"cell": {"u1": slot("beta_mul")}})
    values = [space.random(seed).slots["u1"].parameters["beta"] for seed in range(1500)]
    assert scipy.stats.kstest(values, "norm", (1.0, 0.25)).pvalue > 1e-3


# -- constraints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0, 1, 2, 5])
def test_smoothness_keeps_exactly_the_smooth_enough(least: int) -> None:
    cell = {"u1": slot(UNARY), "b1": slot(BINARY, ["u1", "x"])}
    space = SearchSpace.from_dict({"cell": cell, "clip": {"kind": "none"}, "constraints": {"smoothness": least}})
    kept = [op for s in space.slots for op in s.candidates]
    assert set(kept) == {op for op, spec in registry.items() if spec.smoothness >= least}


def test_functions_of_a_bounded_space_are_bounded_without_a_clip() -> None:
    cell = {
        "u1": slot(UNARY),
        "u2": slot(UNARY),
        "b1": slot(BINARY, ["u1", "u2"]),
        "b2": slot(BINARY, ["b1", "x"]),
    }
    space = SearchSpace.from_dict({"cell": cell, "clip": {"kind": "none"}, "constraints": {"bounded": True}})
    x = torch.tensor([-1e30, -1e6, -50, 0, 50, 1e6, 1e30], dtype=torch.float64)
    for seed in range(300):
        assert Activation(space.random(seed))(x).abs().max() < 1e3
    assert "add" in space.slot("b1").candidates
    assert "add" not in space.slot("b2").candidates


def test_allow_and_deny_choose_candidates_in_the_order_of_the_slot() -> None:
    cell = {"u1": slot(["tanh", "relu", "sin"]), "b1": slot(["add", "mul"], ["u1", "x"])}
    allowed = SearchSpace.from_dict({"cell": cell, "constraints": {"allow": ["sin", "tanh", "add"]}})
    assert [s.candidates for s in allowed.slots] == [("tanh", "sin"), ("add",)]
    denied = SearchSpace.from_dict({"cell": cell, "constraints": {"deny": "relu"}})
    assert [s.candidates for s in denied.slots] == [("tanh", "sin"), ("add", "mul")]


def test_a_group_gives_its_members_of_the_slot_s_arity_once() -> None:
    cell = {"u1": slot(["relu", "group:grafs", "tanh"]), "b1": slot("group:grafs", ["u1", "x"])}
    space = SearchSpace.from_dict({"cell": cell})
    assert [len(s.candidates) for s in space.slots] == [23, 9]
    assert space.slot("u1").candidates[0] == "relu"


def test_slots_come_in_topological_order_whatever_the_order_of_the_file() -> None:
    cell = {"b1": slot("add", ["u2", "u1"]), "u2": slot("tanh", "u1"), "u1": slot("sin")}
    assert [s.name for s in SearchSpace.from_dict({"cell": cell, "output": "b1"}).slots] == ["u1", "u2", "b1"]


# -- bad files ---------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no cell": ({}, "needs a `cell`"),
    "empty cell": ({"cell": {}}, "needs a `cell`"),
    "cell is a list": ({"cell": ["u1"]}, "needs a `cell`"),
    "unknown key": (small(outputs="b1"), "unknown key 'outputs'; did you mean 'output'?"),
    "unknown key of a slot": (small(cell={"u1": slot(input="x")}), "unknown key of slot u1 'input'; .*'inputs'"),
    "unknown operation": (small(cell={"u1": slot("relo")}), "slot 'u1': unknown operation 'relo'; did you mean 'relu'"),
    "unknown group": (small(cell={"u1": slot("group:graf")}), "slot 'u1': unknown group .*did you mean 'grafs'"),
    "wrong arity": (small(cell={"u1": slot("add")}), "slot 'u1': 'add' takes 2"),
    "cycle": (small(cell={"u1": slot(inputs="u2"), "u2": slot(inputs="u1")}), "cycle: u2 -> u1 -> u2"),
    "own input": (small(cell={"u1": slot(inputs="u1")}), "cycle: u1 -> u1"),
    "unknown input": (small(cell={"u1": slot(inputs="u9")}), "slot 'u1' reads 'u9', which is neither"),
    "unread slot": (small(cell={"u1": slot(), "u2": slot()}), "slot 'u1' does not reach the output 'u2'"),
    "unknown output": (small(output="u9"), "the output reads 'u9'"),
    "output is the input": (small(output="x"), "does not reach the output"),
    "no candidates": (small(cell={"u1": slot([])}), "slot 'u1' has no candidate left"),
    "missing candidates": (small(cell={"u1": {"inputs": "x"}}), "slot 'u1' has no candidate left"),
    "all denied": (small(constraints={"deny": ["relu", "tanh"]}), r"slot 'u1' has no candidate left \(relu: it is in"),
    "none allowed": (small(constraints={"allow": ["relu", "sin"]}), "slot 'b1' has no candidate left .*allow"),
    "unknown denied": (small(constraints={"deny": ["reluu"]}), "constraint deny: unknown operation 'reluu'; .*'relu'"),
    "unknown allowed": (small(constraints={"allow": "tan"}), "constraint allow: unknown operation 'tan'"),
    "no inputs": (small(cell={"u1": {"candidates": "tanh"}}), "slot 'u1' must have one or two inputs, not 0"),
    "three inputs": (small(cell={"u1": slot(inputs=["x"] * 3)}), "slot 'u1' must have one or two inputs, not 3"),
    "inputs are numbers": (small(cell={"u1": slot(inputs=[1])}), "`inputs of slot u1` must be a name or a list"),
    "candidates are a mapping": (small(cell={"u1": slot({"a": 1})}), "`candidates of slot u1` must be a name"),
    "slot is a list": (small(cell={"u1": ["tanh"]}), "slot 'u1' needs `inputs`"),
    "slot is missing": (small(cell={"u1": None}), "slot 'u1' needs `inputs`"),
    "slot named x": (small(cell={"x": slot()}), "'x' cannot name a slot"),
    "slot named yes": (small(cell={True: slot()}), "True cannot name a slot"),
    "slot named by a number": (small(cell={1: slot()}), "1 cannot name a slot"),
    "slot with a dash": (small(cell={"u-1": slot()}), "'u-1' cannot name a slot"),
    "slot named as a method": (small(cell={"values": slot()}), "'values' cannot name a slot: the name is taken"),
    "slot named training": (small(cell={"training": slot()}), "'training' cannot name a slot: the name is taken"),
    "smooth with hard clip": (small(constraints={"smoothness": 1}), "rules out the hard clip"),
    "smooth with kinks": (
        small(clip={"kind": "none"}, cell={"u1": slot(["relu", "abs"])}, constraints={"smoothness": 2}),
        r"slot 'u1' has no candidate left \(relu: it is not C\^2",
    ),
    "bounded with unbounded": (small(constraints={"bounded": True}), r"slot 'b1' has no .*add: it is unbounded"),
    "pole in bounded": (
        small(cell={"u1": slot(), "b1": slot("div", ["u1", "u1"])}, constraints={"bounded": True}),
        "slot 'b1' .*it has a pole",
    ),
    "smoothness is half": (small(constraints={"smoothness": 0.5}), "smoothness must be a whole number"),
    "smoothness is negative": (small(constraints={"smoothness": -1}), "smoothness must be a whole number"),
    "smoothness is true": (small(constraints={"smoothness": True}), "smoothness must be a whole number"),
    "bounded is text": (small(constraints={"bounded": "yes"}), "bounded must be true or false"),
    "complexity is text": (small(constraints={"max_complexity": "3"}), "max_complexity must be a whole number"),
    "too simple": (small(constraints={"max_complexity": 1}), "no function has a complexity of at most 1"),
    "unknown constraint": (small(constraints={"smooth": 2}), "unknown constraint 'smooth'; did you mean 'smoothness'"),
    "constraints are a list": (small(constraints=["bounded"]), "`constraints` must hold keys"),
    "unknown clip": (small(clip={"kind": "soft"}), "unknown clip 'soft'"),
    "unknown clip setting": (small(clip={"limits": 1}), "unknown clip setting 'limits'; did you mean 'limit'"),
    "clip is a number": (small(clip=10), "`clip` must hold keys"),
    "clip at zero": (small(clip={"limit": 0}), "clip limit must be a positive"),
    "clip at nan": (small(clip={"limit": math.nan}), "clip limit must be a positive"),
    "clip at infinity": (small(clip={"limit": math.inf}), "clip limit must be a positive"),
    "clip at a huge integer": (small(clip={"limit": 10**400}), "clip limit must be a positive"),
    "clip at true": (small(clip={"limit": True}), "clip limit must be a positive"),
    "clip at text": (small(clip={"limit": "1e1"}), "clip limit must be a positive"),
    "unknown sharing": (small(sharing="sites"), "unknown sharing 'sites'; did you mean 'site'"),
    "sharing is a list": (small(sharing=["site"]), "unknown sharing"),
    "a deep chain": (
        {"cell": {f"u{i}": slot(inputs=f"u{i - 1}" if i else "x") for i in range(3000)}},
        "deeper than 30 slots",
    ),
    "a formula that doubles": (
        {"cell": {f"b{i}": slot("add", [f"b{i - 1}" if i else "x"] * 2) for i in range(25)}},
        "more than 500 operations",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_space_is_refused_in_one_line_that_says_what_is_wrong(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises((SpaceError, UnknownNameError), match=message) as error:
        SearchSpace.from_dict(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


BAD_YAML = {
    "open bracket": ("cell: [1", "not valid YAML"),
    "a tab": ("\t", "not valid YAML"),
    "a null byte": ("a: \x00", "not valid YAML"),
    "a list": ("- 1", "must hold a mapping"),
    "nothing": ("", "must hold a mapping"),
    "an object": ("cell: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "a month 13": ("name: 2026-13-45", "not valid YAML"),
    "no binary digits": ("name: 0b_", "not valid YAML"),
    "no boolean": ("name: !!bool foo", "not valid YAML"),
    "no timestamp": ("name: !!timestamp foo", "not valid YAML"),
    "a list as a key": ("[1]: 2", "not valid YAML"),
    "deep nesting": ("[" * 3000, "not valid YAML"),
    "a slot": ("cell: {u1: {inputs: x, candidates: relo}}", "slot 'u1': unknown operation"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_a_bad_yaml_file_is_refused_in_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    text, message = BAD_YAML[name]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match=message) as error:
        SearchSpace.load(path)
    assert "mine" in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SpaceError, match="cannot read"):
        SearchSpace.load(path)


def test_an_unknown_space_gives_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="unknown search space 'graf'; did you mean 'grafs'"):
        SearchSpace.load("graf")
    with pytest.raises(UnknownNameError, match="unknown search space file"):
        SearchSpace.load("missing.yaml")


def test_an_operation_that_is_no_candidate_cannot_be_put_into_a_slot() -> None:
    space = SearchSpace.from_dict(small())
    with pytest.raises(SpaceError, match="candidate of slot u1 'tan'; did you mean 'tanh'"):
        space.genotype({"u1": "tan", "b1": "add"})
    with pytest.raises(SpaceError, match="unknown slot 'u2'"):
        space.slot("u2")


# -- identity ----------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_functions_and_not_of_the_words() -> None:
    plain = SearchSpace.from_dict(small())
    same = [small(name="other", description="words", reference="book"), small(sharing="site"), small(output="b1")]
    assert {SearchSpace.from_dict(d).hash for d in same} == {plain.hash}
    other = [
        small(clip={"limit": 5.0}),
        small(clip={"kind": "none"}),
        small(constraints={"deny": "mul"}),
        small(constraints={"max_complexity": 2}),
        small(cell={"u1": slot()}),
    ]
    assert len({SearchSpace.from_dict(d).hash for d in other} | {plain.hash}) == len(other) + 1


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(10**400),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["x", "u1", "b1", "group:grafs", "relu", "add", "hard", "none", "smooth", "site", "values", "div"]),
    st.lists(st.sampled_from(["x", "u1", "b1", "relu", "add", 1, None]), max_size=3),
    st.dictionaries(st.sampled_from(["kind", "limit", "inputs", "candidates", "u1", 1]), st.integers(), max_size=2),
)


def containers(value: Any) -> list[Any]:
    found = [value] if isinstance(value, dict | list) and value else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return found + [c for child in children for c in containers(child)]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data(), st.sampled_from(["tiny", "small"]), st.integers(1, 3))
def test_a_mutated_mapping_gives_a_space_or_an_error_of_ours(data: Any, source: str, mutations: int) -> None:
    mapping = SearchSpace.load("tiny").to_dict() if source == "tiny" else small(constraints={"deny": ["mul"]})
    mapping = copy.deepcopy(mapping)
    for _ in range(mutations):
        where = data.draw(st.sampled_from(containers(mapping)))
        key = data.draw(st.sampled_from(list(where) if isinstance(where, dict) else range(len(where))))
        action = data.draw(st.sampled_from(["replace", "delete", "rename"]))
        if action == "replace":
            where[key] = data.draw(JUNK)
        elif action == "delete" or isinstance(where, list):
            del where[key]
        else:
            where[data.draw(st.one_of(st.none(), st.integers(0, 2), st.text(max_size=5), st.just("u1")))] = where[key]
        if not containers(mapping):
            break
    try:
        space = SearchSpace.from_dict(mapping)
    except ActsearchError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        return
    genotype = space.random(0)
    assert SearchSpace.from_dict(space.to_dict()).hash == space.hash
    assert Activation(genotype)(torch.zeros(2)).isfinite().all()
