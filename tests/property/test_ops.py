"""One battery for every registered operation: it passes by being registered, or it fails."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import sympy
import torch

from actsearch.ops import Clip, OpParameter, OpSpec, registry
from actsearch.ops.formula import of_op

EVERY = pytest.mark.parametrize("spec", registry.values(), ids=registry.keys())
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def parameter(p: OpParameter, value: float | None) -> torch.Tensor:
    """Its mean, or `value`; of a vector, numbers that vary within ±value."""
    if value is None or not p.shape:
        return torch.tensor(p.mean if value is None else value, dtype=torch.float64)
    return value * torch.arange(1, p.shape[0] + 1, dtype=torch.float64).mul(2).cos()


def parameters(spec: OpSpec, dtype: torch.dtype, value: float | None = None) -> dict[str, torch.Tensor]:
    return {p.name: parameter(p, value).to(dtype) for p in spec.parameters}


def symbols_of(p: OpParameter) -> list[sympy.Symbol]:
    names = [f"{p.name}_{k}" for k in range(p.shape[0])] if p.shape else [p.name]
    return [sympy.Symbol(name, real=True) for name in names]


def free(spec: OpSpec) -> float | None:
    """A value for parameters that decide the shape of the function; None, their means, where they do not."""
    return 20.0 if any(p.shape for p in spec.parameters) else None


def call(spec: OpSpec, *x: torch.Tensor, value: float | None = None) -> torch.Tensor:
    return spec.function(*x, **parameters(spec, x[0].dtype, value))


def points(spec: OpSpec, n: int = 40, spread: float = 3.0) -> tuple[torch.Tensor, ...]:
    """Random float64 points at least 1e-2 away from every declared kink."""
    generator = torch.Generator().manual_seed(1)
    x = tuple(spread * torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(spec.arity))
    away = torch.ones(n, dtype=torch.bool)
    for kink in spec.kinks:
        away &= (x[0] - kink).abs() > 1e-2
    if spec.tie_kinks:
        away &= (x[0] - x[1]).abs() > 1e-2
    if spec.smoothness < 0:  # the pole of a quotient
        away &= x[1].abs() > 1e-1
    assert away.sum() > n / 2
    return tuple(v[away] for v in x)


def edges(dtype: torch.dtype) -> torch.Tensor:
    info = torch.finfo(dtype)
    positive = [info.max, info.max / 2, math.sqrt(info.max), info.max ** (1 / 3), 1e4, 100.0, 88.5, 28.0, 20.0, 10.0]
    positive += [1.0, 0.5, 1e-3, info.eps, info.tiny, info.smallest_normal / 2]
    values = torch.tensor(positive, dtype=torch.float64).clamp(max=info.max).to(dtype)
    return torch.cat([values, -values, torch.tensor([0.0, -0.0], dtype=dtype)])


@EVERY
def test_values_and_derivative_agree_with_the_formula_in_50_digits(spec: OpSpec) -> None:
    symbols = sympy.symbols(spec.arguments, real=True)
    named = {p.name: symbols_of(p) for p in spec.parameters}
    expression = of_op(
        spec, *symbols, **{p.name: named[p.name] if p.shape else named[p.name][0] for p in spec.parameters}
    )
    first = sympy.diff(expression, symbols[0])
    given = [*symbols, *itertools.chain(*named.values())]
    values = [v for p in spec.parameters for v in parameter(p, 0.7).flatten().tolist()]
    value_of, slope_of = (
        sympy.lambdify(given, e, modules=["mpmath", {"Heaviside": lambda t, *_: 1.0 if t > 0 else 0.0}])
        for e in (expression, first)
    )
    x = tuple(v.requires_grad_() for v in points(spec))
    y = call(spec, *x, value=0.7)
    slope = torch.autograd.grad((y + 0 * x[0]).sum(), x[0])[0]
    with mpmath.workdps(50):
        for i in range(len(y)):
            at = [mpmath.mpf(v[i].item()) for v in x] + [mpmath.mpf(v) for v in values]
            expected, expected_slope = float(value_of(*at)), float(slope_of(*at))
            assert y[i].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
            assert slope[i].item() == pytest.approx(expected_slope, rel=1e-11, abs=1e-13)


@EVERY
def test_first_and_second_derivatives_pass_gradcheck_away_from_kinks(spec: OpSpec) -> None:
    x = tuple(v[:10].requires_grad_() for v in points(spec, spread=1.0))
    start = tuple(parameter(p, 0.7).requires_grad_() for p in spec.parameters)
    names = [p.name for p in spec.parameters]

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        # The products tie every input in, so that a constant or a projection has a gradient to check.
        extra = inputs[spec.arity :]
        y = spec.function(*inputs[: spec.arity], **dict(zip(names, extra, strict=True)))
        return y + sum(0.1 * v.square() for v in inputs[: spec.arity]) + sum(0.1 * v.square().sum() for v in extra)

    assert torch.autograd.gradcheck(function, (*x, *start))
    assert torch.autograd.gradgradcheck(function, (*x, *start))


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everything_is_finite_at_every_edge(spec: OpSpec, dtype: torch.dtype) -> None:
    grid = edges(dtype)
    kinks = torch.tensor(spec.kinks, dtype=dtype)
    grid = torch.cat([grid, kinks, torch.nextafter(kinks, kinks + 1), torch.nextafter(kinks, kinks - 1)])
    x = tuple(
        torch.tensor(v, dtype=dtype) for v in zip(*itertools.product(grid.tolist(), repeat=spec.arity), strict=True)
    )
    spread = torch.ones_like(x[0])  # every element has parameters of its own, so that their gradients are seen apart
    extra = [(parameter(p, None).to(dtype)[..., None] * spread).view(*p.shape, -1) for p in spec.parameters]
    inputs = [v.requires_grad_() for v in (*x, *extra)]
    named = dict(zip([p.name for p in spec.parameters], inputs[spec.arity :], strict=True))
    y = spec.function(*inputs[: spec.arity], **named)
    assert y.dtype == dtype
    assert y.shape == x[0].shape
    assert y.isfinite().all(), x[0][~y.isfinite()]
    y = y + sum((v * 0).view(-1, len(y)).sum(0) for v in inputs)
    first = torch.autograd.grad(y.sum(), inputs, create_graph=True)
    for g in first:
        assert g.isfinite().all(), [v[~g.isfinite().view(-1, len(y)).all(0)] for v in x]
        second = torch.autograd.grad(g.sum() + sum((v * 0).sum() for v in inputs), inputs, retain_graph=True)
        for h in second:
            assert h.isfinite().all(), [v[~h.isfinite().view(-1, len(y)).all(0)] for v in x]


@EVERY
def test_values_stay_in_the_declared_range_and_reach_both_ends(spec: OpSpec) -> None:
    line = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    if spec.arity == 2:
        side = torch.linspace(-40, 40, 161, dtype=torch.float64)
        y = call(spec, *(v.flatten() for v in torch.meshgrid(side, side, indexing="ij")))
    else:
        grid = torch.cat([1e4 * line, line, torch.linspace(-6, 6, 60_001, dtype=torch.float64)])
        y = call(spec, grid, value=free(spec))
    low, high = spec.range
    assert y.min() >= low - 1e-12
    assert y.max() <= high + 1e-12
    assert y.min() <= -3.4 if low == -math.inf else y.min() == pytest.approx(low, abs=1e-5)
    if high == math.inf:
        assert y.max() > 3.6  # asinh and log grow slowly
    else:
        assert y.max() == pytest.approx(high, abs=1e-3)
    assert spec.bounded == (math.isfinite(low) and math.isfinite(high))


@pytest.mark.parametrize("spec", registry.of_arity(1), ids=lambda s: s.id)
def test_declared_monotonicity_holds_and_none_means_neither(spec: OpSpec) -> None:
    steps = call(spec, torch.linspace(-30, 30, 6001, dtype=torch.float64), value=free(spec)).diff()
    increasing, decreasing = bool((steps >= 0).all()), bool((steps <= 0).all())
    expected = {
        "increasing": (True, False),
        "decreasing": (False, True),
        "constant": (True, True),
        None: (False, False),
    }
    assert (increasing, decreasing) == expected[spec.monotonic]


@EVERY
def test_contracting_is_what_it_says(spec: OpSpec) -> None:
    side = torch.linspace(-10, 10, 201, dtype=torch.float64)
    x = [side] if spec.arity == 1 else [v.flatten() for v in torch.meshgrid(side, side, indexing="ij")]
    within = (call(spec, *x).abs() <= torch.stack([v.abs() for v in x]).amax(0) + 1e-12).all()
    if spec.contracting:
        assert within
    elif not spec.bounded and not spec.parameters:
        assert not within


@pytest.mark.parametrize("spec", registry.of_arity(1), ids=lambda s: s.id)
def test_declared_smoothness_is_exact(spec: OpSpec) -> None:
    """Derivatives up to the declared order are continuous at the kinks, and the next is not."""

    def derivative(order: int, at: torch.Tensor) -> torch.Tensor:
        at = at.clone().requires_grad_()
        y = call(spec, at)
        for _ in range(order):
            y = torch.autograd.grad((y + 0 * at).sum(), at, create_graph=True)[0]
        return y.detach()

    def jump(order: int, kink: float, step: float) -> float:
        sides = torch.tensor([kink - step, kink + step], dtype=torch.float64)
        return derivative(order, sides).diff().abs().item()

    assert bool(spec.kinks) == (spec.smoothness < 2)
    for kink in spec.kinks:
        for order in range(int(spec.smoothness) + 1):
            assert jump(order, kink, 1e-9) < 1e-5
        assert jump(int(spec.smoothness) + 1, kink, 1e-9) > 0.1
    if spec.smoothness == math.inf:  # no undeclared kink: second derivatives change little between near points
        line = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
        for order in (1, 2):
            values = derivative(order, line)
            assert values.diff().abs().max() <= 2e-3 * (1 + values.abs().max())


@pytest.mark.parametrize("spec", registry.of_arity(2), ids=lambda s: s.id)
def test_tie_kinks_and_commutativity_are_what_they_say(spec: OpSpec) -> None:
    x1, x2 = (v.requires_grad_() for v in points(spec))
    assert spec.commutative == torch.equal(call(spec, x1, x2, value=0.7), call(spec, x2, x1, value=0.7))
    at = torch.tensor([0.5 - 1e-9, 0.5 + 1e-9], dtype=torch.float64, requires_grad=True)
    y = call(spec, at, torch.full_like(at, 0.5))
    slope = torch.autograd.grad((y + 0 * at).sum(), at)[0]
    assert spec.tie_kinks == (slope.diff().abs().item() > 0.1)


@pytest.mark.parametrize("spec", [s for s in registry.values() if s.exact_within], ids=lambda s: s.id)
def test_a_guard_acts_beyond_its_declared_bound_and_not_before(spec: OpSpec) -> None:
    assert set(spec.exact_within) == {"float32", "float64", "bfloat16"}
    bound = spec.exact_within["float64"]
    if spec.arity == 2 or math.log10(bound) > 308:
        assert bound > 1e150  # no input that a network meets; finiteness is tested at the edges
        return
    symbols = sympy.symbols(spec.arguments, real=True)
    expression = of_op(spec, *symbols, **{p.name: sympy.Integer(1) for p in spec.parameters})
    for at in (0.99 * bound, -0.99 * bound):
        y = call(spec, torch.tensor([at], dtype=torch.float64), value=1.0).item()
        assert y == pytest.approx(float(expression.subs(symbols[0], sympy.Float(at, 50)).evalf(50)), rel=1e-9)


@EVERY
def test_every_operation_is_documented(spec: OpSpec) -> None:
    assert "arXiv" in spec.reference
    assert spec.groups <= {"grafs", "literature", "laaf", "taafs"}
    assert spec.id == spec.id.lower()


def test_the_published_sets_are_complete() -> None:
    groups = registry.groups()
    assert len([op for op in groups["grafs"] if registry[op].arity == 1]) == 23
    assert len([op for op in groups["grafs"] if registry[op].arity == 2]) == 9


def test_special_values_of_published_operations() -> None:
    zero = torch.zeros(1)
    values = {op: registry[op].function(zero).item() for op in ("sqrt", "softplus", "sigmoid", "sinc", "gauss", "cos")}
    assert values == pytest.approx(
        {"sqrt": math.sqrt(1e-3), "softplus": math.log(2), "sigmoid": 0.5, "sinc": 1.0, "gauss": 1.0, "cos": 1.0}
    )
    assert registry["beta_mix"].function(torch.tensor(2.0), torch.tensor(4.0), torch.tensor(0.0)).item() == 3.0
    assert registry["softplus"].function(torch.tensor([1000.0, -1000.0])).tolist() == [1000.0, 0.0]


@pytest.mark.parametrize("kind", ["hard", "smooth", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_clip_keeps_values_within_its_limit_and_derivatives_finite(kind: str, dtype: torch.dtype) -> None:
    clip = Clip(kind, 10.0)
    x = edges(dtype).requires_grad_()
    y = clip(x)
    if kind != "none":
        assert y.abs().max() <= 10
    first = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    assert first.isfinite().all()
    if kind == "smooth":
        assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


def test_the_smooth_clip_is_smooth_and_close_to_the_identity_inside() -> None:
    clip = Clip("smooth", 10.0)
    x = torch.linspace(-25, 25, 21, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(clip, (x,))
    assert torch.autograd.gradgradcheck(clip, (x,))
    inside = torch.linspace(-3, 3, 101, dtype=torch.float64)
    assert (clip(inside) - inside).abs().max() < 1e-4
    assert clip.hits(torch.tensor([-11.0, 10.0, 12.0])).item() == 2
