"""Pieces of a table, their codes, and the kernels that look them up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from actsearch import native
from actsearch.cell import piecewise
from actsearch.cell.knots import SEGMENTS, Knots, Refinement, locate
from actsearch.cell.pieces import PIECES, pieces
from actsearch.cell.piecewise import (
    CODES,
    PLACES,
    PiecewiseTable,
    code_moments,
    decode,
    look_up,
    piecewise_tables,
    scale_by_slope,
)

Function = Callable[[Tensor], Tensor]


def knots_of(function: Function) -> Knots:
    refinement = Refinement(torch.device("cpu"))
    return refinement(function(refinement.points.double())[None].float())


def table_of(function: Function) -> PiecewiseTable:
    knots = knots_of(function)
    (table,) = piecewise_tables(function(knots.start.double()).float(), knots)
    return table


def errors(function: Function, table: PiecewiseTable, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the value and of the slope at x."""
    exact = x.double().requires_grad_()
    expected = function(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    y, codes = table.at(x, False)
    return y - expected.detach(), table.times_slope(torch.ones_like(x), codes, False) - slope


def normal(n: int = 50_000) -> Tensor:
    return torch.special.ndtri(torch.linspace(1e-6, 1 - 1e-6, n))


@pytest.mark.parametrize("function", [torch.sin, torch.tanh, lambda x: x * torch.sigmoid(x), lambda x: (-x * x).exp()])
def test_a_smooth_function_is_followed_closely(function: Function) -> None:
    of_value, of_slope = errors(function, table_of(function), normal())
    assert of_value.abs().max() < 1e-4
    assert of_slope.abs().max() < 2e-2
    assert of_slope.square().mean().sqrt() < 1e-3


KINKS: dict[str, tuple[Function, float]] = {
    "relu": (lambda x: (x - 1.2345).relu(), 1.2345),
    "beside a bend": (lambda x: torch.maximum((2 * x).tanh(), 0.4 * x), -10.0),
    "edge of a clip": (lambda x: (3 * x).clamp(-5.1, 5.1), 1.7),
    "negative": (lambda x: (x + 0.777).abs() + x.tanh(), -0.777),
}


@pytest.mark.parametrize("name", KINKS)
def test_a_kink_within_a_segment_is_found_where_it_is(name: str) -> None:
    function, place = KINKS[name]
    table = table_of(function)
    x = normal(400_000)
    of_value, of_slope = errors(function, table, x)
    assert (of_value.abs() / (1 + function(x).abs())).max() < 1e-4
    # The slope jumps by 1 and more; parabolas alone would be off by that, for all elements of the segment.
    assert of_slope.square().mean().sqrt() < 6e-3
    if place > -10:
        near = place + torch.linspace(-2e-3, 2e-3, 4001)
        of_value, of_slope = errors(function, table, near)
        assert (of_slope.abs() > 0.05).sum() <= 8  # of 4001 within a thousandth of the kink
        assert of_value.abs().max() < 1e-5


def test_pieces_meet_at_knots_and_where_a_segment_ends_early() -> None:
    refinement = Refinement(torch.device("cpu"))

    def functions(x: Tensor) -> Tensor:
        return torch.cat([(x - 0.7).clamp(min=1e-3).sqrt() * 10 + x.abs(), torch.minimum(x.sin(), 0.3 * x)])

    knots = refinement(functions(refinement.points[None].double()).float())
    values = torch.stack([functions(k[None].double())[s] for s, k in enumerate(knots.start)]).float()
    found = pieces(values, knots)
    v, a, c, end = found.rows.double().unbind(-1)
    has_end = end[:, :SEGMENTS] < 1
    assert has_end.any(1).all()
    other = found.others.long()
    at_end = (v + end * (a + end * c))[:, :SEGMENTS]
    continued = v.gather(1, other) + end[:, :SEGMENTS] * a.gather(1, other)
    assert torch.allclose(at_end[has_end], continued[has_end], atol=1e-5)
    last = torch.where(has_end, v.gather(1, other) + a.gather(1, other), (v + a + c)[:, :SEGMENTS])
    bounded = knots.width != 0
    assert torch.allclose(last[bounded], values.double().roll(-1, 1)[bounded], atol=1e-5)
    assert torch.equal(v[:, :SEGMENTS].float(), values)


def test_coefficients_are_differentiable_in_the_values() -> None:
    knots = knots_of(lambda x: torch.maximum(x.sin(), 0.4 * x))
    values = torch.maximum(knots.start.double().sin(), 0.4 * knots.start.double()).float()
    weights = torch.randn(1, PIECES, 3)
    leaf = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((pieces(leaf, knots).coefficients * weights).sum(), leaf)
    # Linear but for the choices: twice the values give twice the coefficients.
    assert torch.allclose(pieces(2 * values, knots).coefficients, 2 * pieces(values, knots).coefficients, atol=1e-6)
    total = (pieces(values, knots).coefficients.double() * weights).sum()
    assert float((gradient.double() * values).sum()) == pytest.approx(float(total), rel=1e-4, abs=1e-3)


def test_values_that_are_not_finite_leave_the_others_as_they_are() -> None:
    knots = knots_of(torch.tanh)
    values = knots.start.tanh()
    values[0, 100:110] = torch.nan
    values[0, 900] = torch.inf
    found = pieces(values, knots)
    assert found.rows[0, 200:800].isfinite().all()
    assert (found.others >= 0).all()
    assert (found.others < PIECES).all()
    assert not found.rows[0, :, 3].isnan().any()


def elements(n: int) -> Tensor:
    x = torch.randn(n)
    x[: n // 8] *= 1e-3
    x[n // 8 : n // 7] *= 1e4
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 3e38, 2.0**14, -(2.0**-14)])
    return torch.cat([x, odd])[:n] if n < 10 else torch.cat([x[:-10], odd])


@pytest.mark.parametrize("n", [0, 1, 7, 255, 256, 257, 70_001, 300_000])
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_have_the_bits_of_the_plain_functions(n: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(lambda x: torch.maximum((3 * x).sin(), 0.4 * x).clamp(-2, 5))
    x, g = elements(n), torch.randn(n)
    monkeypatch.setattr(native, "threads", lambda elements: threads)
    assert piecewise._kernels(x) is not None
    found = []
    for with_kernels in (True, False):
        if not with_kernels:
            monkeypatch.setattr(piecewise, "_kernels", lambda elements: None)
        y, codes = table.at(x, False)
        found.append((y, *codes, table.times_slope(g, codes, False), table.gradient(g, codes, False)))
    for ours, plain in zip(*found, strict=True):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours.nan_to_num(nan=123.0), plain.nan_to_num(nan=123.0))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("shufflevector", [True, False])
def test_kernels_for_other_processors_and_older_compilers_have_the_same_bits(
    lanes: int, shufflevector: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(lambda x: torch.maximum((3 * x).sin(), 0.4 * x).clamp(-2, 5))
    x, g = elements(5000), torch.randn(5000)
    y, codes = look_up(x, table.descriptors, table.rows, table.others)
    other = {"LANES": lanes} | ({} if shufflevector else {"WITHOUT_SHUFFLEVECTOR": 1})
    library = native.Library(piecewise.library.source, {**piecewise.library.constants, **other})
    assert library.kernels is not None
    monkeypatch.setattr(piecewise, "library", library)
    ours, (our_codes,) = table.at(x, False)
    assert torch.equal(ours.nan_to_num(nan=123.0), y.nan_to_num(nan=123.0))
    assert torch.equal(our_codes, codes)
    slopes = scale_by_slope(g, codes, table.slopes)
    assert torch.equal(table.times_slope(g, (our_codes,), False), slopes)


def test_a_code_holds_the_piece_and_parts_of_the_place() -> None:
    table = table_of(lambda x: (x - 1.23).abs())
    x = torch.cat([elements(20_000), torch.linspace(1.22, 1.24, 200)])
    segment, place = locate(x, table.descriptors)
    _, codes = look_up(x, table.descriptors, table.rows, table.others)
    assert codes.dtype == torch.int16
    code = decode(codes)
    piece = code >> 5
    assert code.max() < CODES
    assert ((piece == segment) | (piece >= SEGMENTS)).all()
    assert (piece >= SEGMENTS).any()
    parts = (code & (PLACES - 1)).float() / PLACES
    assert ((parts <= place) & (place < parts + 1 / PLACES)).all()


def test_gradients_are_sums_over_pieces() -> None:
    table = table_of(lambda x: (x - 1.23).abs())
    x, g = torch.randn(300_000), torch.randn(300_000)
    _, codes = table.at(x, False)
    code = decode(*codes)
    place = ((code & (PLACES - 1)).double() + 0.5) / PLACES
    expected = torch.stack(
        [torch.zeros(PIECES, dtype=torch.float64).index_add(0, code >> 5, g.double() * place**k) for k in range(3)], 1
    )
    assert torch.allclose(table.gradient(g, codes, False).double(), expected, rtol=1e-6, atol=1e-6)
    by_code = torch.zeros(CODES, dtype=torch.float64).index_add(0, code, g.double())
    assert torch.allclose(code_moments(by_code), expected, rtol=1e-9, atol=1e-9)
