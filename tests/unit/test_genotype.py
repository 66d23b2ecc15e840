"""Genotype and Activation: plain data that comes back the same, and one function whatever the door."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actsearch.activation import Activation, load
from actsearch.errors import ActsearchError, GenotypeError, RunError
from actsearch.genotype import FORMAT, VERSION, Choice, Genotype
from actsearch.ops import Clip, registry
from actsearch.ops.formula import to_torch
from actsearch.ops.spec import Value
from actsearch.space import SearchSpace

X = torch.linspace(-3, 3, 61, dtype=torch.float64)
SPACES = pytest.mark.parametrize("name", ["grafs", "full"])


def chain(*ops: str, beta: float = 1.0, clip: Clip | None = None) -> Genotype:
    """Unary operations one after the other."""
    slots, reads = {}, "x"
    for k, op in enumerate(ops):
        slots[f"u{k}"] = Choice(op, (reads,), {p.name: beta for p in registry[op].parameters})
        reads = f"u{k}"
    return Genotype(slots, reads, clip or Clip("none"))


def unclipped(space: SearchSpace, seed: int) -> Genotype:
    """A random genotype without a clip, its parameters rounded to the digits that a formula shows."""
    drawn = space.random(seed)
    slots = {
        name: Choice(c.op, c.inputs, {k: _rounded(v) for k, v in c.parameters.items()})
        for name, c in drawn.slots.items()
    }
    return Genotype(slots, drawn.output, Clip("none"))


def _rounded(value: Value) -> Value:
    return tuple(float(format(v, ".4g")) for v in value) if isinstance(value, tuple) else float(format(value, ".4g"))


def tame(genotype: Genotype, x: torch.Tensor, most: float = 30.0) -> torch.Tensor:
    """Where no slot's value is large, so that rounding is not amplified and no guard acts."""
    values = [Activation(Genotype(genotype.slots, slot, genotype.clip)).double()(x) for slot in genotype.slots]
    return (torch.stack(values).abs() < most).all(0)


# -- plain data --------------------------------------------------------------------------------------------------------


@SPACES
def test_a_genotype_comes_back_from_json_the_same(name: str) -> None:
    space = SearchSpace.load(name)
    for seed in range(100):
        genotype = space.random(seed)
        again = Genotype.from_json(genotype.to_json())
        assert again == genotype
        assert hash(again) == hash(genotype)
        assert again.to_dict() == genotype.to_dict()
        assert again.slots == genotype.slots


def test_a_saved_genotype_is_loaded_by_file_and_by_run_directory(tmp_path: Path) -> None:
    genotype = SearchSpace.load("grafs").random(3)
    path = genotype.save(tmp_path / "run" / "genotype.json")
    assert Genotype.load(path) == genotype
    assert load(path).genotype == genotype
    assert load(path.parent).genotype == genotype
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_what_is_written_is_json_that_a_person_can_read() -> None:
    data = json.loads(SearchSpace.load("grafs").random(1).to_json())
    assert data["format"] == FORMAT
    assert data["version"] == 1  # what an older actsearch can read as well
    assert list(data["slots"]) == ["u1", "u2", "b1", "u3", "u4", "b2"]
    assert data["clip"] == {"kind": "hard", "limit": 10.0}
    assert data["provenance"] == {"random_seed": 1}


@pytest.mark.parametrize("provenance", [{"a": math.nan}, {"a": object()}, {"a": "\ud800"}, {"a": {1, 2}}])
def test_provenance_that_is_no_plain_data_cannot_be_written(provenance: dict[str, Any], tmp_path: Path) -> None:
    genotype = Genotype({"u1": Choice("relu", ("x",))}, "u1", provenance=provenance)
    with pytest.raises(GenotypeError, match="cannot be written as JSON"):
        genotype.save(tmp_path / "g.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        chain("relu").save(tmp_path / "file" / "g.json")


RELU = {"op": "relu", "inputs": ["x"], "parameters": {}}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "newer version": (
        {"version": VERSION + 1},
        f"genotype of version {VERSION + 1}; this actsearch reads up to {VERSION}: upgrade",
    ),
    "version zero": ({"version": 0}, "version 0 is not a positive"),
    "version true": ({"version": True}, "version True is not a positive"),
    "version text": ({"version": "1"}, "version '1' is not a positive"),
    "other format": ({"format": "nni"}, "not a genotype"),
    "no slots": ({"slots": {}}, "unknown slot as output 'u1'"),
    "slots are a list": ({"slots": [RELU]}, "malformed"),
    "slot without operation": ({"slots": {"u1": {"inputs": ["x"]}}}, "incomplete: it has no 'op'"),
    "unknown operation": ({"slots": {"u1": {**RELU, "op": "relo"}}}, "unknown operation 'relo'; did you mean 'relu'"),
    "too many inputs": ({"slots": {"u1": {**RELU, "inputs": ["x", "x"]}}}, r"takes 1 input\(s\), not 2"),
    "inputs are text": ({"slots": {"u1": {**RELU, "inputs": "x"}}}, "must be a list of names"),
    "inputs are numbers": ({"slots": {"u1": {**RELU, "inputs": [1]}}}, "must be a list of names"),
    "unknown input": ({"slots": {"u1": {**RELU, "inputs": ["u7"]}}}, "reads 'u7'"),
    "cycle": ({"slots": {"u1": {**RELU, "inputs": ["u1"]}}}, "cycle"),
    "broken dead slot": ({"slots": {"u1": RELU, "u2": {**RELU, "inputs": ["u7"]}}}, "slot 'u2' reads 'u7'"),
    "extra parameter": ({"slots": {"u1": {**RELU, "parameters": {"beta": 1}}}}, "needs a value for no parameter"),
    "missing parameter": ({"slots": {"u1": {"op": "beta_mul", "inputs": ["x"]}}}, "needs a value for .'beta'."),
    "output is the input": ({"output": "x"}, "unknown slot as output 'x'"),
    "unknown output": ({"output": "u9"}, "unknown slot as output 'u9'"),
    "slot named x": ({"slots": {"x": RELU}, "output": "x"}, "'x' cannot name a slot"),
    "slot with a dot": ({"slots": {"a.b": RELU}, "output": "a.b"}, "'a.b' cannot name a slot"),
    "unknown clip": ({"clip": {"kind": "soft", "limit": 1.0}}, "unknown clip 'soft'"),
    "clip with more": ({"clip": {"kind": "hard", "limit": 1.0, "sharp": 2}}, "malformed"),
    "no clip": ({"clip": None}, "malformed"),
    "provenance is a number": ({"provenance": 3}, "malformed"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tampered_genotype_is_refused_in_one_line(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(GenotypeError, match=message) as error:
        Genotype.from_dict({**Genotype.of_op("relu").to_dict(), **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [True, None, "1", [1], 10**400, math.nan, math.inf, -1e300], ids=str)
def test_a_parameter_must_be_a_number_that_float32_holds(value: Any) -> None:
    with pytest.raises(GenotypeError, match="must be a number within"):
        Choice("beta_mul", ("x",), {"beta": value})


def test_text_that_is_no_whole_json_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = SearchSpace.load("grafs").random(0).to_json()
    for text in [whole[:k] for k in range(0, len(whole), 17)] + ["[" * 100_000, "9" * 5_000, '{"a": NaN}', whole * 2]:
        with pytest.raises(GenotypeError) as error:
            Genotype.from_json(text)
        assert "\n" not in str(error.value)
    path = tmp_path / "g.json"
    path.write_text(whole[:100])
    with pytest.raises(GenotypeError, match=r"g\.json: genotype is not valid JSON"):
        Genotype.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GenotypeError, match="cannot read"):
        Genotype.load(path)
    with pytest.raises(GenotypeError, match=r"cannot read .*none\.json: No such file"):
        Genotype.load(tmp_path / "none.json")


def test_a_formula_that_doubles_at_every_slot_is_refused_at_once() -> None:
    slots = {f"b{k}": {"op": "add", "inputs": [f"b{k - 1}" if k else "x"] * 2} for k in range(29)}
    with pytest.raises(GenotypeError, match="more than 500 operations"):
        Genotype.from_dict({**Genotype.of_op("relu").to_dict(), "slots": slots, "output": "b28"})
    deep = {f"u{k}": {"op": "tanh", "inputs": [f"u{k - 1}" if k else "x"]} for k in range(5000)}
    with pytest.raises(GenotypeError, match="deeper than 30"):
        Genotype.from_dict({**Genotype.of_op("relu").to_dict(), "slots": deep, "output": "u4999"})


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x", "u1", "b1", "relu", "add", "beta_mul", "hard", "none", FORMAT]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["op", "inputs", "u1"]), inner),
    max_leaves=4,
)


def containers(value: Any) -> list[Any]:
    found = [value] if isinstance(value, dict | list) and value else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return found + [c for child in children for c in containers(child)]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data(), st.integers(0, 20), st.integers(1, 3))
def test_mutated_data_gives_a_genotype_or_an_error_of_ours(data: Any, seed: int, mutations: int) -> None:
    mapping = json.loads(SearchSpace.load("grafs").random(seed).to_json())
    for _ in range(mutations):
        where = data.draw(st.sampled_from(containers(mapping)))
        key = data.draw(st.sampled_from(list(where) if isinstance(where, dict) else range(len(where))))
        if data.draw(st.booleans()):
            where[key] = data.draw(JUNK)
        else:
            del where[key]
        if not containers(mapping):
            return
    try:
        genotype = Genotype.from_dict(mapping)
    except ActsearchError as error:
        message = str(error)
        assert "\n" not in message
        return
    assert Activation(genotype)(torch.zeros(2)).isfinite().all()
    try:
        assert Genotype.from_json(genotype.to_json()) == genotype
    except GenotypeError:
        assert not math.isfinite(sum(v for v in genotype.provenance.values() if isinstance(v, float)))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(max_size=30) | st.text(alphabet='{}[]",:0123456789.eE-+ntf\\u', max_size=40))
def test_random_text_is_refused(text: str) -> None:
    with pytest.raises(GenotypeError):
        Genotype.from_json(text)


# -- equality ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [s for s in registry.of_arity(2) if not s.projection], ids=lambda s: s.id)
def test_the_order_of_arguments_matters_unless_the_operation_commutes(spec: Any) -> None:
    def of(first: str, second: str) -> Genotype:
        slots = {
            "a": Choice(first, ("x",)),
            "b": Choice(second, ("x",)),
            "out": Choice(spec.id, ("a", "b"), {p.name: p.mean for p in spec.parameters}),
        }
        return Genotype(slots, "out")

    same = of("tanh", "sin") == of("sin", "tanh")
    assert same == spec.commutative
    assert (hash(of("tanh", "sin")) == hash(of("sin", "tanh"))) == spec.commutative


def test_dead_slots_names_and_provenance_make_no_difference() -> None:
    plain = chain("tanh")
    with_dead = Genotype(
        {"z": Choice("sin", ("x",)), "a": Choice("tanh", ("x",)), "b": Choice("left", ("a", "z"))},
        "b",
        Clip("none"),
        {"name": "s"},
        {"seed": 1},
    )
    unread = Genotype({"u1": Choice("tanh", ("x",)), "u2": Choice("sin", ("u1",))}, "u1", Clip("none"))
    assert plain == with_dead == unread
    assert len({plain, with_dead, unread}) == 1
    assert unread.order == ("u1",)


def test_what_changes_the_function_changes_the_genotype() -> None:
    different = [
        chain("tanh"),
        chain("sin"),
        chain("tanh", "sin"),
        chain("tanh", clip=Clip("hard")),
        chain("tanh", clip=Clip("hard", 5.0)),
        chain("beta_mul"),
        chain("beta_mul", beta=2.0),
        chain("beta"),
    ]
    assert len(set(different)) == len(different)
    assert all(a != b for a, b in itertools.combinations(different, 2))
    assert chain("tanh") != "tanh(x)"


@SPACES
def test_equal_genotypes_compute_the_same_function(name: str) -> None:
    """Arguments of commutative operations swapped, and identities put in between."""
    space = SearchSpace.load(name)
    for seed in range(60):
        genotype = unclipped(space, seed)
        slots = dict(genotype.slots)
        for slot, c in genotype.slots.items():
            if registry[c.op].commutative:
                slots[slot] = Choice(c.op, c.inputs[::-1], c.parameters)
        slots["i"] = Choice("identity", (genotype.output,))
        other = Genotype(slots, "i", genotype.clip)
        assert other == genotype
        assert torch.equal(Activation(other)(X), Activation(genotype)(X))


def test_complexity_and_smoothness_are_those_of_what_the_output_needs() -> None:
    slots = {"a": Choice("tanh", ("x",)), "b": Choice("identity", ("a",)), "c": Choice("relu", ("x",))}
    genotype = Genotype(slots, "b")
    assert genotype.complexity == 1
    assert genotype.smoothness == math.inf  # a clip is not needed after tanh
    assert chain("relu", "tanh").smoothness == 0
    assert chain("elu").smoothness == 1
    assert chain("square", clip=Clip("hard")).smoothness == 0
    assert chain("square", clip=Clip("smooth")).smoothness == math.inf


# -- formulas ----------------------------------------------------------------------------------------------------------


@SPACES
def test_a_formula_parses_back_to_the_same_function(name: str) -> None:
    space, compared = SearchSpace.load(name), 0
    for seed in range(300):
        genotype = unclipped(space, seed)
        where = tame(genotype, X)
        y = Activation(genotype).double()(X)[where]
        again = to_torch(genotype.formula)(X)[where]
        torch.testing.assert_close(again, y, rtol=1e-6, atol=1e-6)  # β is stored in float32
        compared += int(where.sum())
    assert compared > 0.7 * 300 * len(X)


@SPACES
def test_the_sympy_expression_agrees_numerically(name: str) -> None:
    space, compared = SearchSpace.load(name), 0
    symbol = sympy.Symbol("x", real=True)
    points = torch.tensor([-1.71, 0.3, 1.9], dtype=torch.float64)
    for seed in range(60):
        genotype = unclipped(space, seed)
        where = tame(genotype, points)
        y = Activation(genotype).double()(points)[where].tolist()
        expression = genotype.expression()
        assert expression.free_symbols <= {symbol}
        expected = [float(expression.evalf(20, subs={symbol: sympy.Float(v, 20)})) for v in points[where].tolist()]
        assert y == pytest.approx(expected, rel=2e-6, abs=2e-6)
        compared += len(y)
    assert compared > 0.7 * 60 * len(points)


@pytest.mark.parametrize(
    ("genotype", "formula"),
    [
        (chain("relu"), "relu(x)"),
        (chain("neg", "neg"), "-(-x)"),
        (chain("square", "neg"), "-x**2"),
        (chain("neg", "square"), "(-x)**2"),
        (chain("square", "cube"), "(x**2)**3"),
        (chain("beta_mul", "square", beta=-1.5), "(-1.5 * x)**2"),
        (chain("beta_add", beta=0.5), "x + 0.5"),
        (chain("beta", beta=0.25), "0.25"),
        (chain("identity", "tanh", "identity"), "tanh(x)"),
        (chain("beta_add", "exp", beta=2.0), "exp(x + 2)"),
    ],
    ids=str,
)
def test_formulas_are_printed_as_a_person_would(genotype: Genotype, formula: str) -> None:
    assert genotype.formula == formula
    assert repr(genotype) == f"Genotype({formula})"
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(to_torch(formula)(x), Activation(genotype)(x))


def test_latex_is_that_of_the_expression() -> None:
    assert chain("square").to_latex() == "x^{2}"
    assert Activation(chain("tanh")).to_latex() == r"\tanh{\left(x \right)}"


# -- Activation --------------------------------------------------------------------------------------------------------


@SPACES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_an_activation_keeps_dtype_and_shape_and_is_finite(name: str, dtype: torch.dtype) -> None:
    space = SearchSpace.load(name)
    for seed in range(30):
        activation = Activation(space.random(seed))
        for shape in [(), (0,), (5,), (2, 3, 4)]:
            y = activation(torch.randn(shape).to(dtype) * 4)
            assert (y.dtype, y.shape) == (dtype, torch.Size(shape))
            assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_rounded_once(dtype: torch.dtype) -> None:
    space = SearchSpace.load("grafs")
    x = (torch.randn(500) * 3).to(dtype)
    for seed in range(50):
        activation = Activation(space.random(seed))
        assert torch.equal(activation(x), activation(x.float()).to(dtype))


def test_the_clip_is_part_of_the_function() -> None:
    x = torch.tensor([-20.0, -2.0, 2.0, 20.0])
    assert Activation(chain("identity", clip=Clip("hard", 5.0)))(x).tolist() == [-5.0, -2.0, 2.0, 5.0]
    assert Activation(chain("square", clip=Clip("hard", 5.0)))(x).tolist() == [5.0, 4.0, 4.0, 5.0]
    assert Activation(chain("square", clip=Clip("none")))(x).tolist() == [400.0, 4.0, 4.0, 400.0]


def test_a_deep_copy_computes_the_same_and_shares_nothing() -> None:
    activation = Activation(chain("beta_mul", beta=1.5), trainable=True)
    other = copy.deepcopy(activation)
    with torch.no_grad():
        other.u0_beta.fill_(3.0)
    x = torch.ones(2)
    assert activation(x).tolist() == [1.5, 1.5]
    assert other(x).tolist() == [3.0, 3.0]
    assert (activation.formula, other.formula) == ("1.5 * x", "3 * x")


@pytest.mark.parametrize("trainable", [False, True])
def test_parameters_are_constants_unless_trainable_and_travel_in_the_state(trainable: bool) -> None:
    activation = Activation(chain("beta_mul", "tanh", beta=1.5), trainable)
    assert [n for n, _ in activation.named_parameters()] == (["u0_beta"] if trainable else [])
    assert set(activation.state_dict()) == {"u0_beta"}
    file = io.BytesIO()
    torch.save(activation.state_dict(), file)
    file.seek(0)
    other = Activation(chain("beta_mul", "tanh", beta=0.1), trainable)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(10)
    assert torch.equal(other(x), activation(x))


def test_trainable_parameters_get_the_gradient_of_the_function() -> None:
    activation = Activation(chain("beta_mul", "tanh", beta=0.5), trainable=True).double()
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    activation(x).sum().backward()
    expected = (x * (1 - torch.tanh(0.5 * x) ** 2)).sum()
    assert activation.u0_beta.grad.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_float64_activation_passes_gradcheck_twice() -> None:
    space = SearchSpace.load("smooth_c2")
    x = torch.linspace(-1.9, 2.1, 7, dtype=torch.float64, requires_grad=True)
    for seed in range(12):
        activation = Activation(space.random(seed)).double()

        def function(x: torch.Tensor, activation: Activation = activation) -> torch.Tensor:
            return activation(x) + 0.1 * x.square()  # a constant has a gradient to check, too

        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize(
    ("op", "second_moment"), [("identity", 1.0), ("relu", 0.5), ("square", 3.0), ("abs", 1.0), ("beta", 1.0)]
)
def test_the_gain_is_the_closed_form(op: str, second_moment: float) -> None:
    assert Activation(chain(op)).gain == pytest.approx(second_moment**-0.5, rel=1e-6)


def test_the_gain_preserves_the_second_moment_of_a_standard_normal() -> None:
    z = torch.randn(400_000, dtype=torch.float64)
    for seed in range(5):
        activation = Activation(SearchSpace.load("grafs").random(seed))
        assert (activation.gain * activation(z)).square().mean().item() == pytest.approx(1, rel=0.03)


def test_the_gain_of_the_zero_function_is_infinite() -> None:
    slots = {"a": Choice("tanh", ("x",)), "b": Choice("sub", ("a", "a"))}
    assert Activation(Genotype(slots, "b")).gain == math.inf


def test_a_printed_activation_shows_formula_and_clip() -> None:
    assert repr(Activation(chain("tanh"))) == "Activation(tanh(x))"
    assert repr(Activation(chain("square", clip=Clip("hard", 10.0)))) == "Activation(x**2, hard clip at 10)"
