"""Bases, and operations and layers of trained coefficients: against numpy.polynomial and scipy, and as promised."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev, hermite_e, legendre
from scipy.integrate import quad
from scipy.interpolate import BSpline
from torch import Tensor, nn

import actsearch
from actsearch.activation import Activation
from actsearch.errors import SettingsError, UnknownNameError
from actsearch.export import numpy_ops
from actsearch.genotype import Genotype
from actsearch.ops import registry
from actsearch.ops.bases import BASES, HERMITE_STRETCH, N_COEFFICIENTS, basis
from actsearch.ops.basis_activation import BasisActivation, LazyBasisActivation
from actsearch.ops.fitting import FIT_RANGE, fit_error
from actsearch.ops.formula import FormulaError, of_op
from actsearch.ops.reduction import reduce_to_polynomial, reduce_to_table
from actsearch.tasks.optim import parameter_groups

EVERY = pytest.mark.parametrize("name", BASES)
NORMALISATIONS = pytest.mark.parametrize("normalise", ["tanh", "softsign", "affine"])
K = N_COEFFICIENTS
T = torch.linspace(-1, 1, 401, dtype=torch.float64)


def coefficients(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> list[Tensor]:
    """Value and derivatives of an element-wise function."""
    x = x.detach().requires_grad_()
    found = [function(x)]
    for _ in range(order):
        found.append(torch.autograd.grad(found[-1].sum() + 0 * x.sum(), x, create_graph=True)[0])
    return [y.detach() for y in found]


# numpy.polynomial in the scale of the basis: (coefficients, t) -> (value, derivative by t).
def of_numpy(name: str, c: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if name == "hermite":
        c = c / np.sqrt([float(math.factorial(k)) for k in range(len(c))])
        z = HERMITE_STRETCH * t
        return hermite_e.hermeval(z, c), HERMITE_STRETCH * hermite_e.hermeval(z, hermite_e.hermeder(c))
    if name == "chebyshev":
        return chebyshev.chebval(t, c), chebyshev.chebval(t, chebyshev.chebder(c))
    return legendre.legval(t, c), legendre.legval(t, legendre.legder(c))


def of_scipy(c: np.ndarray) -> BSpline:
    step = 2 / (len(c) - 3)
    return BSpline(-1 + step * np.arange(-3, len(c) + 1), c, 3)


# -- the bases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, 5, K, 17])
def test_the_splines_are_those_of_scipy_and_sum_to_one(k: int) -> None:
    functions = basis("bspline", k)(T)
    assert functions.shape == (401, k)
    torch.testing.assert_close(functions.sum(-1), torch.ones_like(T), rtol=0, atol=1e-14)
    assert (functions >= 0).all()
    assert ((functions > 0).sum(-1) <= 4).all()
    for j in range(k):
        expected = of_scipy(np.eye(k)[j])(T.numpy())
        np.testing.assert_allclose(functions[:, j].numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("name", ["chebyshev", "legendre", "hermite"])
@pytest.mark.parametrize("k", [1, 2, K, 20])
def test_polynomials_and_their_derivatives_are_those_of_numpy(name: str, k: int) -> None:
    for j in range(k):
        value, slope = derivatives(lambda t, j=j: basis(name, k)(t)[:, j], T, 1)
        expected, expected_slope = of_numpy(name, np.eye(k)[j], T.numpy())
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(slope.numpy(), expected_slope, rtol=1e-11, atol=1e-11)


def test_derivatives_of_chebyshev_polynomials_are_finite_and_exact_at_the_ends() -> None:
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for n in range(1, K):
        _, first, second = derivatives(lambda t, n=n: basis("chebyshev", K)(t)[:, n], ends, 2)
        curvature = n**2 * (n**2 - 1) / 3
        assert first.tolist() == pytest.approx([(-1) ** (n + 1) * n**2, n**2])
        assert second.tolist() == pytest.approx([(-1) ** n * curvature, curvature])


@pytest.mark.parametrize("name", ["chebyshev", "legendre", "hermite", "fourier"])
def test_functions_are_orthogonal_under_their_weights(name: str) -> None:
    nodes, weights, expected = {
        "chebyshev": (*chebyshev.chebgauss(40), np.diag([math.pi] + [math.pi / 2] * (K - 1))),
        "legendre": (*legendre.leggauss(40), np.diag([2 / (2 * n + 1) for n in range(K)])),
        "hermite": (*hermite_e.hermegauss(40), np.eye(K) * math.sqrt(2 * math.pi)),
        # Over a period, which is twice the range; equal weights are exact for trigonometric polynomials.
        "fourier": (4 * np.arange(40) / 40, np.full(40, 0.1), np.diag([4.0] + [2.0] * (K - 1))),
    }[name]
    t = torch.from_numpy(nodes / HERMITE_STRETCH if name == "hermite" else nodes)
    functions = basis(name, K)(t).numpy()
    np.testing.assert_allclose(functions.T @ (weights[:, None] * functions), expected, atol=1e-11)


def test_gaussians_have_uniform_centres_and_the_width_of_a_spacing() -> None:
    step = 2 / (K - 3)
    for k in range(K):
        centre = -1 + (k - 1) * step
        found = basis("rbf", K)(torch.tensor([centre, centre + step, centre - step], dtype=torch.float64))[:, k]
        assert found.tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-0.5)])
    area = quad(lambda t: float(basis("rbf", K)(torch.tensor(t, dtype=torch.float64))[4]), -4, 4, points=[0.0])[0]
    assert area == pytest.approx(step * math.sqrt(2 * math.pi))


def test_a_fourier_series_need_not_be_periodic_on_the_range() -> None:
    c = torch.tensor(registry["fourier"].parameters[0].mean, dtype=torch.float64)
    assert (basis("fourier", K)(T) @ c - T).abs().max() < 2e-4


def test_values_of_a_basis_stay_moderate() -> None:
    for name in BASES:
        assert basis(name, 30)(T).abs().max() < 10.4


@EVERY
def test_a_basis_keeps_shape_and_dtype(name: str) -> None:
    for shape in [(), (0,), (2, 3)]:
        for dtype in (torch.float32, torch.float64):
            found = basis(name, 6)(torch.zeros(shape, dtype=dtype))
            assert (found.shape, found.dtype) == ((*shape, 6), dtype)


def test_unknown_names_and_too_few_functions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'chebyshev'"):
        basis("chebishev", 5)
    with pytest.raises(SettingsError, match="'bspline' needs at least 4 functions, not 3"):
        basis("bspline", 3)
    with pytest.raises(SettingsError, match="at least 1 functions, not 0"):
        basis("legendre", 0)


# -- the operations --------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("k", [4, 7, K, 16])
def test_an_operation_is_the_sum_over_its_basis_at_tanh(name: str, k: int) -> None:
    x = torch.linspace(-6, 6, 997, dtype=torch.float64)
    c = coefficients(k)
    for found, expected in zip(
        derivatives(lambda v: registry[name].function(v, c), x, 2),
        derivatives(lambda v: basis(name, k)(v.tanh()) @ c, x, 2),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@EVERY
def test_an_operation_starts_at_tanh(name: str) -> None:
    x = torch.linspace(-9, 9, 997, dtype=torch.float64)
    mean = registry[name].parameters[0].mean
    assert isinstance(mean, tuple)
    assert len(mean) == K
    error = (registry[name].function(x, mean) - x.tanh()).abs().max()
    assert error < {"fourier": 2e-4, "rbf": 3e-3}.get(name, 1e-11)


@EVERY
def test_coefficients_broadcast_by_network_site_and_channel(name: str) -> None:
    function = registry[name].function
    one = coefficients(K)
    x = coefficients(2, 3, 4, 5, seed=1)
    assert function(x, one).shape == x.shape
    torch.testing.assert_close(function(x, one[:, None, None, None, None]), function(x, one))
    sites = coefficients(K, 3, 1)
    for rows in (coefficients(1, 20), coefficients(3, 20)):
        found = function(rows, sites)
        assert found.shape == (3, 20)
        for s in range(3):
            torch.testing.assert_close(found[s], function(rows[s % len(rows)], sites[:, s, 0]))
    channels = coefficients(K, 1, 3, 1, 1)
    found = function(x, channels)
    for c in range(3):
        torch.testing.assert_close(found[:, c], function(x[:, c], channels[:, 0, c, 0, 0]))


@EVERY
@pytest.mark.parametrize("shape", [(K,), (K, 3, 1)], ids=str)
def test_gradients_of_input_and_coefficients_are_right_twice(name: str, shape: tuple[int, ...]) -> None:
    x = coefficients(1, 6, seed=5).requires_grad_()
    c = coefficients(*shape).requires_grad_()
    assert torch.autograd.gradcheck(registry[name].function, (x, c))
    assert torch.autograd.gradgradcheck(registry[name].function, (x, c))


def test_the_spline_is_twice_continuously_differentiable_at_its_knots() -> None:
    c = coefficients(K)
    for knot in range(1, K - 3):
        at = math.atanh(-1 + knot * 2 / (K - 3))
        sides = torch.tensor([at - 1e-9, at, at + 1e-9], dtype=torch.float64)
        value, first, second, third = derivatives(lambda x: registry["bspline"].function(x, c), sides, 3)
        for continuous in (value, first, second):
            assert continuous.diff().abs().max() < 1e-6
        assert (third[2] - third[0]).abs() > 1e-2  # each point is on its own side of the knot


@EVERY
def test_nan_stays_nan_and_infinity_is_an_end(name: str) -> None:
    c = coefficients(K).float()
    x = torch.tensor([math.nan, math.inf, -math.inf, 40.0, -40.0])
    found = registry[name].function(x, c)
    assert found[0].isnan()
    torch.testing.assert_close(found[1:3], found[3:])
    assert found[1:].isfinite().all()


@EVERY
def test_an_operation_takes_a_tuple_and_has_the_dtype_of_its_input(name: str) -> None:
    mean = registry[name].parameters[0].mean
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.linspace(-3, 3, 7, dtype=dtype)
        found = registry[name].function(x, mean)
        assert found.dtype == dtype
        assert torch.equal(found, registry[name].function(x, torch.tensor(mean, dtype=dtype)))


@EVERY
def test_the_numpy_form_agrees(name: str) -> None:
    mean = tuple(0.7 * (-1) ** k / (k + 1) ** 2 for k in range(K))
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        x = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([1e30, -1e30, math.nan])]).to(dtype)
        found = numpy_ops.of_op(registry[name])(x.numpy(), mean)
        assert found.dtype == x.numpy().dtype
        expected = registry[name].function(x, mean).numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_a_vector_is_put_into_a_formula_number_by_number() -> None:
    import sympy

    x = sympy.Symbol("x", real=True)
    values = [sympy.Integer(v) for v in (2, 3, *[0] * (K - 2))]
    assert of_op(registry["chebyshev"], x, coefficients=values) == 2 + 3 * sympy.tanh(x)
    with pytest.raises(FormulaError, match="coefficients of chebyshev are 10 numbers, not 2"):
        of_op(registry["chebyshev"], x, coefficients=values[:2])


# -- the layer -------------------------------------------------------------------------------------------------------


@EVERY
@NORMALISATIONS
def test_a_layer_is_the_sum_over_its_basis(name: str, normalise: str) -> None:
    layer = BasisActivation(name, 8, initial=None, normalise=normalise).double()  # type: ignore[arg-type]
    nn.init.normal_(layer.coefficients)
    x = torch.linspace(-2.9, 2.9, 201, dtype=torch.float64)
    t = {"tanh": x.tanh(), "softsign": x / (1 + x.abs()), "affine": 0.8 * x / 3}[normalise]
    torch.testing.assert_close(layer.eval()(x), basis(name, 8)(t) @ layer.coefficients)


@EVERY
@NORMALISATIONS
@pytest.mark.parametrize("initial", ["tanh", "silu"])
def test_the_stated_error_of_the_fit_is_its_error(name: str, normalise: str, initial: str) -> None:
    layer = BasisActivation(name, initial=initial, normalise=normalise).eval()  # type: ignore[arg-type]
    assert layer.fit is not None
    x = torch.linspace(*FIT_RANGE, 801, dtype=torch.float64)
    found = derivatives(layer, x, 1)
    expected = derivatives(registry[initial].function, x, 1)
    value, slope = ((a - b).abs() for a, b in zip(found, expected, strict=True))
    weight = np.exp(-0.5 * x.numpy() ** 2)
    mean = [math.sqrt(np.average(error.numpy() ** 2, weights=weight)) for error in (value, slope)]
    assert (layer.fit.low, layer.fit.high) == FIT_RANGE
    assert layer.fit.value_max == pytest.approx(value.max().item(), rel=1e-6, abs=1e-14)
    assert layer.fit.slope_max == pytest.approx(slope.max().item(), rel=1e-6, abs=1e-14)
    assert [layer.fit.value_rms, layer.fit.slope_rms] == pytest.approx(mean, rel=1e-6, abs=1e-14)
    assert f"{layer.fit.value_max:.2g}" in repr(layer)
    assert layer.fit.value_rms < {"tanh": 0.01, "silu": 0.06}[initial]


@EVERY
def test_no_other_coefficients_fit_better(name: str) -> None:
    layer = BasisActivation(name, initial="gelu", normalise="softsign").double()
    x = torch.linspace(*FIT_RANGE, 801, dtype=torch.float64)
    weight = (-0.5 * x.square()).exp()

    def loss() -> Tensor:
        return (weight * (layer(x) - registry["gelu"].function(x)).square()).sum() / weight.sum()

    (gradient,) = torch.autograd.grad(loss(), layer.coefficients)
    assert gradient.abs().max() < 1e-5
    best = loss().item()
    for seed in range(5):
        moved = copy.deepcopy(layer.coefficients.data)
        layer.coefficients.data += 0.01 * coefficients(K, seed=seed)
        assert loss().item() > best
        layer.coefficients.data = moved


def test_initial_is_a_name_a_module_or_a_function() -> None:
    x = torch.linspace(-2, 2, 101)
    by_name = BasisActivation("chebyshev", initial="silu")(x)
    torch.testing.assert_close(BasisActivation("chebyshev", initial=nn.SiLU())(x), by_name)
    torch.testing.assert_close(BasisActivation("chebyshev", initial=nn.functional.silu)(x), by_name)
    torch.testing.assert_close(BasisActivation("chebyshev", initial=Activation(Genotype.of_op("silu")))(x), by_name)
    assert torch.equal(BasisActivation("chebyshev", initial=None)(x), torch.zeros_like(x))


@EVERY
@NORMALISATIONS
@pytest.mark.parametrize("initial", ["gelu", nn.SiLU(), nn.PReLU()], ids=repr)
def test_a_residual_layer_starts_exactly_at_the_activation(name: str, normalise: str, initial: object) -> None:
    layer = BasisActivation(name, initial=initial, normalise=normalise, residual=True)  # type: ignore[arg-type]
    x = torch.linspace(-20, 20, 1001)
    expected = registry[initial].function(x) if isinstance(initial, str) else initial(x)  # type: ignore[operator]
    assert torch.equal(layer(x), expected)
    assert layer.fit is None
    layer(x).square().sum().backward()
    assert layer.coefficients.grad is not None
    assert layer.coefficients.grad.abs().min() > 0
    assert len(list(layer.parameters())) == (2 if isinstance(initial, nn.PReLU) else 1)


@EVERY
@NORMALISATIONS
def test_a_layer_passes_gradgradcheck(name: str, normalise: str) -> None:
    layer = BasisActivation(name, 6, initial=None, normalise=normalise).double()  # type: ignore[arg-type]
    x = torch.tensor([-5.0, -2.0, -0.4, 0.3, 1.7, 4.0], dtype=torch.float64, requires_grad=True)
    c = coefficients(6).requires_grad_()
    layer.eval()

    def function(x: Tensor, c: Tensor) -> Tensor:
        found = torch.func.functional_call(layer, {"coefficients": c}, (x,))
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(function, (x, c))
    assert torch.autograd.gradgradcheck(function, (x, c))


@EVERY
@NORMALISATIONS
def test_a_layer_and_its_derivatives_are_finite_far_away(name: str, normalise: str) -> None:
    layer = BasisActivation(name, initial="gelu", normalise=normalise).eval()  # type: ignore[arg-type]
    edges = torch.tensor([1e4, 1e30, 3e38, 0.0, 1e-30, 3.0])
    for found in derivatives(layer, torch.cat([edges, -edges]), 2):
        assert found.isfinite().all()
    assert layer(torch.tensor([math.inf, -math.inf])).isfinite().all()
    assert layer(torch.tensor([math.nan])).isnan().all()
    for dtype in (torch.bfloat16, torch.float16):
        found = layer(torch.tensor([1e4, -1e4, 0.5], dtype=dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found, layer(torch.tensor([1e4, -1e4, 0.5]).to(dtype).float()).to(dtype))


@EVERY
@NORMALISATIONS
def test_declared_smoothness_holds_where_pieces_meet(name: str, normalise: str) -> None:
    layer = BasisActivation(name, initial=None, normalise=normalise).double().eval()  # type: ignore[arg-type]
    nn.init.normal_(layer.coefficients, generator=torch.Generator().manual_seed(2))
    meets = {"tanh": [0.5], "softsign": [0.0], "affine": [-3.0, 3.0]}[normalise]
    for at in meets:
        sides = torch.tensor([at - 1e-9, at, at + 1e-9], dtype=torch.float64)
        for order, found in enumerate(derivatives(layer, sides, 2)):
            if order <= layer.smoothness:
                assert found.diff().abs().max() < 1e-5, order
    assert layer.smoothness == min(BASES[name].smoothness, {"tanh": math.inf, "softsign": 1, "affine": 2}[normalise])


def test_smoothness_counts_a_residual_activation_that_is_named() -> None:
    assert BasisActivation("fourier", initial="silu", residual=True).smoothness == math.inf
    assert BasisActivation("fourier", initial="relu", residual=True).smoothness == 0
    assert BasisActivation("fourier", initial="relu").smoothness == math.inf


# -- scope and running range -----------------------------------------------------------------------------------------


def test_channels_have_coefficients_of_their_own() -> None:
    layer = BasisActivation("legendre", scope="channel", channels=3, channel_axis=1).double()
    assert layer.coefficients.shape == (K, 3)
    layer.coefficients.data = coefficients(K, 3)
    x = coefficients(2, 3, 4, 5, seed=1)
    for c in range(3):
        expected = registry["legendre"].function(x[:, c], layer.coefficients[:, c])
        torch.testing.assert_close(layer(x)[:, c], expected)
    tokens = BasisActivation("legendre", normalise="softsign", scope="channel", channels=3, channel_axis=-1).double()
    tokens.coefficients.data = layer.coefficients.data
    t = x.movedim(1, -1)
    expected = (basis("legendre", K)(t / (1 + t.abs())) * layer.coefficients.T).sum(-1)
    torch.testing.assert_close(tokens(t), expected)
    with pytest.raises(SettingsError, match=r"axis 1 of an input of shape \(2, 4\) does not hold 3 channels"):
        layer(torch.zeros(2, 4))


@pytest.mark.parametrize("residual", [False, True])
def test_the_first_input_tells_the_number_of_channels(residual: bool) -> None:
    layer = BasisActivation("rbf", initial="silu", residual=residual, scope="channel", channel_axis=-1)
    assert isinstance(layer, LazyBasisActivation)
    layer = copy.deepcopy(layer)
    x = torch.linspace(-2, 2, 84).view(3, 4, 7)
    y = layer(x)
    assert type(layer) is BasisActivation
    assert layer.coefficients.shape == (K, 7)
    torch.testing.assert_close(y, BasisActivation("rbf", initial="silu", residual=residual)(x))
    y.sum().backward()
    assert layer.coefficients.grad is not None
    fresh = BasisActivation("rbf", initial="silu", residual=residual, scope="channel", channel_axis=-1)
    layer.coefficients.data += 1
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


def test_the_running_range_follows_the_inputs_in_training_and_is_frozen_in_eval() -> None:
    layer = BasisActivation("bspline", normalise="affine")
    assert (layer.low.item(), layer.high.item()) == (-3, 3)
    layer(torch.tensor([-1.0, 7.0]))
    assert (layer.low.item(), layer.high.item()) == pytest.approx((-2.98, 3.04))
    layer.eval()(torch.tensor([-100.0, 100.0]))
    assert (layer.low.item(), layer.high.item()) == pytest.approx((-2.98, 3.04))
    layer.train()(torch.tensor([math.inf, math.nan]))
    layer(torch.zeros(0))
    assert (layer.low.item(), layer.high.item()) == pytest.approx((-2.98, 3.04))
    assert layer.low.dtype == torch.float32
    for _ in range(1000):
        layer(torch.tensor([10.0, 12.0]))
    assert (layer.low.item(), layer.high.item()) == pytest.approx((10, 12), abs=1e-2)
    layer.low.fill_(10)
    layer.high.fill_(12)
    within = torch.linspace(10, 12, 11)
    torch.testing.assert_close(layer.eval()(within), basis("bspline", K)(0.8 * (within - 11)) @ layer.coefficients)
    fresh = BasisActivation("bspline", normalise="affine")
    fresh.load_state_dict(layer.state_dict())
    x = torch.linspace(8, 14, 11)
    assert torch.equal(fresh.eval()(x), layer.eval()(x))
    assert set(layer.state_dict()) == {"coefficients", "low", "high"}


def test_a_shared_layer_with_running_range_is_differentiated_twice_in_training() -> None:
    layer = BasisActivation("chebyshev", normalise="affine")
    x = torch.linspace(-2, 2, 11, requires_grad=True)
    y = layer(layer(x))  # the second call moves the range that the first one used
    (force,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    force.square().sum().backward()
    assert layer.coefficients.grad is not None
    assert layer.coefficients.grad.isfinite().all()
    assert layer.coefficients.grad.abs().max() > 0


def test_a_constant_input_leaves_the_range_wide_enough() -> None:
    layer = BasisActivation("fourier", normalise="affine")
    for _ in range(3000):
        layer(torch.ones(4))
    found = derivatives(layer.eval(), torch.tensor([0.0, 1.0, 2.0]), 2)
    assert all(y.isfinite().all() for y in found)


@pytest.mark.parametrize("name", BASES)
def test_training_moves_a_layer_to_another_function(name: str) -> None:
    torch.manual_seed(0)
    layer = BasisActivation(name)
    x = torch.linspace(-3, 3, 256)
    target = torch.sin(2 * x)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(300):
        loss = (layer(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_coefficients_are_spared_from_weight_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), BasisActivation("bspline"))
    groups = parameter_groups(model, weight_decay=0.1, decay_1d=True)
    spared = [p for g in groups if g["weight_decay"] == 0 for p in g["params"]]
    assert any(p is model[1].coefficients for p in spared)


def test_settings_that_contradict_each_other_are_refused_in_one_line() -> None:
    for error, options in [
        (UnknownNameError, {"normalise": "sigmoid"}),
        (UnknownNameError, {"scope": "sites"}),
        (UnknownNameError, {"basis": "wavelet"}),
        (UnknownNameError, {"initial": "sillu"}),
        (SettingsError, {"n_coefficients": 3}),
        (SettingsError, {"initial": "beta_mul"}),
        (SettingsError, {"initial": "add"}),
        (SettingsError, {"initial": None, "residual": True}),
        (SettingsError, {"scope": "channel"}),
        (SettingsError, {"scope": "channel", "channels": 0, "channel_axis": 1}),
        (SettingsError, {"channels": 3}),
        (SettingsError, {"initial": nn.Linear(3, 3)}),
        (SettingsError, {"initial": lambda x: x.sum()}),
    ]:
        with pytest.raises(error) as caught:
            BasisActivation(**options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_the_layer_is_public() -> None:
    assert actsearch.BasisActivation is BasisActivation


def force_field(activation: Callable[[], nn.Module]) -> nn.Module:
    """The networks of a Deep Potential with default widths: embedding 25-50-100, fitting 240-240-240."""

    def mlp(*widths: int) -> nn.Sequential:
        layers = [(nn.Linear(a, b), activation()) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*itertools.chain(*layers))

    fitting = nn.Sequential(mlp(16 * 100, 240, 240, 240), nn.Linear(240, 1))
    return nn.ModuleDict({"embedding": mlp(1, 25, 50, 100), "fitting": fitting})


def test_a_force_field_gets_less_than_two_parameters_in_a_thousand_more() -> None:
    plain, adaptive = (
        sum(p.numel() for p in force_field(activation).parameters())
        for activation in (nn.Tanh, lambda: BasisActivation("bspline"))
    )
    overhead = (adaptive - plain) / plain
    print(f"{plain} parameters, {adaptive - plain} coefficients: {100 * overhead:.4f} % more")
    assert adaptive - plain == 6 * K
    assert overhead < 0.002


# -- reduction -------------------------------------------------------------------------------------------------------


REDUCTIONS = pytest.mark.parametrize(
    "reduce",
    [lambda f: reduce_to_polynomial(f, 9, (-4, 3)), lambda f: reduce_to_table(f, 40, (-4, 3))],
    ids=["polynomial", "table"],
)


def trained() -> BasisActivation:
    layer = BasisActivation("bspline", initial="gelu", normalise="softsign")
    layer.coefficients.data += 0.1 * coefficients(K).float()
    return layer.eval()


@REDUCTIONS
@pytest.mark.parametrize("function", [trained(), Activation(Genotype.of_op("silu")), torch.sin])
def test_the_stated_error_of_a_reduction_bounds_it(reduce: Callable, function: Callable[[Tensor], Tensor]) -> None:
    reduced = reduce(function)
    x = torch.linspace(-4, 3, 50_001, dtype=torch.float64)
    found, expected = (derivatives(f, x, 1) for f in (reduced, function))
    value, slope = ((a - b).abs() for a, b in zip(found, expected, strict=True))
    assert value.max().item() == pytest.approx(reduced.error.value_max, rel=0.02)
    assert slope.max().item() == pytest.approx(reduced.error.slope_max, rel=0.02)
    assert value.square().mean().sqrt().item() == pytest.approx(reduced.error.value_rms, rel=0.02)
    assert slope.square().mean().sqrt().item() == pytest.approx(reduced.error.slope_rms, rel=0.02)
    assert f"{reduced.error.value_max:.2g}" in repr(reduced)
    assert not list(reduced.parameters())
    fresh = copy.deepcopy(reduced)
    for buffer in fresh.buffers():
        buffer.zero_()
    fresh.load_state_dict(reduced.state_dict())
    assert torch.equal(fresh(x), reduced(x))


def test_a_reduction_gets_better_with_more() -> None:
    layer = BasisActivation("chebyshev", initial="silu")
    table = [reduce_to_table(layer, n, (-3, 3)).error.value_max for n in (33, 65, 129)]
    assert all(a > 10 * b for a, b in itertools.pairwise(table))  # 16 at the fourth power
    smooth = [reduce_to_polynomial(torch.sin, n, (-3, 3)).error.value_max for n in (3, 5, 7, 9)]
    assert all(a > 5 * b for a, b in itertools.pairwise(smooth))
    assert smooth[-1] < 1e-4
    exact = reduce_to_polynomial(lambda x: x**3 - x, 3, (-2, 2)).error
    assert max(exact.value_max, exact.slope_max) < 1e-6


@REDUCTIONS
def test_a_reduction_goes_on_smoothly_and_in_the_end_linearly(reduce: Callable) -> None:
    reduced = reduce(nn.SiLU())
    for end in (-4.0, 3.0):
        sides = torch.tensor([end - 1e-7, end + 1e-7], dtype=torch.float64)
        for found in derivatives(reduced, sides, 2):
            assert found.diff().abs().item() < 1e-5
    x = torch.tensor([-1.0, 0.5, -4.5, 5.0, 3.0, -4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(reduced, (x[:4].detach().requires_grad_(),))
    far = torch.tensor([1e4, 1e30, 3e38, -1e4, -1e30, -3e38])
    for found in derivatives(reduced, far, 2):
        assert found.isfinite().all()
    slopes = derivatives(reduced, torch.tensor([1e4, 1e6], dtype=torch.float64), 1)[1]
    assert slopes.diff().abs().item() < 1e-6
    assert reduced(torch.tensor(math.nan)).isnan()
    assert reduced(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_reduction_that_cannot_be_is_refused() -> None:
    by_channel = BasisActivation("rbf", scope="channel", channels=2, channel_axis=1)
    with pytest.raises(SettingsError, match="every channel has a function of its own"):
        reduce_to_table(by_channel, 9, (-1, 1))
    with pytest.raises(SettingsError, match="at least 3 knots"):
        reduce_to_table(torch.tanh, 2, (-1, 1))
    with pytest.raises(SettingsError, match="degree must be at least 1"):
        reduce_to_polynomial(torch.tanh, 0, (-1, 1))
    for ends in [(1, 1), (0, math.inf), (math.nan, 1)]:
        with pytest.raises(SettingsError, match="two finite numbers"):
            reduce_to_polynomial(torch.tanh, 3, ends)


def test_the_error_of_a_fit_is_of_value_and_slope() -> None:
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    found = fit_error(lambda v: v + 0.5 * v, lambda v: v, x)
    assert (found.value_max, found.slope_max, found.slope_rms) == pytest.approx((0.5, 0.5, 0.5))
    assert found.value_rms == pytest.approx(0.5 * math.sqrt(0.35))
