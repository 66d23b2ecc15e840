"""Scale, and who owns the parameters of a discovered function: nobody, the network, each site, or each channel."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle

import pytest
import sympy
import torch
from torch import nn

from actsearch.activation import Activation, LazyActivation, for_sites
from actsearch.errors import GenotypeError, SettingsError
from actsearch.genotype import Choice, Genotype
from actsearch.ops import Clip
from actsearch.ops.formula import to_torch
from actsearch.space import SearchSpace
from actsearch.swap import swap

SWISH = Genotype(
    {
        "gate": Choice("beta_mul", ("x",), {"beta": 1.5}),
        "out": Choice("sigmoid_mul", ("gate", "x")),
    },
    "out",
    Clip("none"),
)
X = torch.linspace(-3, 3, 61, dtype=torch.float64)


# -- scale -------------------------------------------------------------------------------------------------------------


def test_the_scale_multiplies_the_clipped_function() -> None:
    square = Genotype({"a": Choice("square", ("x",))}, "a", Clip("hard", 10.0), scale=-2.0)
    assert Activation(square)(torch.tensor([1.0, 100.0])).tolist() == [-2.0, -20.0]
    assert Activation(square)(torch.tensor([1.0, 100.0], dtype=torch.bfloat16)).tolist() == [-2.0, -20.0]


@pytest.mark.parametrize("seed", range(20))
def test_a_scaled_genotype_comes_back_from_json_formula_and_sympy(seed: int) -> None:
    drawn = SearchSpace.load("swish").random(seed)
    scaled = dataclasses.replace(drawn, clip=Clip("none"), scale=1.7)
    again = Genotype.from_json(scaled.to_json())
    assert again == scaled
    assert hash(again) == hash(scaled)
    assert scaled != dataclasses.replace(scaled, scale=1.0)
    assert scaled.to_dict()["version"] == 2
    expected = 1.7 * Activation(dataclasses.replace(scaled, scale=1.0)).double()(X)
    torch.testing.assert_close(Activation(scaled).double()(X), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_torch(scaled.formula)(X), expected, rtol=1e-4, atol=1e-4)
    symbol = sympy.Symbol("x", real=True)
    at_one = float(scaled.expression(symbol).subs(symbol, 1.0))
    assert at_one == pytest.approx(float(Activation(scaled).double()(torch.tensor(1.0).double())), rel=1e-4)


@pytest.mark.parametrize("scale", [0, 0.0, math.nan, math.inf, 1e31, True, "2"])
def test_a_scale_must_be_a_number_and_not_zero(scale: object) -> None:
    with pytest.raises(GenotypeError, match="the scale must be a number"):
        dataclasses.replace(SWISH, scale=scale)
    data = {**SWISH.to_dict(), "version": 2, "scale": scale}
    with pytest.raises(GenotypeError, match="scale"):
        Genotype.from_dict(data)


@pytest.mark.parametrize("op", ["relu", "gelu", "silu", "tanh"])
def test_a_rescaled_activation_keeps_the_second_moment_of_a_normal(op: str) -> None:
    rescaled = Activation(Genotype.of_op(op)).rescaled()
    assert rescaled.gain == pytest.approx(1, abs=1e-9)
    z = torch.randn(400_000, dtype=torch.float64)
    assert rescaled(z).square().mean().item() == pytest.approx(1, rel=0.02)
    assert rescaled.rescaled().genotype.scale == pytest.approx(rescaled.genotype.scale)


def test_the_zero_function_cannot_be_rescaled() -> None:
    zero = Genotype({"a": Choice("tanh", ("x",)), "b": Choice("sub", ("a", "a"))}, "b")
    with pytest.raises(GenotypeError, match="cannot be rescaled"):
        Activation(zero).rescaled()


def test_twenty_layers_keep_their_signal_with_a_rescaled_function() -> None:
    torch.manual_seed(0)
    activation = Activation(Genotype.of_op("gelu")).rescaled()
    x = torch.randn(64, 256)
    for _ in range(20):
        weight = torch.randn(256, 256) / 16
        x = activation(x) @ weight
    assert 0.4 < x.square().mean().item() < 2.5
    y = torch.randn(64, 256)
    for _ in range(20):
        y = Activation(Genotype.of_op("gelu"))(y) @ (torch.randn(256, 256) / 16)
    assert y.square().mean().item() < 1e-4  # without it, nothing is left


# -- parameters --------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("scope", "added"), [("frozen", 0), ("network", 1), ("site", 2), ("channel", 4 + 6)])
def test_the_scope_says_how_many_parameters_there_are(scope: str, added: int) -> None:
    model = network()
    before = sum(p.numel() for p in model.parameters())
    swap(model, for_sites(SWISH, scope, 1))  # type: ignore[arg-type]
    y = model(IMAGES)
    assert sum(p.numel() for p in model.parameters()) - before == added
    reference = network()
    reference.load_state_dict(model.state_dict(), strict=False)
    swap(reference, SWISH)
    assert torch.equal(y, reference(IMAGES))  # they all start at the searched value
    if added:
        y.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "beta" in n)


def test_each_channel_has_its_own_slope_along_the_stated_axis() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    slopes = torch.tensor([0.5, 1.0, 2.0])
    images = Activation(SWISH, trainable=True, channels=3, channel_axis=1).double()
    tokens = Activation(SWISH, trainable=True, channels=3, channel_axis=-1).double()
    for activation in (images, tokens):
        activation.load_state_dict({"gate_beta": slopes})
    expected = torch.stack([torch.sigmoid(s * x[:, k]) * x[:, k] for k, s in enumerate(slopes.double())], 1)
    torch.testing.assert_close(images(x), expected)
    torch.testing.assert_close(tokens(x.transpose(1, 2)), expected.transpose(1, 2))
    assert torch.autograd.gradcheck(images, (x.requires_grad_(),))


def test_a_lazy_activation_takes_its_size_from_the_first_input_and_then_is_an_activation() -> None:
    lazy = LazyActivation(SWISH, channel_axis=-1)
    assert "sigmoid(1.5 * x)" in repr(lazy)
    optimizer = torch.optim.Adam(lazy.parameters(), lr=0.1)
    copied = copy.deepcopy(lazy)
    lazy(torch.randn(2, 7)).sum().backward()
    assert type(lazy) is Activation
    assert lazy.gate_beta.shape == (7,)
    optimizer.step()
    assert not torch.equal(lazy.gate_beta, torch.full((7,), 1.5))
    copied(torch.randn(2, 3))
    assert copied.gate_beta.shape == (3,)


def test_channel_parameters_travel_in_the_state_also_into_a_lazy_one() -> None:
    first = LazyActivation(SWISH, channel_axis=1)
    first(torch.randn(2, 4))
    with torch.no_grad():
        first.gate_beta.copy_(torch.arange(4.0))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = LazyActivation(SWISH, channel_axis=1)
    second.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 4)
    assert torch.equal(second(x), first(x))
    assert torch.equal(pickle.loads(pickle.dumps(first))(x), first(x))


def test_functions_that_differ_by_channel_are_no_genotype() -> None:
    activation = Activation(SWISH, trainable=True, channels=2, channel_axis=1)
    assert activation.genotype == SWISH
    with torch.no_grad():
        activation.gate_beta[0] = 3.0
    with pytest.raises(GenotypeError, match="gate_beta differs from channel to channel"):
        _ = activation.genotype
    assert repr(activation) == "Activation(sigmoid(1.5 * x) * x, parameters by channel)"


def test_a_function_without_parameters_may_be_asked_for_channels() -> None:
    lazy = LazyActivation(Genotype.of_op("tanh"), channel_axis=1)
    assert torch.equal(lazy(IMAGES), torch.tanh(IMAGES))
    assert not list(lazy.parameters())


def test_trained_parameters_are_spared_from_decay_and_constants_are_no_parameters() -> None:
    assert Activation(SWISH, trainable=True).undecayed == ("gate_beta",)
    assert Activation(SWISH).undecayed == ()


def test_a_wrong_scope_or_a_missing_axis_is_an_error_in_one_line() -> None:
    with pytest.raises(SettingsError, match="channel_axis: 1 for images, -1 for tokens"):
        for_sites(SWISH, "channel")
    with pytest.raises(SettingsError, match="did you mean 'channel'"):
        for_sites(SWISH, "channels", 1)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="need channels"):
        Activation(SWISH, channels=3)
