"""Contestants: what a name means, who shares what, and gains."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from actsearch.activation import Activation, second_moment_gain
from actsearch.compare import TORCH_NAMES, Contestant, contestant, of_genotype, standard_contestants
from actsearch.compare.cost import saved_bytes
from actsearch.errors import GenotypeError, SettingsError, UnknownNameError
from actsearch.genotype import Choice, Genotype
from actsearch.ops import registry
from actsearch.ops.clip import Clip
from actsearch.space import SearchSpace
from actsearch.swap import Site, swap

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
