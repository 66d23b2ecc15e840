"""The relaxed cell: what was searched is what is retrained, and its gradients are those of the plain sum."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from actsearch.activation import Activation
from actsearch.cell import Dirichlet, Gumbel, MixedCell, Relaxation, Softmax, make_relaxation
from actsearch.cell.dense import DenseEvaluator
from actsearch.errors import SettingsError, SpaceError, UnknownNameError
from actsearch.ops import registry
from actsearch.space import SearchSpace

RELAXATIONS = pytest.mark.parametrize("relaxation", ["dirichlet", "gumbel", "softmax"])
SPACES = pytest.mark.parametrize("space", ["grafs", "full", "smooth_c2"])


def put_masks(cell: MixedCell, survivors: Mapping[str, Sequence[str]]) -> None:
    """Leave only the named candidates, as a checkpoint would."""
    state = cell.state_dict()
    for slot in cell.space.slots:
        state[f"mask.{slot.name}"] = torch.tensor([op in survivors[slot.name] for op in slot.candidates])
    cell.load_state_dict(state)


class Fixed(Relaxation):
    """Weights that are set by hand, one row for each slot in the order of the draws."""

    stochastic = False

    def __init__(self, rows: Sequence[Tensor] = ()) -> None:
        self.rows = list(rows)
        self._next = itertools.cycle(range(max(len(self.rows), 1)))

    def expected(self, alpha: Tensor) -> Tensor:
        return self.rows[next(self._next)]

    def sample(self, alpha: Tensor, n: int) -> Tensor:
        return self.expected(alpha).expand(n, -1)


def one_hots(space: SearchSpace, ops: Mapping[str, str]) -> list[Tensor]:
    return [torch.tensor([float(op == ops[slot.name]) for op in slot.candidates]) for slot in space.slots]


def ops_of(space: SearchSpace, seed: int) -> dict[str, str]:
    return {name: choice.op for name, choice in space.random(seed).slots.items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


INPUT = torch.cat([torch.linspace(-40, 40, 401), torch.tensor([0.0, -0.0, 1e-30, 1e4, -1e30])])


# -- promise 2 ---------------------------------------------------------------------------------------------------------


@SPACES
@RELAXATIONS
def test_a_cell_with_one_survivor_a_slot_is_the_activation_bit_for_bit(space: str, relaxation: str) -> None:
    loaded = SearchSpace.load(space)
    for seed in range(25):
        ops = ops_of(loaded, seed)
        cell = MixedCell(loaded, relaxation, "dense", seed=seed)
        put_masks(cell, {slot: [op] for slot, op in ops.items()})
        assert cell.is_discrete
        assert cell.choice() == ops
        activation = Activation(cell.genotype())
        for x in (INPUT, INPUT.double(), INPUT.bfloat16()):
            assert same_bits(cell(x), activation(x))


@SPACES
def test_a_mixture_with_one_hot_weights_is_the_activation_bit_for_bit(space: str) -> None:
    loaded = SearchSpace.load(space)
    cell = MixedCell(loaded, "softmax", "dense", seed=1)
    for seed in range(60):
        ops = ops_of(loaded, seed)
        cell.relaxation = Fixed(one_hots(loaded, ops))
        assert not cell.is_discrete
        activation = Activation(cell.genotype(ops))
        for x in (INPUT, INPUT.double(), INPUT.bfloat16()):
            assert same_bits(cell(x), activation(x))


@pytest.mark.parametrize("relaxation", ["gumbel", "softmax"])
def test_a_relaxation_that_is_sure_gives_one_hot_weights_and_the_activation_bit_for_bit(relaxation: str) -> None:
    space = SearchSpace.load("grafs")
    for seed in range(20):
        ops = ops_of(space, seed)
        cell = MixedCell(space, relaxation, "dense", seed=seed)
        with torch.no_grad():
            for slot, row in zip(space.slots, one_hots(space, ops), strict=True):
                cell.alpha[slot.name].copy_(1e4 * row)
        assert cell.choice() == ops
        assert same_bits(cell(INPUT), Activation(cell.genotype())(INPUT))


def test_the_gradient_of_a_one_hot_mixture_is_that_of_the_activation() -> None:
    space = SearchSpace.load("grafs")
    cell = MixedCell(space, "softmax", "dense")
    for seed in range(30):
        ops = ops_of(space, seed)
        cell.relaxation = Fixed(one_hots(space, ops))
        x = torch.linspace(-3, 3, 50, requires_grad=True)
        found, expected = (
            torch.autograd.grad((f(x) + 0 * x).sum(), x)[0] for f in (cell, Activation(cell.genotype(ops)))
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_within_discrete_a_cell_computes_the_given_or_the_best_choice() -> None:
    space = SearchSpace.load("tiny")
    cell = MixedCell(space, seed=3)
    ops = {"u1": "tanh", "u2": "beta", "b1": "mul"}
    x = torch.randn(100)
    with cell.discrete(ops):
        assert same_bits(cell(x), Activation(cell.genotype(ops))(x))
        with cell.discrete():
            assert same_bits(cell(x), Activation(cell.genotype(cell.choice()))(x))
        assert same_bits(cell(x), Activation(cell.genotype(ops))(x))
    assert cell.mode == "mixed"
    with pytest.raises(RuntimeError), cell.discrete(ops):
        raise RuntimeError
    assert cell.mode == "mixed"


def test_a_genotype_takes_the_present_parameters() -> None:
    cell = MixedCell("tiny")
    with torch.no_grad():
        cell.op_parameters["u2/beta/beta"].fill_(0.75)
    genotype = cell.genotype({"u1": "relu", "u2": "beta", "b1": "add"}, {"epoch": 3})
    assert genotype.slots["u2"].parameters == {"beta": 0.75}
    assert genotype.provenance == {"epoch": 3}
    assert genotype.space["hash"] == cell.space.hash


# -- the dense evaluator -----------------------------------------------------------------------------------------------


def naive(
    space: SearchSpace, survivors: Mapping[str, Sequence[int]], x: Tensor, weights: Mapping[str, Tensor], named: Any
) -> Tensor:
    """The mixture as it is written in the paper."""
    values = {"x": x}
    for slot in space.slots:
        inputs = [values[i] for i in slot.inputs]
        total = torch.zeros_like(x)
        for w, k in zip(weights[slot.name], survivors[slot.name], strict=True):
            spec = registry[slot.candidates[k]]
            y = spec.function(*inputs, **{p.name: named[f"{slot.name}/{spec.id}/{p.name}"] for p in spec.parameters})
            contraction = spec.contracting and "x" not in slot.inputs  # of inputs within the limit already
            total = total + w * (y if spec.bounded or contraction else space.clip(y))
        values[slot.name] = total
    return values[space.output]


def some_survivors(space: SearchSpace, seed: int) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed)
    found = {}
    for slot in space.slots:
        n = len(slot.candidates)
        keep = n if seed == 0 else int(generator.integers(1, n + 1))
        found[slot.name] = sorted(int(k) for k in generator.choice(n, keep, replace=False))
    return found


def some_weights(survivors: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {
        name: torch.rand(len(left), dtype=torch.float64).softmax(0).requires_grad_() for name, left in survivors.items()
    }


def float64_parameters(space: SearchSpace) -> dict[str, Tensor]:
    cell = MixedCell(space)
    return {k: v.detach().double().requires_grad_() for k, v in cell.op_parameters.at_site(0, 1).items()}


def assert_same_gradient(a: Tensor | None, b: Tensor | None, tolerance: float) -> None:
    """Equal up to rounding; what was not reached counts as zero."""
    if a is None or b is None:
        assert all(g is None or not g.any() for g in (a, b))
    else:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@SPACES
@pytest.mark.parametrize("seed", range(4))
def test_the_dense_evaluator_is_the_plain_sum_with_its_gradients(space: str, seed: int) -> None:
    loaded = SearchSpace.load(space)
    survivors = some_survivors(loaded, seed)
    weights, named = some_weights(survivors), float64_parameters(loaded)
    x = (2 * torch.randn(3, 7, dtype=torch.float64)).requires_grad_()
    found = DenseEvaluator(loaded, survivors)(x, weights, named)
    expected = naive(loaded, survivors, x, weights, named)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    inputs = [x, *weights.values(), *named.values()]
    cotangent = torch.randn_like(x)
    for create_graph in (False, True):
        gradients = [
            torch.autograd.grad(y, inputs, cotangent, allow_unused=True, retain_graph=True, create_graph=create_graph)
            for y in (found, expected)
        ]
        for a, b in zip(*gradients, strict=True):
            assert_same_gradient(a, b, 1e-10)
    # `gradients` now holds those with a graph: differentiate their squares once more.
    second = [
        torch.autograd.grad(sum(g.square().sum() for g in gs if g is not None), inputs, allow_unused=True)
        for gs in gradients
    ]
    for a, b in zip(*second, strict=True):
        assert_same_gradient(a, b, 1e-9)


def test_second_derivatives_through_sites_that_share_parameters_count_each_once() -> None:
    loaded = SearchSpace.load("smooth_c2")
    survivors = some_survivors(loaded, 1)
    survivors["u1"] = sorted({*survivors["u1"], loaded.slot("u1").candidates.index("beta_mul")})
    weights, named = some_weights(survivors), float64_parameters(loaded)
    x = torch.randn(5, dtype=torch.float64).requires_grad_()
    dense = DenseEvaluator(loaded, survivors)
    found = []
    for y in (
        dense(dense(x, weights, named), weights, named),
        naive(loaded, survivors, naive(loaded, survivors, x, weights, named), weights, named),
    ):
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        inputs = [x, *weights.values(), *named.values()]
        # The graph of these gradients reaches through both sites.
        first = torch.autograd.grad(slope.square().sum(), inputs, allow_unused=True, create_graph=True)
        total = sum(g.square().sum() for g in first if g is not None)
        found.append([*first, *torch.autograd.grad(total, inputs, allow_unused=True)])
    for a, b in zip(*found, strict=True):
        assert_same_gradient(a, b, 1e-9)


@pytest.mark.parametrize("ops", [("tanh", "beta"), ("beta", "beta")])
def test_a_second_derivative_goes_past_a_slot_that_is_constant(ops: tuple[str, str]) -> None:
    loaded = SearchSpace.load("smooth_c2")
    chosen = {"u1": ops[0], "u2": ops[1], "b1": "add", "u3": "identity", "u4": "identity", "b2": "mul"}
    survivors = {slot: [loaded.slot(slot).candidates.index(op)] for slot, op in chosen.items()}
    weights = {slot: torch.ones(1, dtype=torch.float64) for slot in survivors}
    named = {name: p.detach() for name, p in float64_parameters(loaded).items()}
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    first, second = [], []
    for y in (DenseEvaluator(loaded, survivors)(x, weights, named), naive(loaded, survivors, x, weights, named)):
        first += torch.autograd.grad(y.sum(), x, create_graph=True)
        second += (
            torch.autograd.grad(first[-1].sin().sum(), x, allow_unused=True) if first[-1].requires_grad else [None]
        )
    torch.testing.assert_close(*first)
    assert_same_gradient(*second, 1e-12)


def test_the_dense_evaluator_passes_gradcheck_twice() -> None:
    cell = {
        "u1": {"inputs": "x", "candidates": ["tanh", "beta_mul", "square", "sin"]},
        "u2": {"inputs": "x", "candidates": ["beta_mul", "gauss", "sigmoid"]},
        "b1": {"inputs": ["u1", "u2"], "candidates": ["mul", "beta_mix", "sigmoid_mul"]},
    }
    space = SearchSpace.from_dict({"cell": cell, "clip": {"kind": "smooth", "limit": 3.0}})
    survivors = {slot.name: list(range(len(slot.candidates))) for slot in space.slots}
    evaluator = DenseEvaluator(space, survivors)
    weights, named = some_weights(survivors), float64_parameters(space)
    x = torch.linspace(-2, 2, 4, dtype=torch.float64, requires_grad=True)

    def function(*inputs: Tensor) -> Tensor:
        given = dict(zip(weights, inputs[1 : 1 + len(weights)], strict=True))
        return evaluator(inputs[0], given, dict(zip(named, inputs[1 + len(weights) :], strict=True)))

    inputs = (x, *weights.values(), *named.values())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    space = SearchSpace.load("tiny")
    cell = MixedCell(space, evaluator="dense")
    x = torch.randn(10, requires_grad=True)
    for parameter in cell.parameters():
        parameter.requires_grad_(False)
    y = cell(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()
    for parameter in cell.parameters():
        parameter.requires_grad_(True)
    loss = cell(x.detach()).square().sum()
    gradients = torch.autograd.grad(loss, list(cell.alpha.values()))
    assert all(g.abs().sum() > 0 for g in gradients)


def saved_elements(cell: MixedCell, x: Tensor) -> int:
    """Elements saved for the backward pass in tensors as large as the input, each storage once."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.numel() >= x.numel():
            storages[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cell(x)
    return sum(storages.values())


def test_what_is_saved_for_backward_does_not_grow_with_the_candidates() -> None:
    saved = {}
    for name, names in {"two": (["tanh", "relu"], ["add", "mul"]), "all": (["group:grafs"], ["group:grafs"])}.items():
        data = SearchSpace.load("grafs").to_dict()
        for slot in data["cell"].values():
            slot["candidates"] = names[len(slot["inputs"]) - 1]
        cell = MixedCell(data, evaluator="dense")
        saved[name] = saved_elements(cell, torch.randn(50_000, requires_grad=True))
    assert saved["all"] == saved["two"]
    # At most what each slot reads, and x.
    assert saved["all"] <= 6 * 50_000


def test_a_dropped_candidate_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x.exp()

    monkeypatch.setitem(registry._specs, "exp", dataclasses.replace(registry["exp"], function=counted))
    cell = MixedCell("grafs", evaluator="dense")
    x = torch.randn(10, requires_grad=True)
    cell(x).sum().backward()
    assert len(calls) == 4  # once forwards for u1, u2 and u4 together, once for u3; and the same backwards
    calls.clear()
    for slot in cell.space.slots:
        if "exp" in slot.candidates:
            cell.drop(slot.name, slot.candidates.index("exp"))
    cell(x).sum().backward()
    assert not calls


# -- relaxations -------------------------------------------------------------------------------------------------------


def test_dirichlet_draws_have_the_mean_and_variance_of_their_concentration() -> None:
    relaxation = Dirichlet()
    alpha = torch.tensor([0.0, 1.0, -0.7, 3.0, -9.0])
    rho = np.array([1.0, 2.0, np.exp(-0.7), 4.0, 0.05])
    np.testing.assert_allclose(relaxation.concentration(alpha).numpy(), rho, rtol=1e-6)
    draws = relaxation.sample(alpha, 200_000)
    assert draws.shape == (200_000, 5)
    assert (draws >= 0).all()
    torch.testing.assert_close(draws.sum(1), torch.ones(200_000))
    reference = scipy.stats.dirichlet(rho)
    np.testing.assert_allclose(draws.mean(0).numpy(), reference.mean(), atol=3e-3)
    np.testing.assert_allclose(draws.var(0).numpy(), reference.var(), rtol=0.04)
    np.testing.assert_allclose(relaxation.expected(alpha).numpy(), reference.mean(), rtol=1e-6)


def test_the_pathwise_gradient_of_dirichlet_draws_is_that_of_their_moments() -> None:
    relaxation = Dirichlet()
    alpha = torch.tensor([0.0, 1.0, -0.7, 2.0], requires_grad=True)
    value = torch.tensor([1.0, -2.0, 3.0, 0.5])
    draws = relaxation.sample(alpha, 300_000)
    first = torch.autograd.grad((draws @ value).mean(), alpha, retain_graph=True)[0]
    expected = torch.autograd.grad(relaxation.expected(alpha) @ value, alpha)[0]
    torch.testing.assert_close(first, expected, rtol=0.02, atol=0.01)

    def second_moment(alpha: Tensor) -> Tensor:  # E[p_i p_j] = ρ_i (ρ_j + δ_ij) / (s (s + 1))
        rho = relaxation.concentration(alpha)
        total = rho.sum()
        return (torch.outer(rho, rho) + torch.diag(rho)) / (total * (total + 1))

    second = torch.autograd.grad((draws @ value).square().mean(), alpha)[0]
    expected = torch.autograd.grad(value @ second_moment(alpha) @ value, alpha)[0]
    torch.testing.assert_close(second, expected, rtol=0.03, atol=0.02)


def test_dirichlet_gradients_stay_finite_at_the_floor() -> None:
    alpha = torch.full((23,), -50.0)
    alpha[:3] = torch.tensor([-2.99, -2.0, 0.0])
    alpha.requires_grad_()
    draws = Dirichlet().sample(alpha, 20_000)
    (gradient,) = torch.autograd.grad((draws * torch.randn(23)).square().sum(), alpha)
    assert draws.isfinite().all()
    assert gradient.isfinite().all()
    assert not gradient[3:].any()


@pytest.mark.parametrize("rho", [(0.3, 2.0), (1.0, 1.0), (4.0, 0.7)])
def test_the_anchor_of_two_candidates_is_the_divergence_by_quadrature(rho: tuple[float, float]) -> None:
    alpha = torch.tensor([np.log(r) if r < 1 else r - 1 for r in rho], dtype=torch.float64)
    density = scipy.stats.beta(*rho)
    expected, _ = scipy.integrate.quad(lambda p: density.pdf(p) * density.logpdf(p), 0, 1, limit=200)
    assert Dirichlet().anchor(alpha).item() == pytest.approx(expected, abs=1e-6)


def test_the_anchor_is_the_closed_form_with_its_gradient_and_zero_for_one_candidate() -> None:
    alpha = torch.tensor([0.5, -0.5, 0.0, 1.7, -1.0], dtype=torch.float64, requires_grad=True)
    rho = Dirichlet().concentration(alpha).detach().numpy()
    total, special = rho.sum(), scipy.special
    expected = special.gammaln(total) - special.gammaln(rho).sum() - special.gammaln(5)
    expected += ((rho - 1) * (special.digamma(rho) - special.digamma(total))).sum()
    assert Dirichlet().anchor(alpha).item() == pytest.approx(expected, rel=1e-10)
    assert torch.autograd.gradcheck(Dirichlet().anchor, (alpha,))
    assert Dirichlet().anchor(torch.zeros(4)).item() == pytest.approx(0, abs=1e-6)
    assert Dirichlet().anchor(torch.ones(1)).item() == 0
    cell = MixedCell("tiny")
    with torch.no_grad():
        cell.alpha["u1"][:3] = 2.0
        cell.alpha["b1"][1] = -1.0
    parts = [Dirichlet().anchor(cell.alpha[s.name]) for s in cell.space.slots]
    assert cell.anchor().item() == pytest.approx(sum(p.item() for p in parts), rel=1e-5)
    assert MixedCell("tiny", "softmax").anchor().item() == 0


def test_gumbel_draws_are_one_hot_with_the_frequencies_of_the_softmax() -> None:
    alpha = torch.tensor([0.0, 1.0, -1.0, 0.3])
    draws = Gumbel(temperature=3.0).sample(alpha, 40_000)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.sum(1) == 1).all()
    expected = 40_000 * torch.softmax(alpha.double(), 0)
    assert scipy.stats.chisquare(draws.double().sum(0).numpy(), expected.numpy()).pvalue > 1e-3


def test_the_gumbel_gradient_is_that_of_the_softmax_at_the_present_temperature() -> None:
    relaxation = Gumbel(temperature=4.0, final_temperature=1.0)
    temperatures = {0: 4.0, 3: 3.0, 9: 1.0}
    for epoch, temperature in temperatures.items():
        relaxation.at_epoch(epoch, 10)
        alpha = torch.zeros(2, requires_grad=True)
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(relaxation.sample(alpha, 1)[0, 0], alpha)
        torch.manual_seed(1)
        noise = -(-torch.rand(1, 2).log()).log()
        soft = torch.softmax((alpha + noise) / temperature, -1)[0, 0]
        torch.testing.assert_close(gradient, torch.autograd.grad(soft, alpha)[0])


def test_the_softmax_is_a_softmax() -> None:
    alpha = torch.randn(5)
    torch.testing.assert_close(Softmax(2.0).sample(alpha, 3)[1], torch.softmax(alpha / 2, 0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dirichlett", {}, "unknown relaxation 'dirichlett'; did you mean 'dirichlet'"),
        ("dirichlet", {"temperature": 1.0}, "does not take the options"),
        ("dirichlet", {"concentration_floor": 0.0}, "concentration_floor must lie"),
        ("dirichlet", {"concentration_floor": float("nan")}, "concentration_floor must lie"),
        ("gumbel", {"temperature": 0.0}, "temperature must be a positive"),
        ("gumbel", {"final_temperature": float("inf")}, "final_temperature must be a positive"),
        ("softmax", {"temperature": -1.0}, "temperature must be a positive"),
    ],
)
def test_a_bad_relaxation_is_told_in_one_line(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises((SettingsError, UnknownNameError), match=message):
        make_relaxation(name, **options)


# -- draws -------------------------------------------------------------------------------------------------------------


def outputs(cell: MixedCell, n: int) -> list[Tensor]:
    x = torch.linspace(-2, 2, 9)
    return [cell(x).detach() for _ in range(n)]


def test_a_draw_depends_on_the_seed_and_its_number_alone() -> None:
    first, second = MixedCell("grafs", seed=5), MixedCell("grafs", seed=5)
    torch.manual_seed(1)
    a = outputs(first, 4)
    torch.manual_seed(2)
    second.draws.fill_(0)
    b = outputs(second, 2)
    torch.rand(100)
    b += outputs(second, 2)
    assert all(map(torch.equal, a, b))
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], outputs(MixedCell("grafs", seed=6), 1)[0])
    assert int(first.draws) == 4


def test_drawing_leaves_the_global_generator_untouched() -> None:
    cell = MixedCell("grafs")
    cell.add_site("a")
    state = torch.random.get_rng_state()
    cell(torch.zeros(3))
    cell.resample()
    MixedCell("grafs", "gumbel")(torch.zeros(3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_site_has_its_own_weights_and_keeps_them_until_the_next_draw() -> None:
    cell = MixedCell("grafs")
    sites = [cell.add_site(name) for name in ("a", "b")]
    x = torch.linspace(-1, 1, 5)
    cell.resample()
    first = [site(x) for site in sites]
    assert not torch.equal(first[0], first[1])
    assert all(map(torch.equal, first, [site(x) for site in sites]))
    assert int(cell.draws) == 1
    cell.resample()
    assert not torch.equal(first[0], sites[0](x))
    cell.release()
    assert not torch.equal(sites[0](x), sites[0](x))


def test_the_softmax_draws_nothing() -> None:
    cell = MixedCell("grafs", "softmax")
    a, b = outputs(cell, 2)
    assert torch.equal(a, b)
    assert int(cell.draws) == 0


@RELAXATIONS
def test_evaluation_uses_the_mean_weights(relaxation: str) -> None:
    space = SearchSpace.load("grafs")
    cell = MixedCell(space, relaxation, "dense")
    with torch.no_grad():
        for alpha in cell.alpha.values():
            alpha.normal_()
    cell.eval()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    survivors = {slot.name: list(range(len(slot.candidates))) for slot in space.slots}
    weights = {name: p.double() for name, p in cell.probabilities().items()}
    expected = naive(space, survivors, x, weights, {k: v.detach().double() for k, v in cell.op_parameters.items()})
    torch.testing.assert_close(cell(x).detach(), expected, rtol=1e-6, atol=1e-7)
    assert int(cell.draws) == 0
    for p in cell.probabilities().values():
        assert p.sum().item() == pytest.approx(1, abs=1e-5)


def test_the_mean_over_sites_is_the_mean_weight() -> None:
    space = SearchSpace.from_dict({"cell": {"u1": {"inputs": "x", "candidates": ["identity", "neg", "tanh"]}}})
    cell = MixedCell(space)
    for k in range(5000):
        cell.add_site(str(k))
    cell.resample()
    x = torch.tensor([1.0])
    mean = torch.stack([cell(x, k) for k in range(5000)]).mean().item()
    assert mean == pytest.approx((1 - 1 + np.tanh(1)) / 3, abs=0.03)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_masks_survivors_and_draws_come_back_from_a_state_dict(nested: bool) -> None:
    def build() -> tuple[MixedCell, nn.Module]:
        cell = MixedCell("tiny", seed=4)
        return cell, nn.ModuleDict({"inner": nn.Sequential(cell)}) if nested else cell

    cell, module = build()
    for _ in range(5):
        cell.drop_weakest()
    outputs(cell, 3)
    with torch.no_grad():
        cell.alpha["u1"].normal_()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other, other_module = build()
    other_module.load_state_dict(torch.load(file, weights_only=True))
    assert other.survivors == cell.survivors
    assert other.n_survivors == cell.space.n_candidates - 5
    assert int(other.draws) == 3
    assert all(map(torch.equal, outputs(other, 3), outputs(cell, 3)))
    assert other.choice() == cell.choice()


def test_the_state_holds_what_the_documentation_says() -> None:
    cell = MixedCell("tiny")
    assert set(cell.state_dict()) == {
        *(f"alpha.{s}" for s in ("u1", "u2", "b1")),
        *(f"mask.{s}" for s in ("u1", "u2", "b1")),
        "op_parameters.u2/beta/beta",
        "draws",
        *(f"evaluator.{name}" for name in ("elements", "dtype", "chosen", "chosen_at", "keeps")),
    }


def test_a_deep_copy_is_independent() -> None:
    cell = MixedCell("tiny", seed=2)
    other = copy.deepcopy(cell)
    other.drop_weakest()
    assert cell.n_survivors == cell.space.n_candidates
    assert other.n_survivors == cell.n_survivors - 1
    assert all(map(torch.equal, outputs(cell, 2), outputs(copy.deepcopy(MixedCell("tiny", seed=2)), 2)))
    cell.load_state_dict(other.state_dict())
    assert cell.survivors == other.survivors
    assert registry["exp"] is copy.deepcopy(registry["exp"]) is pickle.loads(pickle.dumps(registry["exp"]))


def test_a_site_does_not_register_its_cell() -> None:
    cell = MixedCell("tiny")
    model = nn.Sequential(nn.Linear(2, 2), cell.add_site("a"), nn.Linear(2, 2), cell.add_site("b"))
    names = {n for n, _ in model.named_parameters()}
    assert names == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(model.state_dict()) == names
    assert not {id(p) for p in model.parameters()} & {id(p) for p in cell.parameters()}
    assert [m for m in model.modules() if isinstance(m, MixedCell)] == []
    copied = copy.deepcopy(model)
    assert copied[1].cell is copied[3].cell
    assert copied[1].cell is not cell
    assert "site 1 of tiny" in repr(model)


def test_the_start_is_the_published_one_and_depends_on_the_seed() -> None:
    cell = MixedCell("grafs", seed=1)
    alpha = torch.cat([a.detach() for a in cell.alpha.values()])
    assert len(alpha) == 110
    assert alpha.min() >= 0
    assert 5e-7 < alpha.max() <= 1e-6
    betas = torch.stack([MixedCell("tiny", seed=s).op_parameters["u2/beta/beta"].detach() for s in range(400)])
    assert scipy.stats.kstest(betas.numpy(), "norm", (1.0, 0.25)).pvalue > 1e-3
    assert all(v.item() == 0 for k, v in cell.op_parameters.items() if k.endswith("gamma"))
    same = MixedCell("grafs", seed=1).state_dict()
    assert all(torch.equal(v, same[k]) for k, v in cell.state_dict().items())


# -- dropping and choosing ---------------------------------------------------------------------------------------------


def test_the_weakest_of_the_fullest_slot_is_dropped_the_first_slot_on_a_tie() -> None:
    cell = MixedCell("tiny")  # 7, 5 and 5 candidates
    with torch.no_grad():
        cell.alpha["u1"].copy_(torch.tensor([0.0, -3.0, 2.0, -1.0, -2.0, 1.0, 3.0]))
        cell.alpha["u2"].copy_(torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0]))
        cell.alpha["b1"].copy_(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]))
    order = sorted(range(7), key=cell.alpha["u1"].tolist().__getitem__)
    u1 = [cell.space.slot("u1").candidates[k] for k in order]
    expected = [("u1", u1[0]), ("u1", u1[1]), ("u1", u1[2]), ("u2", "beta"), ("b1", "right"), ("u1", u1[3])]
    assert [cell.drop_weakest() for _ in range(6)] == expected
    while cell.drop_weakest():
        pass
    assert cell.is_discrete
    assert cell.survivors == {"u1": (u1[-1],), "u2": ("sigmoid",), "b1": ("add",)}
    assert cell.drop_weakest() is None


def test_a_dropped_candidate_has_no_weight_and_its_alpha_no_gradient() -> None:
    cell = MixedCell("tiny")
    cell.drop("u1", 2)
    assert cell.probabilities()["u1"][2] == 0
    cell(torch.randn(20)).square().sum().backward()
    gradient = cell.alpha["u1"].grad
    assert gradient is not None
    assert gradient[2] == 0
    assert (gradient != 0).sum() == 6


def test_the_last_candidate_of_a_slot_cannot_be_dropped() -> None:
    cell = MixedCell("tiny")
    for k in range(4):
        cell.drop("u2", k)
    with pytest.raises(SpaceError, match="last of slot 'u2'"):
        cell.drop("u2", 4)
    assert cell.survivors["u2"] == ("beta",)


@pytest.mark.parametrize("limit", [None, 1, 2, 3])
@RELAXATIONS
def test_the_choice_is_the_most_probable_within_the_complexity_by_brute_force(
    limit: int | None, relaxation: str
) -> None:
    data = SearchSpace.load("tiny").to_dict() | {"constraints": {} if limit is None else {"max_complexity": limit}}
    space = SearchSpace.from_dict(data)
    for seed in range(15):
        cell = MixedCell(space, relaxation, seed=seed)
        with torch.no_grad():
            for alpha in cell.alpha.values():
                alpha.normal_()
        cell.drop("u1", 0)
        cell.drop("b1", seed % 5)
        p = cell.probabilities()

        def score(ops: Mapping[str, str], p: Mapping[str, Tensor] = p) -> float:
            return sum(float(p[s.name][s.candidates.index(ops[s.name])].log()) for s in space.slots)

        choices = (dict(zip(cell.survivors, c, strict=True)) for c in itertools.product(*cell.survivors.values()))
        best = max((ops for ops in choices if space.admits(ops)), key=score)
        assert cell.choice() == best


def test_the_first_candidate_wins_a_tie() -> None:
    cell = MixedCell("tiny")
    with torch.no_grad():
        for alpha in cell.alpha.values():
            alpha.zero_()
    assert cell.choice() == {"u1": "identity", "u2": "identity", "b1": "add"}


def test_survivors_beyond_the_complexity_leave_no_choice() -> None:
    space = SearchSpace.from_dict(SearchSpace.load("tiny").to_dict() | {"constraints": {"max_complexity": 1}})
    cell = MixedCell(space)
    put_masks(cell, {"u1": ["tanh"], "u2": ["tanh"], "b1": ["add"]})
    with pytest.raises(SpaceError, match="no surviving cell has a complexity of at most 1"):
        cell.choice()


# -- modes and precision -----------------------------------------------------------------------------------------------


def test_a_warm_cell_is_the_standard_activation() -> None:
    cell = MixedCell("tiny", warm="gelu")
    cell.mode = "warm"
    x = torch.randn(50)
    assert torch.equal(cell(x), registry["gelu"].function(x))
    assert int(cell.draws) == 0
    with pytest.raises(SettingsError, match="unary"):
        MixedCell("tiny", warm="add")
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        MixedCell("tiny", warm="rely")
    with pytest.raises(SettingsError, match="unknown evaluator 'dens'; did you mean 'dense'"):
        MixedCell("tiny", evaluator="dens")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_rounded_once(dtype: torch.dtype) -> None:
    cell = MixedCell("grafs", evaluator="dense")
    cell.add_site("a")
    cell.resample()
    x = torch.randn(3, 20).to(dtype)
    y = cell(x)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert torch.equal(y, cell(x.float()).to(dtype))


def test_autocast_changes_neither_values_nor_gradients_of_a_cell() -> None:
    cell = MixedCell("grafs", evaluator="dense")
    cell.add_site("a")
    x = torch.randn(20, requires_grad=True)
    inputs = [x, *cell.alpha.values(), *cell.op_parameters.values()]
    cell.resample()
    plain = cell(x)
    gradients = torch.autograd.grad(plain.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cell.draws.fill_(0)
        cell.load_state_dict(cell.state_dict())
        cell.resample()
        cast = cell(x)
        cast_gradients = torch.autograd.grad(cast.sum(), inputs, retain_graph=True)
    assert torch.equal(cast, plain)
    assert all(map(torch.equal, gradients, cast_gradients))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = nn.Linear(20, 4)(x)
        assert hidden.dtype == torch.bfloat16
        y = cell(hidden)
    assert y.dtype == torch.bfloat16
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), list(cell.alpha.values())))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3, 4)])
def test_any_shape_goes_through_with_its_gradients(shape: tuple[int, ...]) -> None:
    cell = MixedCell("grafs", evaluator="dense")
    x = torch.randn(shape, requires_grad=True)
    y = cell(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    transposed = torch.randn(4, 3).t().requires_grad_()
    cell(transposed).sum().backward()


def test_a_cell_is_finite_at_the_edges_with_finite_gradients() -> None:
    for space in ("grafs", "full", "smooth_c2"):
        cell = MixedCell(space, evaluator="dense")
        x = INPUT.clone().requires_grad_()
        y = cell(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in cell.parameters())
