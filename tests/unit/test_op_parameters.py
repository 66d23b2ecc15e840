"""Parameters of operations by scope: one value for the network, a site, or a channel."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actsearch
from actsearch.activation import Activation, for_sites
from actsearch.cell.mixed import MixedCell
from actsearch.errors import GenotypeError, SettingsError
from actsearch.genotype import Genotype
from actsearch.ops.spec import registry
from actsearch.space import SearchSpace
from actsearch.swap import Site, swap

SLOPES = SearchSpace.from_dict(
    {
        "name": "slopes",
        "cell": {
            "u1": {"inputs": "x", "candidates": ["laaf_network", "laaf_site", "laaf_channel", "beta_mul"]},
            "u2": {"inputs": "u1", "candidates": ["tanh", "silu"]},
        },
    }
)
BASES = SearchSpace.from_dict(
    {
        "name": "bases",
        "cell": {
            "u1": {"inputs": "x", "candidates": ["group:taafs", "laaf_site", "silu"]},
            "u2": {"inputs": "x", "candidates": ["bspline", "identity"]},
            "b1": {"inputs": ["u1", "u2"], "candidates": ["add", "mul", "max"]},
        },
    }
)
OWN = {"laaf_network": "network", "laaf_site": "site", "laaf_channel": "channel"}


def cell_of(space: SearchSpace, sites: int = 3, evaluator: Any = "dense", **options: Any) -> MixedCell:
    cell = MixedCell(space, evaluator=evaluator, channel_axis=1, seed=5, **options)
    for k in range(sites):
        cell.add_site(f"block.{k}")
    return cell


def shaken(cell: MixedCell, x: Tensor) -> MixedCell:
    """The cell after inputs like `x`, with parameters moved a little, each differently."""
    for k in range(len(cell.site_names)):
        cell(x[:, : 4 + k] if x.ndim > 1 else x, k)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in cell.op_parameters.values():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return cell


X = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_a_parameter_has_a_value_for_the_network_each_site_or_each_channel() -> None:
    cell = shaken(cell_of(SLOPES), X)
    shapes = {key: tuple(p.shape) for key, p in cell.op_parameters.items()}
    assert shapes == {
        "u1/laaf_network/a": (),
        "u1/laaf_site/a": (3,),
        "u1/laaf_channel/a/0": (4,),
        "u1/laaf_channel/a/1": (5,),
        "u1/laaf_channel/a/2": (6,),
        "u1/beta_mul/beta": (),
    }
    cell = cell_of(BASES)
    n = len(cell.op_parameters.specs["u1/bspline/coefficients"].mean)  # type: ignore[arg-type]
    assert cell.op_parameters["u1/bspline/coefficients"].shape == (3, n)


def test_slopes_start_at_one_and_bases_at_their_fit_at_every_site() -> None:
    assert torch.equal(cell_of(SLOPES).op_parameters["u1/laaf_site/a"].detach(), torch.ones(3))
    mean = registry["fourier"].parameters[0].mean
    assert torch.equal(cell_of(BASES).op_parameters["u1/fourier/coefficients"].detach(), torch.tensor([mean] * 3))


def test_the_axis_of_the_channels_is_stated_and_not_guessed() -> None:
    with pytest.raises(SettingsError, match="'laaf_channel' has parameters by channel: give channel_axis"):
        MixedCell(SLOPES)
    cell = MixedCell(SLOPES, channel_axis=-1)
    cell(torch.randn(2, 7, 6))
    assert cell.op_parameters["u1/laaf_channel/a/0"].shape == (6,)
    with pytest.raises(SettingsError, match="channel_axis is 3, and a site's input has 2 dimensions"):
        MixedCell(SLOPES, channel_axis=3)(torch.randn(2, 7))


@pytest.mark.parametrize("met", [True, False])
def test_a_state_brings_its_channels_along(met: bool) -> None:
    cell = shaken(cell_of(SLOPES), X)
    file = io.BytesIO()
    torch.save(cell.state_dict(), file)
    file.seek(0)
    other = cell_of(SLOPES)
    if met:
        shaken(other, X)
    other.load_state_dict(torch.load(file, weights_only=True))
    for key, p in cell.op_parameters.items():
        assert torch.equal(p, other.op_parameters[key]), key


@pytest.mark.parametrize("met", [True, False])
def test_a_cell_with_channels_can_be_copied_and_pickled(met: bool) -> None:
    cell = cell_of(SLOPES)
    if met:
        shaken(cell, X)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert torch.equal(other(X[:, :4], 0, False), cell(X[:, :4], 0, False))


# -- the discrete function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["laaf_network", "laaf_site", "laaf_channel"])
def test_a_discrete_cell_is_the_activation_of_its_genotype_at_every_site_to_the_bit(op: str) -> None:
    cell = shaken(cell_of(SLOPES), X)
    ops = {"u1": op, "u2": "silu"}
    genotype = Genotype.from_json(cell.genotype(ops).to_json())
    make = for_sites(genotype, "declared", channel_axis=1)
    with cell.discrete(ops), torch.no_grad():
        for k in range(3):
            x = X[:, : 4 + k]
            assert torch.equal(make(Site(f"block.{k}", ""))(x), cell(x, k))


@pytest.mark.parametrize("op", ["bspline", "fourier", "chebyshev", "legendre", "hermite", "rbf"])
def test_a_discrete_cell_with_a_basis_is_the_activation_at_its_site_to_the_bit(op: str) -> None:
    cell = shaken(cell_of(BASES), X)
    ops = {"u1": op, "u2": "bspline", "b1": "mul"}
    genotype = Genotype.from_json(cell.genotype(ops).to_json())
    with cell.discrete(ops), torch.no_grad():
        found = [cell(X, k) for k in range(3)]
    for k in range(3):
        assert torch.equal(Activation(genotype.at_site(f"block.{k}"))(X), found[k])
        assert torch.equal(Activation(genotype.at_site(f"block.{k}"), trainable=True)(X), found[k])
    assert not torch.equal(found[0], found[1])


def test_a_genotype_keeps_the_mean_and_the_value_of_every_site() -> None:
    cell = shaken(cell_of(SLOPES), X)
    genotype = cell.genotype({"u1": "laaf_site", "u2": "tanh"})
    values = cell.op_parameters["u1/laaf_site/a"].detach().double()
    assert genotype.slots["u1"].parameters["a"] == pytest.approx(float(values.mean()), rel=1e-12)
    assert genotype.sites == ("block.0", "block.1", "block.2")
    assert [genotype.at_site(s).slots["u1"].parameters["a"] for s in genotype.sites] == values.tolist()
    assert genotype.at_site("elsewhere") is genotype
    assert Genotype.from_json(genotype.to_json()).to_dict() == genotype.to_dict()
    assert genotype.to_dict()["version"] == 3


def test_by_channel_a_genotype_keeps_all_values_and_its_function_has_their_mean() -> None:
    cell = shaken(cell_of(SLOPES), X)
    genotype = cell.genotype({"u1": "laaf_channel", "u2": "tanh"})
    every = torch.cat([cell.op_parameters[f"u1/laaf_channel/a/{k}"].detach().double() for k in range(3)])
    assert genotype.slots["u1"].parameters["a"] == pytest.approx(float(every.mean()), rel=1e-12)
    assert [len(v["a"]) for v in genotype.slots["u1"].at_sites.values()] == [4, 5, 6]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"coefficients": [1.0, 2.0]}}, "must be a list of 10 numbers"),
        ({"parameters": {"coefficients": 1.0}}, "must be a list of 10 numbers"),
        ({"parameters": {"coefficients": [float("nan")] * 10}}, "must be a list of 10 numbers"),
        ({"at_sites": {"here": {"coefficients": [1.0]}}}, "must be a list of 10 numbers"),
        ({"at_sites": {"here": {"b": 1.0}}}, "needs values for .'coefficients'. at site 'here'"),
        ({"at_sites": {"here": 1.0}}, "needs values for .'coefficients'. at site 'here'"),
        ({"op": "relu", "parameters": {}, "at_sites": {"here": {"a": 1.0}}}, "needs values for no parameter at site"),
        ({"op": "laaf_channel", "parameters": {"a": 1.0}, "at_sites": {"here": {"a": []}}}, "times the channels"),
        ({"op": "laaf_site", "parameters": {"a": [1.0]}}, "must be a number"),
    ],
)
def test_values_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    data = cell_of(BASES).genotype({"u1": "bspline", "u2": "identity", "b1": "add"}).to_dict()
    data["slots"]["u1"].pop("at_sites")
    data["slots"]["u1"] |= change
    with pytest.raises(GenotypeError, match=message):
        Genotype.from_dict(data)


def test_a_formula_with_coefficients_can_be_parsed_back() -> None:
    from actsearch.ops.formula import to_torch

    genotype = shaken(cell_of(BASES), X).genotype({"u1": "chebyshev", "u2": "bspline", "b1": "add"})
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    assert torch.allclose(to_torch(genotype.formula)(x), Activation(genotype)(x), atol=1e-4)


# -- transfer ----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize(("op", "added"), [("laaf_network", 1), ("laaf_site", 2), ("laaf_channel", 12)])
def test_declared_parameters_are_trained_by_their_own_scope(op: str, added: int) -> None:
    genotype = SLOPES.genotype({"u1": op, "u2": "tanh"})
    model = Net()
    before = sum(p.numel() for p in model.parameters())
    swap(model, for_sites(genotype, "declared", channel_axis=1))
    x = torch.randn(11, 3)
    model(x)
    assert sum(p.numel() for p in model.parameters()) == before + added
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(x).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, old[name]) for name, p in model.named_parameters() if name.endswith("_a"))
    slopes = [s for m in model.modules() if isinstance(m, Activation) for s in m.adaptive_slopes()]
    assert {id(s) for s in slopes} == {id(p) for name, p in model.named_parameters() if name.endswith("_a")}


def test_declared_keeps_what_the_published_space_trains_with_alpha() -> None:
    genotype = SLOPES.genotype({"u1": "beta_mul", "u2": "tanh"})
    assert not for_sites(genotype, "declared")(Site("x", "")).trainable
    mixed = for_sites(SearchSpace.load("full").genotype(_full("laaf_site", "beta_mul")), "declared")(Site("x", ""))
    assert mixed.undecayed == ("u1_a",)
    assert [name for name, _ in mixed.named_buffers()] == ["u2_beta"]


def _full(u1: str, u2: str) -> dict[str, str]:
    return {"u1": u1, "u2": u2, "b1": "add", "u3": "tanh", "u4": "identity", "b2": "mul"}


def test_a_new_network_starts_at_the_mean_and_a_network_with_the_same_sites_where_these_ended() -> None:
    cell = shaken(cell_of(SLOPES), X)
    genotype = cell.genotype({"u1": "laaf_channel", "u2": "tanh"})
    make = for_sites(genotype, "declared", channel_axis=1)
    here, elsewhere, wider = make(Site("block.0", "")), make(Site("new", "")), make(Site("block.0", ""))
    here(X[:, :4]), elsewhere(X[:, :4]), wider(X)
    assert torch.equal(here.u1_a, cell.op_parameters["u1/laaf_channel/a/0"])  # type: ignore[arg-type]
    mean = genotype.slots["u1"].parameters["a"]
    assert torch.allclose(elsewhere.u1_a, torch.full((4,), mean))  # type: ignore[arg-type]
    assert torch.allclose(wider.u1_a, torch.full((8,), mean))  # type: ignore[arg-type]


def test_declared_channels_need_their_axis() -> None:
    with pytest.raises(SettingsError, match="channel_axis: 1 for images"):
        for_sites(SLOPES.genotype({"u1": "laaf_channel", "u2": "tanh"}), "declared")


# -- evaluators --------------------------------------------------------------------------------------------------------


def gradients(cell: MixedCell, x: Tensor) -> dict[str, Tensor]:
    cell.resample()
    x = x.clone().requires_grad_()
    inputs = {"x": x, **{f"alpha {k}": v for k, v in cell.alpha.items()}, **dict(cell.op_parameters.items())}
    loss = torch.stack([(cell(x, k) * torch.cos(x * (k + 1))).sum() for k in range(len(cell.site_names))]).sum()
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return {name: g for name, g in zip(inputs, found, strict=True) if g is not None}


def test_the_table_has_the_gradients_of_parameters_by_site() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    dense, table = (shaken(cell_of(BASES, evaluator=name), x) for name in ("dense", "table"))
    expected, found = gradients(dense, x), gradients(table, x)
    assert table.evaluator._uses_table
    assert set(found) == set(expected)
    for name, g in expected.items():
        assert float((found[name] - g).norm() / g.norm()) < 3e-3, name


def test_half_precision_has_an_exact_table_of_parameters_by_site() -> None:
    x = torch.randn(5_000, generator=torch.Generator().manual_seed(2))
    dense, table = (shaken(cell_of(BASES, evaluator=name), x) for name in ("dense", "table"))
    for cell in (dense, table):
        cell.resample()
    for k in range(3):
        a, b = (cell(x.bfloat16(), k) for cell in (dense, table))
        assert torch.allclose(a.float(), b.float(), rtol=2**-7, atol=1e-6)


def test_second_derivatives_of_a_table_reach_parameters_by_site() -> None:
    smooth = SearchSpace.from_dict({**BASES.to_dict(), "clip": {"kind": "smooth"}})
    x = torch.randn(500, generator=torch.Generator().manual_seed(2))
    found = []
    for name in ("dense", "table"):
        cell = shaken(cell_of(smooth, evaluator=name), x)
        cell.resample()
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cell(at, 1).sum(), at, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), cell.op_parameters["u1/bspline/coefficients"])[0])
    assert found[0][1].norm() > 0
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 2e-2


def test_parameters_by_channel_are_computed_densely() -> None:
    cell = shaken(cell_of(SLOPES, evaluator="table"), X)
    cell.resample()
    assert not cell.evaluator._uses_table
    g = gradients(cell, X[:, :4]) if len(cell.site_names) == 1 else None
    assert g is None
    one = cell_of(SLOPES, sites=1, evaluator="table")
    assert gradients(one, X)["u1/laaf_channel/a/0"].shape == (8,)


# -- slope recovery ----------------------------------------------------------------------------------------------------


def test_slope_recovery_counts_each_slope_candidate_by_its_probability() -> None:
    cell = shaken(cell_of(SLOPES), X)
    found = cell.slope_recovery()
    p = cell.probabilities()["u1"]
    network = cell.op_parameters["u1/laaf_network/a"]
    site = cell.op_parameters["u1/laaf_site/a"]
    channel = torch.stack([cell.op_parameters[f"u1/laaf_channel/a/{k}"].mean() for k in range(3)])
    expected = sum(weight / a.reshape(-1).exp().mean() for weight, a in zip(p, (network, site, channel), strict=False))
    assert found is not None
    assert torch.allclose(found, expected)  # type: ignore[arg-type]
    for op in range(3):
        cell.drop("u1", op)
    assert cell.slope_recovery() is None


def test_a_search_result_with_slopes_is_exported_and_read_back(tmp_path: Any) -> None:
    cell = shaken(cell_of(BASES), X)
    genotype = cell.genotype({"u1": "laaf_site", "u2": "bspline", "b1": "add"})
    path = genotype.save(tmp_path / "g.json")
    activation = actsearch.load(path)
    x = torch.linspace(-4, 4, 200)
    space: dict[str, Any] = {}
    text = activation.to_source("Found")
    assert "Its parameters are means over the 3 sites of the network that was searched." in text
    exec(text, space)
    assert torch.equal(space["Found"]()(x), activation(x))
    trained: dict[str, Any] = {}
    exec(activation.to_source("Found", trainable=True), trained)
    module = trained["Found"]()
    assert torch.equal(module(x), activation(x))
    assert set(module.state_dict()) == set(Activation(genotype, trainable=True).state_dict())
