"""Contestants: what a name means, who shares what, and gains."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actsearch.activation import Activation, second_moment_gain
from actsearch.compare import TORCH_NAMES, Contestant, contestant, of_genotype, standard_contestants
from actsearch.compare.contestants import from_origin
from actsearch.compare.cost import saved_bytes
from actsearch.errors import ActsearchError, GenotypeError, SettingsError, SwapError, UnknownNameError
from actsearch.genotype import Choice, Genotype
from actsearch.ops import registry
from actsearch.ops.adaptive_slope import AdaptiveSlope
from actsearch.ops.clip import Clip
from actsearch.ops.slope_recovery import has_slopes
from actsearch.space import SearchSpace
from actsearch.swap import Site, swap
from actsearch.tasks import parameter_groups

SITE = Site("act", "ReLU()")
X = torch.linspace(-3, 3, 96).reshape(2, 3, 4, 4)


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU())


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_classes_of_torch_are_element_wise(name: str) -> None:
    found = contestant(name)
    assert found.kind == "standard"
    module = found.make(SITE).eval()
    assert isinstance(module, getattr(nn, name))
    shuffled = torch.randperm(X.numel(), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(module(X).flatten()[shuffled], module(X.flatten()[shuffled]))
    assert found.make(SITE) is not found.make(SITE)


def test_names_of_torch_leave_out_what_is_no_activation() -> None:
    assert {"ReLU", "Hardswish", "PReLU", "LeakyReLU", "ELU", "Mish"} <= set(TORCH_NAMES)
    assert not {"Softmax", "GLU", "MultiheadAttention", "Linear"} & set(TORCH_NAMES)


@pytest.mark.parametrize("op", [spec.id for spec in registry.of_arity(1)])
def test_operations_are_meant_by_their_ids_and_unclipped(op: str) -> None:
    found = contestant(op)
    assert (found.name, found.kind) == (op, "standard")
    assert found.genotype is not None
    assert found.genotype.clip.kind == "none"


@pytest.mark.parametrize(
    ("name", "near"), [("rellu", "'relu'"), ("LeakyRelu", "'LeakyReLU'"), ("add", "known"), ("Softmax", "activation")]
)
def test_unknown_names_list_what_is_near(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        contestant(name)


def test_files_and_runs_are_discovered_ones(tmp_path: Path) -> None:
    genotype = SearchSpace.load("grafs").random(1)
    run = tmp_path / "2026-01-01"
    genotype.save(run / "genotype.json")
    genotype.save(tmp_path / "mine.json")
    for source, name in ((run, "2026-01-01"), (run / "genotype.json", "2026-01-01"), (tmp_path / "mine.json", "mine")):
        found = contestant(source)
        assert (found.name, found.kind, found.genotype) == (name, "discovered", genotype)
    assert contestant(str(run), "mine", "control").kind == "control"
    assert standard_contestants([run])[0].kind == "control"


def test_a_run_that_found_several_functions_asks_which(tmp_path: Path) -> None:
    for cell in "ab":
        SearchSpace.load("grafs").random(1).save(tmp_path / f"genotype.{cell}.json")
    with pytest.raises(GenotypeError, match=r"genotype\.a\.json, genotype\.b\.json"):
        contestant(tmp_path)
    assert contestant(tmp_path / "genotype.a.json").name == "genotype.a"


@pytest.mark.skipif(importlib.util.find_spec("actsearch.zoo") is None, reason="there is no zoo")
def test_the_zoo_is_a_source() -> None:
    from actsearch import zoo

    name = next(iter(zoo.names()))
    found = contestant(f"zoo:{name}")
    assert (found.name, found.kind, found.genotype) == (name, "control", zoo.load(name))


def test_random_controls_are_those_of_the_seed() -> None:
    space = SearchSpace.load("grafs")
    first, again, other = (standard_contestants(["relu"], space, 3, seed) for seed in (0, 0, 1))
    assert [c.name for c in first] == ["relu", "random 1", "random 2", "random 3"]
    assert [c.kind for c in first] == ["standard", "random", "random", "random"]
    assert [c.identity for c in first] == [c.identity for c in again]
    assert not {c.identity for c in first[1:]} & {c.identity for c in other}
    with pytest.raises(SettingsError, match="space"):
        standard_contestants([], None, 1)


def test_random_controls_without_a_gain_are_passed_over() -> None:
    space = SearchSpace.load("full")
    plain = standard_contestants([], space, 40, seed=2)
    controls = standard_contestants([], space, 40, seed=2, gain="activation")
    assert len(controls) == len(plain) == 40
    for control in controls:
        assert control.genotype is not None
        assert Activation(control.genotype).gain == pytest.approx(1, abs=1e-4)


# -- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parameters", "trainable"), [("frozen", 0), ("network", 1), ("site", 2), ("channel", 6)])
def test_parameters_are_owned_by_whom_one_says(parameters: str, trainable: int) -> None:
    found = contestant("beta_mul", parameters=parameters, channel_axis=1 if parameters == "channel" else None)
    net = model()
    before = sum(p.numel() for p in net.parameters())
    swap(net, copy.deepcopy(found.make))
    y = net(X)
    assert sum(p.numel() for p in net.parameters()) - before == trainable
    assert y.shape == X.shape


def test_a_shared_parameter_is_not_shared_between_copies() -> None:
    make = contestant("beta_mul", parameters="network").make
    first, second = copy.deepcopy(make), copy.deepcopy(make)
    assert first(SITE) is first(Site("other", ""))
    assert first(SITE) is not second(SITE)


def test_contestants_can_be_sent_to_another_process() -> None:
    space = SearchSpace.load("grafs")
    several = standard_contestants(["beta_mul", "Hardswish"], space, 1, parameters="channel", channel_axis=1)
    for found in [*several, contestant("PReLU", gain="activation")]:
        sent = pickle.loads(pickle.dumps(found))
        assert (sent.name, sent.identity) == (found.name, found.identity)
        torch.testing.assert_close(sent.make(SITE)(X), found.make(SITE)(X), rtol=0, atol=0)


def test_options_are_part_of_the_identity() -> None:
    genotype = Genotype.of_op("beta_mul")
    options = [{}, {"parameters": "site"}, {"parameters": "network"}, {"gain": "weights"}, {"gain": "activation"}]
    options += [{"parameters": "channel", "channel_axis": axis} for axis in (1, -1)]
    assert len({of_genotype(genotype, "a", **o).identity for o in options}) == len(options)  # type: ignore[arg-type]
    assert len({contestant("ELU", gain=gain).identity for gain in ("none", "weights", "activation")}) == 3


@pytest.mark.parametrize(
    "options",
    [{"parameters": "layer"}, {"parameters": "channel"}, {"gain": "yes"}],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        contestant("beta_mul", **options)  # type: ignore[arg-type]
    if "gain" in options:
        with pytest.raises(SettingsError):
            contestant("ReLU", **options)  # type: ignore[arg-type]


def test_a_kind_must_be_known() -> None:
    with pytest.raises(SettingsError, match="kind"):
        Contestant("a", lambda site: nn.ReLU(), "a", kind="winner")  # type: ignore[arg-type]


# -- gain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu", "tanh", "cube", "GELU", "Tanh", "PReLU", "Softplus"])
def test_gain_of_the_activation_preserves_the_second_moment(name: str) -> None:
    module = contestant(name, gain="activation").make(SITE).eval().double()
    assert second_moment_gain(module) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("name", "same"), [("relu", "ReLU"), ("silu", "SiLU"), ("tanh", "Tanh"), ("gelu", "GELU")])
def test_gain_of_the_weights_is_relative_to_relu(name: str, same: str) -> None:
    op, module = contestant(name, gain="weights"), contestant(same, gain="weights")
    assert op.weights == pytest.approx(module.weights, rel=1e-6)
    assert op.weights * math.sqrt(2) == pytest.approx(second_moment_gain(op.make(SITE)), rel=1e-6)
    assert (contestant(name).weights, contestant("relu", gain="weights").weights) == (1, pytest.approx(1, abs=1e-4))


@pytest.mark.parametrize("gain", ["weights", "activation"])
def test_a_function_that_is_zero_has_no_gain(gain: str) -> None:
    genotype = Genotype({"b1": Choice("sub", ("x", "x"), {})}, "b1", Clip("none"))
    with pytest.raises(GenotypeError):
        of_genotype(genotype, "zero", gain=gain)  # type: ignore[arg-type]


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"), [("ReLU", 4), ("SiLU", 4), ("Sigmoid", 4), ("Tanh", 4), ("Tanhshrink", 4), ("identity", 0)]
)
def test_bytes_kept_for_backward(name: str, kept: float) -> None:
    assert saved_bytes(contestant(name).make) == kept


def test_a_composition_keeps_more_than_its_parts_and_nothing_is_trained() -> None:
    genotype = SearchSpace.load("grafs").random(5)
    found = of_genotype(genotype, "f", parameters="channel", channel_axis=1)
    state = torch.get_rng_state()
    assert saved_bytes(found.make) >= saved_bytes(contestant("ReLU").make)
    assert torch.equal(torch.get_rng_state(), state)


# -- the model's own, as it is or adapted ---------------------------------------------------------------------------


def own(source: str, net: nn.Module, **options: Any) -> nn.Module:
    found = contestant(source, **options)
    swap(net, copy.deepcopy(found.make), shared=found.shared)
    return net


class Reused(nn.Module):
    """One instance serves two layers, and one function of torch is called."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.c(self.act(self.b(self.act(self.a(x))))))


Y = torch.linspace(-2, 2, 32).reshape(8, 4)
SAME = ["own", "laaf:site", "laaf:site:5", "laaf:network", "laaf:channel", "taafs:rbf:residual"]
SAME += ["taafs:fourier:6:residual"]


@pytest.mark.parametrize("source", SAME)
@pytest.mark.parametrize("activation", [nn.SiLU(), nn.CELU(0.1), nn.PReLU(init=0.1), nn.ReLU(inplace=True)], ids=str)
def test_adapted_activations_start_at_what_stands_there(source: str, activation: nn.Module) -> None:
    net = Reused(copy.deepcopy(activation))
    before = net(Y)
    torch.testing.assert_close(own(source, net, channel_axis=-1)(Y), before)


@pytest.mark.parametrize("basis", ["bspline", "fourier", "chebyshev", "legendre", "hermite", "rbf"])
def test_a_basis_starts_at_the_least_squares_fit(basis: str) -> None:
    """Tanh is met; the bounded sum cannot follow SiLU into the tails, and is near it where most inputs are."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    for activation, most in ((nn.Tanh(), 1e-3), (nn.SiLU(), 0.08)):
        made = contestant(f"taafs:{basis}").make(Site("a", "", value=activation))
        assert float((made(x) - activation(x)).detach().square().mean().sqrt()) < most


@pytest.mark.parametrize(
    ("source", "added"),
    [
        ("own", 0),
        ("taafs:chebyshev", 30),
        ("taafs:bspline:7", 21),
        ("laaf:site", 3),
        ("laaf:network", 1),
        ("laaf:channel", 5 + 6 + 2),
    ],
)
def test_every_layer_has_parameters_of_its_own(source: str, added: int) -> None:
    net = Reused(nn.SiLU())
    before = sum(p.numel() for p in net.parameters())
    own(source, net, channel_axis=-1)(Y)
    assert sum(p.numel() for p in net.parameters()) - before == added


def test_adapted_activations_are_trained_at_their_own_rate_and_do_not_decay() -> None:
    for source in ("taafs:chebyshev", "laaf:site"):
        net = own(source, Reused(nn.SiLU()), lr_factor=0.25)
        groups = parameter_groups(net, weight_decay=0.1, lr=2.0)
        (group,) = [group for group in groups if group.get("lr")]
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)
        assert len(group["params"]) == 3
        net(Y).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in group["params"])


def test_slope_recovery_counts_adapted_slopes() -> None:
    assert has_slopes(own("laaf:site", Reused(nn.SiLU())))
    assert not has_slopes(own("taafs:rbf", Reused(nn.SiLU())))


def test_slopes_are_put_before_an_activation_once() -> None:
    twice = own("laaf:site", own("laaf:site", model()))
    assert sum(isinstance(module, AdaptiveSlope) for module in twice.modules()) == 2
    assert isinstance(twice[1].activation, nn.ReLU)  # type: ignore[index, union-attr]


def test_kinds_names_and_identities_of_the_models_own() -> None:
    kinds = {source: contestant(source).kind for source in ("own", "taafs:rbf", "laaf:site")}
    assert kinds == {"own": "standard", "taafs:rbf": "adapted", "laaf:site": "adapted"}
    assert [c.kind for c in standard_contestants(["own", "laaf:site"])] == ["standard", "adapted"]
    sources = ["own", "taafs:rbf", "taafs:rbf:12", "taafs:rbf:residual", "laaf:site", "laaf:site:5", "laaf:network"]
    several = [contestant(source) for source in sources] + [contestant("laaf:channel", channel_axis=a) for a in (1, -1)]
    several.append(contestant("laaf:site", lr_factor=0.1))
    assert [c.name for c in several[:7]] == sources
    assert len({c.identity for c in several}) == len(several)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("taafs:chebishev", "'chebyshev'"),
        ("taafs", "unknown basis"),
        ("taafs:rbf:2", "at least 4"),
        ("taafs:rbf:many", "'many' is not understood"),
        ("taafs:rbf:8:9", "'9' is not understood"),
        ("laaf:layer", "channel, network, site"),
        ("laaf:site:0", "n must be"),
        ("laaf:site:residual", "'residual' is not understood"),
        ("laaf:channel", "channel_axis"),
        ("tafs:chebyshev", "'taafs:chebyshev'"),
        ("owm", "'own'"),
    ],
)
def test_adaptations_that_cannot_be_are_refused(source: str, said: str) -> None:
    with pytest.raises(ActsearchError, match=said) as error:
        contestant(source)
    assert "\n" not in str(error.value)


def test_what_is_kept_for_backward_is_not_known_without_a_model() -> None:
    for source in ("own", "taafs:rbf", "laaf:site"):
        with pytest.raises(SwapError, match="not known what stands"):
            saved_bytes(contestant(source).make)


def test_contestants_of_the_models_own_can_be_sent_to_another_process() -> None:
    site = Site("a", "", value=nn.SiLU())
    for source in SAME:
        found = contestant(source, channel_axis=-1)
        sent = pickle.loads(pickle.dumps(found))
        assert sent.identity == found.identity
        torch.testing.assert_close(sent.make(site)(Y), found.make(site)(Y), rtol=0, atol=0)


def test_a_slope_of_the_network_is_not_shared_between_copies() -> None:
    make = contestant("laaf:network").make
    first, second = copy.deepcopy(make), copy.deepcopy(make)
    site = Site("a", "", value=nn.SiLU())
    assert first(site).a is first(site).a
    assert first(site).a is not second(site).a


@pytest.mark.parametrize(
    "found",
    [
        contestant("beta_mul", parameters="channel", channel_axis=1),
        contestant("gelu", gain="activation"),
        contestant("PReLU", gain="activation"),
        contestant("zoo:mish"),
        contestant("own"),
        contestant("taafs:rbf:12:residual", lr_factor=0.5),
        contestant("laaf:channel", channel_axis=1),
    ],
    ids=lambda found: found.name,
)
def test_a_contestant_is_made_again_from_its_origin(found: Contestant) -> None:
    again = from_origin(found.name, json.loads(json.dumps(found.origin)))
    site = Site("a", "", value=nn.SiLU())
    torch.testing.assert_close(again.make(site)(X), found.make(site)(X), rtol=0, atol=0)
    assert again.origin == found.origin
