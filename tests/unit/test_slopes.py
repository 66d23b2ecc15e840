"""Adaptive slopes: σ(n·a·z) as a layer and in any model, and the slope-recovery term."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actsearch
from actsearch import models
from actsearch.errors import ActsearchError, SettingsError, SwapError
from actsearch.ops.adaptive_slope import LazyAdaptiveSlope
from actsearch.ops.slopes import AdaptiveSlope, adapt, recovery, slope_recovery
from actsearch.swap import swap, unswap
from actsearch.tasks import OptimSettings, Regression, SlopeRecovery, parameter_groups

import pytorch_lightning as pl  # isort: skip

HIDDEN = (7, 5, 6)
SCOPES = ("network", "site", "channel")
X = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))


class Functional(nn.Module):
    """Three hidden layers with activations called in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 7), nn.Linear(7, 5), nn.Linear(5, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = F.leaky_relu(self.second(x), 0.3)
        return self.last(F.gelu(self.third(x), approximate="tanh"))


def modular() -> nn.Module:
    return models.mlp(4, 2, hidden=HIDDEN)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def slopes(model: nn.Module) -> list[Tensor]:
    return [m.a for m in model.modules() if isinstance(m, AdaptiveSlope)]


def adapted(scope: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    model = modular()
    adapt(model, scope, channel_axis=1, example=X, **options)  # type: ignore[arg-type]
    return model


# -- what it computes --------------------------------------------------------------------------------------------------


def test_it_computes_the_activation_of_n_a_z() -> None:
    z = torch.linspace(-2, 2, 12).view(3, 4)
    layer = AdaptiveSlope(nn.Tanh(), n=5)
    assert layer.a.item() == pytest.approx(0.2)
    layer.a.data.fill_(0.3)
    np.testing.assert_allclose(layer(z).detach().numpy(), np.tanh(5 * np.float32(0.3) * z.numpy()), rtol=1e-6)
    assert torch.equal(AdaptiveSlope(nn.ReLU)(z), z.relu())  # a class
    assert torch.equal(AdaptiveSlope(torch.sin)(z), z.sin())  # a function


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 1), ((2, 3, 5, 4), 1), ((2, 5, 3), -1), ((3, 8), 0)])
@pytest.mark.parametrize("lazy", [True, False])
def test_each_channel_has_its_own_slope_along_the_stated_axis(shape: tuple[int, ...], axis: int, lazy: bool) -> None:
    z = torch.randn(shape)
    layer = AdaptiveSlope(nn.Sigmoid(), "channel", 2.0, channels=None if lazy else 3, channel_axis=axis)
    torch.testing.assert_close(layer(z), z.sigmoid())
    assert layer.a.shape == (3,)
    layer.a.data.copy_(torch.tensor([0.5, 1.0, -3.0]))
    expected = torch.stack([(2 * s * part).sigmoid() for s, part in zip(layer.a, z.unbind(axis), strict=True)], axis)
    torch.testing.assert_close(layer(z), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scope", ["site", "channel"])
def test_the_output_has_the_dtype_of_the_input_and_the_slope_stays_in_float32(scope: Any, dtype: torch.dtype) -> None:
    layer = AdaptiveSlope(nn.ReLU(), scope, 2.0, channel_axis=1)
    z = torch.randn(4, 3).to(dtype)
    y = layer(z)
    assert y.dtype == dtype
    assert torch.equal(y, z.relu())
    y.sum().backward()
    assert layer.a.dtype == layer.a.grad.dtype == torch.float32


def test_under_autocast_it_keeps_the_dtype_of_its_input() -> None:
    model = nn.Sequential(nn.Linear(3, 4), AdaptiveSlope(nn.ReLU()))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("scope", SCOPES)
def test_it_can_be_differentiated_twice(scope: Any) -> None:
    layer = AdaptiveSlope(nn.Tanh(), scope, 3.0, channel_axis=1).double()
    z = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    layer(z)
    layer.double()  # a lazy slope is sized in float32

    def function(z: Tensor, a: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"a": a}, (z,))

    assert torch.autograd.gradcheck(function, (z, layer.a))
    assert torch.autograd.gradgradcheck(function, (z, layer.a))


# -- in a model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [modular, Functional])
@pytest.mark.parametrize(("scope", "added"), [("network", 1), ("site", len(HIDDEN)), ("channel", sum(HIDDEN))])
def test_gaaf_adds_one_parameter_l_laaf_one_a_layer_and_n_laaf_one_a_neuron(make: Any, scope: Any, added: int) -> None:
    model = make()
    before = count(model)
    report = adapt(model, scope, channel_axis=1)
    assert len(report.replaced) == len(HIDDEN)
    model(X)
    assert count(model) - before == added


@pytest.mark.parametrize("make", [modular, Functional])
@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("scope", SCOPES)
def test_an_adapted_network_starts_as_what_it_was(make: Any, scope: Any, n: float) -> None:
    model = make()
    before = model(X)
    report = adapt(model, scope, n, channel_axis=1)
    torch.testing.assert_close(model(X), before)
    for module in model.modules():
        if isinstance(module, AdaptiveSlope):
            torch.testing.assert_close(n * module.a, torch.ones_like(module.a))
    unswap(model, report)
    assert torch.equal(model(X), before)
    assert not slopes(model)


def test_all_sites_of_a_network_share_one_slope_and_keep_their_own_activations() -> None:
    model = Functional()
    adapt(model, "network")
    first, *others = slopes(model)
    assert len(others) == 2
    assert all(a is first for a in others)
    first.data.fill_(2.0)
    x = torch.tanh(2 * model.first(X))
    x = F.leaky_relu(2 * model.second(x), 0.3)
    torch.testing.assert_close(model(X), model.last(F.gelu(2 * model.third(x), approximate="tanh")))
    copied = slopes(copy.deepcopy(model))
    assert all(a is copied[0] for a in copied)
    assert copied[0] is not first


def test_a_module_that_stands_at_several_places_gets_a_slope_at_each() -> None:
    act = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 7), act, nn.Linear(7, 5), act, nn.Linear(5, 2))
    kept = copy.deepcopy(model)
    adapt(model, "channel", channel_axis=1, example=X)
    assert [a.shape for a in slopes(model)] == [(7,), (5,)]
    adapt(kept, "site", shared="keep")
    assert len({id(a) for a in slopes(kept)}) == 1


@pytest.mark.parametrize(
    ("model", "shape", "axis", "sizes"),
    [
        (lambda: models.mlp(4, 2, hidden=(7, 5)), (3, 4), 1, [7, 5]),
        (lambda: models.lenet(), (2, 1, 28, 28), 1, [6, 16, 120, 84]),
        (lambda: models.build("gpt", {"vocab_size": 9, "context": 4}, layers=1, heads=1, width=8), (2, 4), -1, [32]),
    ],
    ids=["linear", "convolution", "tokens"],
)
def test_slopes_by_channel_take_their_number_from_the_first_batch(
    model: Any, shape: tuple[int, ...], axis: int, sizes: list[int]
) -> None:
    x = torch.zeros(shape, dtype=torch.long if axis == -1 else torch.float32)
    first, second = model(), model()
    adapt(first, "channel", channel_axis=axis)
    assert all(isinstance(m, LazyAdaptiveSlope) for m in first.modules() if isinstance(m, AdaptiveSlope))
    first(x)
    adapt(second, "channel", channel_axis=axis, example=x)
    for adaptive in (first, second):
        assert [len(a) for a in slopes(adaptive)] == sizes
        assert {type(m) for m in adaptive.modules() if isinstance(m, AdaptiveSlope)} == {AdaptiveSlope}


def test_an_adaptive_activation_is_one_site_of_a_later_swap() -> None:
    model = modular()
    adapt(model, "site", 5)
    adapt(model, "channel", 2, channel_axis=1, example=X)
    assert [tuple(a.shape) for a in slopes(model)] == [(w,) for w in HIDDEN]
    assert {type(m.activation) for m in model.modules() if isinstance(m, AdaptiveSlope)} == {nn.ReLU}
    swap(model, nn.Tanh)
    assert [type(m) for m in model.children()].count(nn.Tanh) == len(HIDDEN)


def test_options_of_swap_choose_the_sites() -> None:
    model = modular()
    report = adapt(model, "site", exclude="act2")
    assert [site.name for site in report.replaced] == ["act1", "act3"]
    assert len(slopes(model)) == 2


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_slopes_move_in_training(scope: str) -> None:
    model = adapted(scope, n=2.0)
    before = [a.clone() for a in slopes(model)]
    optimizer = OptimSettings(lr=0.1).make_optimizer(model)
    y = torch.randn(9, 2)
    losses = []
    for _ in range(20):
        loss = (model(X) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(slopes(model), before, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("decay_1d", [True, False])
def test_slopes_do_not_decay(scope: str, decay_1d: bool) -> None:
    model = adapted(scope, n=2.0)
    optimizer = OptimSettings(optimizer="adamw", lr=0.1, weight_decay=0.5, decay_1d=decay_1d).make_optimizer(model)
    weight = model.fc1.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, torch.full_like(a, 0.5)) for a in slopes(model))
    assert torch.equal(model.fc1.weight, weight * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_slopes_are_trained_at_their_multiple_of_the_learning_rate(kind: str, scope: str) -> None:
    model = adapted(scope, lr_factor=20.0)
    optimizer = OptimSettings(optimizer=kind, lr=1e-3, weight_decay=0.1).make_optimizer(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-3, 0.1), (20 * 1e-3, 0.0)]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, p in model.named_parameters():
        factor, decayed = (20, 0.0) if name.endswith(".a") else (1, 0.1 * before[name])
        by_decay = torch.as_tensor(1e-3 * decayed) if kind != "adam" else 0.0
        torch.testing.assert_close(before[name] - p, factor * 1e-3 + by_decay + 0 * p, rtol=2e-3, atol=1e-7)


def test_parameters_are_in_one_group_each_and_groups_without_a_factor_are_what_they_were() -> None:
    model = nn.Sequential(modular(), AdaptiveSlope(nn.Tanh(), lr_factor=3), AdaptiveSlope(nn.Tanh(), lr_factor=5))
    model.append(AdaptiveSlope(nn.Tanh()))
    groups = parameter_groups(model, 0.1, False, lr=1.0)
    assert [(g["weight_decay"], g.get("lr")) for g in groups] == [(0.1, None), (0.0, None), (0.0, 3.0), (0.0, 5.0)]
    found = [id(p) for g in groups for p in g["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert groups[2]["params"] == [model[1].a]
    torch.optim.RAdam(groups, lr=1.0).step()
    with pytest.raises(SettingsError, match="3 times the learning rate: give lr"):
        parameter_groups(model, 0.1)


def test_the_schedule_keeps_the_multiple() -> None:
    rates: list[list[float]] = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    task = Regression(adapted("site", lr_factor=4.0), lr=0.1, weight_decay=0.0, schedule="cosine")
    fit(task, batches(), [Watch()], max_epochs=3)
    assert len(rates) == 3
    assert rates[0][0] > rates[2][0]
    assert all(slope == pytest.approx(4 * weight) for weight, slope in rates)


# -- keeping -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_slopes_travel_in_the_state_in_copies_and_in_pickles(scope: Any) -> None:
    model = adapted(scope, n=2.0)
    for a in slopes(model):
        a.data.uniform_(0.2, 2.0)
    again = modular()
    adapt(again, scope, 2.0, channel_axis=1)  # still without sizes
    again.load_state_dict(model.state_dict())
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X))
        other(X).sum().backward()
        assert all(a.grad is not None for a in slopes(other))


def test_a_copy_of_a_lazy_slope_is_lazy_and_gets_its_own_size() -> None:
    lazy = AdaptiveSlope(nn.Tanh(), "channel", 4.0, channel_axis=-1)
    copies = [copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))]
    lazy(torch.randn(2, 7))
    for copied in copies:
        copied(torch.randn(2, 3))
        assert type(copied) is AdaptiveSlope
        assert torch.equal(copied.a, torch.full((3,), 0.25))
    assert lazy.a.shape == (7,)


def test_it_is_a_name_of_the_package_and_tells_what_it_is() -> None:
    assert actsearch.AdaptiveSlope is AdaptiveSlope
    assert "scope='channel', n=5, channel_axis=-1" in repr(AdaptiveSlope(nn.Tanh(), "channel", 5, 3, -1))
    assert "sin, scope='site'" in repr(AdaptiveSlope(torch.sin))


# -- slope recovery ----------------------------------------------------------------------------------------------------

MEANS = np.array([0.3, 1.0, -0.5])


@pytest.mark.parametrize(("reduction", "reduce"), [("mean", np.mean), ("sum", np.sum)])
def test_recovery_and_its_gradient_are_those_of_the_published_formula(reduction: Any, reduce: Any) -> None:
    means = torch.tensor(MEANS, requires_grad=True)
    found = recovery(list(means), reduction)
    expected = 1 / reduce(np.exp(MEANS))
    assert found.item() == pytest.approx(expected, rel=1e-14)
    # dS/da_k = -S² · exp(a_k) · (1/(D-1) or 1)
    share = 1 / 3 if reduction == "mean" else 1.0
    (gradient,) = torch.autograd.grad(found, means)
    np.testing.assert_allclose(gradient.numpy(), -(expected**2) * share * np.exp(MEANS), rtol=1e-13)
    assert torch.autograd.gradcheck(lambda m: recovery(list(m), reduction), (means,))


@pytest.mark.parametrize("a", [-300.0, 95.0, 300.0])
def test_recovery_and_its_gradient_are_numbers_where_exp_of_the_slope_overflows(a: float) -> None:
    means = torch.tensor([a, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(recovery(list(means)), means)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("reduction", "reduce"), [("mean", np.mean), ("sum", np.sum)])
def test_the_exponent_of_a_layer_is_the_mean_of_its_slopes_and_not_n_times_it(reduction: Any, reduce: Any) -> None:
    model = adapted("channel", n=10.0)
    values = [np.linspace(0.1, 0.2 * w, w) for w in HIDDEN]
    for a, value in zip(slopes(model), values, strict=True):
        a.data.copy_(torch.from_numpy(value))
    means = np.array([v.mean() for v in values])
    found = slope_recovery(model, reduction)
    expected = 1 / reduce(np.exp(means))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    share = 1 / 3 if reduction == "mean" else 1.0
    for a, mean, width in zip(slopes(model), means, HIDDEN, strict=True):
        gradient = -(expected**2) * share * math.exp(mean) / width
        torch.testing.assert_close(a.grad, torch.full((width,), gradient, dtype=torch.float32))


@pytest.mark.parametrize("n", [1.0, 10.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_slope_of_a_network_counts_once(n: float, reduction: Any) -> None:
    model = adapted("network", n=n)
    assert slope_recovery(model, reduction).item() == pytest.approx(math.exp(-1 / n), rel=1e-6)


def test_a_module_at_two_places_is_one_layer() -> None:
    shared, single = AdaptiveSlope(nn.Tanh(), n=2), AdaptiveSlope(nn.Tanh())
    model = nn.Sequential(shared, single, shared)
    assert slope_recovery(model, "sum").item() == pytest.approx(1 / (math.exp(0.5) + math.exp(1.0)), rel=1e-6)


def test_the_whole_of_a_model_may_be_one_adaptive_activation() -> None:
    assert slope_recovery(AdaptiveSlope(nn.Tanh())).item() == pytest.approx(math.exp(-1), rel=1e-6)


def test_any_module_takes_part_that_tells_its_slopes() -> None:
    class Mine(nn.Module):
        slopes = 3.0  # what a stranger calls so is not asked

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ParameterList([torch.full((2,), 0.5), torch.tensor(2.0)])

        def adaptive_slopes(self) -> list[nn.Parameter]:
            return list(self.inner)

    model = nn.Sequential(Mine(), AdaptiveSlope(nn.Tanh()), nn.Linear(2, 2))
    expected = 3 / (math.exp(0.5) + math.exp(2.0) + math.exp(1.0))
    assert slope_recovery(model).item() == pytest.approx(expected, rel=1e-6)


def test_slopes_in_half_precision_are_averaged_in_float32() -> None:
    layer = AdaptiveSlope(nn.Tanh(), "channel", 3.0, 3000, 1).to(torch.bfloat16)
    assert slope_recovery(layer).dtype == torch.float32
    assert slope_recovery(layer).item() == pytest.approx(math.exp(-layer.a[0].item()), rel=1e-6)


def test_under_recovery_alone_slopes_rise() -> None:
    model = adapted("site")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        slope_recovery(model).backward()
        optimizer.step()
    assert all(a.item() > 1.05 for a in slopes(model))


# -- the callback ------------------------------------------------------------------------------------------------------

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class ByHand(Regression):
    """Slope recovery as part of the loss."""

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.7 * slope_recovery(self, "sum")


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(40, 4, generator=generator), torch.randn(40, 2, generator=generator))
    return DataLoader(data, batch_size=8)


def fit(task: pl.LightningModule, data: DataLoader[Any], callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(callbacks=callbacks, **{"max_epochs": 2, **QUIET, **options})
    trainer.fit(task, data, data)
    return trainer


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.05}],
    ids=["plain", "accumulated", "clipped"],
)
def test_the_callback_trains_as_if_the_term_were_added_to_the_loss(scope: str, optimizer: str, options: Any) -> None:
    settings = {"optimizer": optimizer, "lr": 0.05, "weight_decay": 0.01}
    by_hand = ByHand(adapted(scope, n=2.0), **settings)
    fit(by_hand, batches(), [], **options)
    by_callback = Regression(adapted(scope, n=2.0), **settings)
    fit(by_callback, batches(), [SlopeRecovery(0.7, "sum")], **options)
    without = Regression(adapted(scope, n=2.0), **settings)
    fit(without, batches(), [], **options)
    for (name, a), b, c in zip(by_callback.named_parameters(), by_hand.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        if name.endswith(".a"):
            assert (a - c).abs().max() > 1e-4


def test_the_loss_that_is_logged_is_that_on_data_and_the_term_stands_beside_it() -> None:
    with_term, without = (Regression(adapted("site"), lr=1e-9, weight_decay=0.0) for _ in range(2))
    logged = fit(with_term, batches(), [SlopeRecovery(weight=100.0)]).callback_metrics
    expected = fit(without, batches(), []).callback_metrics
    assert logged["train_loss"].item() == pytest.approx(expected["train_loss"].item(), rel=1e-5)
    assert logged["slope_recovery"].item() == pytest.approx(math.exp(-1), rel=1e-5)
    assert "slope_recovery" not in expected


def test_the_callback_knows_the_scale_of_the_loss_in_float16() -> None:
    from pytorch_lightning.plugins.precision import MixedPrecision

    class Gradients(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:  # after unscaling
            self.found = [a.grad.clone() for a in slopes(pl_module)]

    found = []
    for kind, callbacks in ((ByHand, []), (Regression, [SlopeRecovery(0.7, "sum")]), (Regression, [])):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
        gradients = Gradients()
        task = kind(adapted("site"), lr=0.01, weight_decay=0.0)
        fit(task, batches(), [*callbacks, gradients], plugins=[plugin], accumulate_grad_batches=2, max_steps=1)
        assert plugin.scaler is not None
        assert plugin.scaler.get_scale() == 64.0
        found.append(gradients.found)
    by_hand, by_callback, without = found
    torch.testing.assert_close(by_callback, by_hand, rtol=2e-2, atol=1e-3)
    # dS/da_k = -S² · exp(a_k) with the sum over three slopes of 1.
    expected = torch.tensor(-0.7 * math.exp(-1) / 9)
    for a, b in zip(by_callback, without, strict=True):
        torch.testing.assert_close(a - b, expected, rtol=2e-2, atol=0)


def test_a_model_whose_slopes_are_frozen_trains_with_the_callback() -> None:
    task = Regression(adapted("site"), lr=0.05, weight_decay=0.0)
    for a in slopes(task):
        a.requires_grad_(False)
    fit(task, batches(), [SlopeRecovery()])
    assert all(a.item() == 1.0 and a.grad is None for a in slopes(task))


def test_the_callback_refuses_what_it_cannot_do() -> None:
    with pytest.raises(SettingsError, match="has no adaptive slopes"):
        fit(Regression(modular()), batches(), [SlopeRecovery()])

    class ByLBFGS(Regression):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(SettingsError, match="must then be added"):
        fit(ByLBFGS(adapted("site")), batches(), [SlopeRecovery()])
    for weight in (-1.0, math.nan):
        with pytest.raises(SettingsError, match="weight must be"):
            SlopeRecovery(weight)
    with pytest.raises(SettingsError, match="did you mean 'mean'"):
        SlopeRecovery(reduction="means")  # type: ignore[arg-type]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scope": "sites"}, "did you mean 'site'"),
        ({"scope": "channel"}, "need channel_axis: 1 for"),
        ({"scope": "channel", "channels": 3}, "need channel_axis"),
        ({"scope": "channel", "channels": 0, "channel_axis": 1}, "at least 1"),
        ({"channels": 3}, "channels is for scope 'channel'"),
        ({"n": 0.5}, "n must be a number of at least 1"),
        ({"n": math.nan}, "n must be"),
        ({"n": math.inf}, "n must be"),
        ({"lr_factor": 0.0}, "lr_factor must be"),
        ({"activation": "tanh"}, "must be a module or a function"),
    ],
)
def test_odd_settings_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        AdaptiveSlope(**{"activation": nn.Tanh(), **options})
    assert "\n" not in str(error.value)


def test_an_input_without_the_channels_is_an_error_that_says_so() -> None:
    layer = AdaptiveSlope(nn.Tanh(), "channel", channels=3, channel_axis=1)
    with pytest.raises(SettingsError, match=r"3 slopes for the 4 channels on axis 1 of \(2, 4\)"):
        layer(torch.randn(2, 4))
    for lazy in (layer, AdaptiveSlope(nn.Tanh(), "channel", channel_axis=1)):
        with pytest.raises(SettingsError, match=r"shape \(4,\) has no axis 1"):
            lazy(torch.randn(4))


def test_a_model_without_slopes_or_with_slopes_without_a_size_has_no_recovery() -> None:
    with pytest.raises(ActsearchError, match=r"Sequential has no adaptive slopes; actsearch.ops.slopes.adapt") as error:
        slope_recovery(modular())
    assert "\n" not in str(error.value)
    model = modular()
    adapt(model, "channel", channel_axis=1)
    with pytest.raises(SettingsError, match="run it on one batch first"):
        slope_recovery(model)
    with pytest.raises(SettingsError, match="at least one slope"):
        recovery([])
    with pytest.raises(SettingsError, match="did you mean 'sum'"):
        slope_recovery(adapted("site"), "summ")  # type: ignore[arg-type]


def test_what_cannot_be_adapted_is_left_as_it_was() -> None:
    model = modular()
    for arguments in (("channel",), ("sites",), ("site", 0.5)):
        with pytest.raises(SettingsError):
            adapt(model, *arguments)  # type: ignore[arg-type]
    assert not slopes(model)
    act = nn.Tanh()
    shared = nn.Sequential(nn.Linear(4, 7), act, nn.Linear(7, 5), act)
    with pytest.raises(SettingsError, match=r"7 slopes for the 5 channels .* give each layer its own"):
        adapt(shared, "channel", channel_axis=1, shared="keep", example=X)
    assert shared[1] is shared[3] is act
    with pytest.raises(SwapError, match="no activation was replaced"):
        adapt(nn.Sequential(nn.Linear(2, 2)), "site")
