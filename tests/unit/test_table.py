"""The table evaluator against the dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actsearch.cell import MixedCell
from actsearch.cell.table import HIGHEST, LOWEST, POINTS, SEGMENTS, knots, segment

SIDE = SEGMENTS + 1


def make(evaluator: str, space: object = "grafs", seed: int = 0, sites: int = 3, **options: object) -> MixedCell:
    cell = MixedCell(space, evaluator=evaluator, seed=seed, **options)  # type: ignore[arg-type]
    for k in range(sites):
        cell.add_site(f"site {k}")
    cell.resample()
    return cell


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def test_every_float_falls_between_the_knots_of_its_segment() -> None:
    x = torch.cat([knots().float(), torch.randn(20_000), 300 * torch.randn(1000), 1e-4 * torch.randn(1000)])
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    i = segment(x).long()
    lower = knots()[i]
    last = i % SIDE == SEGMENTS
    upper = torch.where(last, torch.inf, knots()[(i + 1).clamp(max=POINTS - 1)].abs())
    assert ((lower.abs() <= x.double().abs()) & (x.double().abs() < upper)).all()
    assert (torch.signbit(x) == (i >= SIDE)).all()
    assert (x[last].abs() >= 2.0**HIGHEST).all()
    assert len(knots()) == POINTS


def test_a_step_in_the_middle_of_training_agrees_with_dense_in_float64() -> None:
    """Values to 1e-4; gradients to 6 %, most of it from kinks of the mixture within a segment."""
    for space in ("grafs", "swish", "full"):
        table, dense = make("table", space), make("dense", space)
        x = torch.randn(100_000, requires_grad=True)
        upstream = torch.tanh(x.detach() - 0.3)  # what a loss hands back is correlated with x
        exact = x.detach().double().requires_grad_()
        weights = {s: w.double() for s, w in dense._weights.items()}  # type: ignore[union-attr]
        assert all(torch.equal(table._weights[s], dense._weights[s]) for s in weights)  # type: ignore[index]
        dense._weights = weights
        names = [n for n, _ in table.named_parameters()]
        y, z = table(x, 1), dense(exact, 1)
        assert relative(y, z) < 1e-4
        ours = torch.autograd.grad(y, [x, *table.parameters()], upstream, allow_unused=True)
        theirs = torch.autograd.grad(z, [exact, *dense.parameters()], upstream.double(), allow_unused=True)
        assert relative(ours[0], theirs[0]) < 0.06
        groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, a, b in zip(names, ours[1:], theirs[1:], strict=True):
            assert (a is None) == (b is None), name
            if a is not None and b is not None:
                # α by slot; of the scalar parameters, some of which all but cancel, the vector.
                key = name if name.startswith("alpha") else "op parameters"
                groups.setdefault(key, []).append((a.flatten(), b.flatten().double()))
        for key, pairs in groups.items():
            assert relative(*(torch.cat(side) for side in zip(*pairs, strict=True))) < 0.05, (space, key)


def test_a_kink_at_zero_is_exact_on_both_sides() -> None:
    space = {"cell": {"u": {"inputs": "x", "candidates": ["relu", "abs"]}}}
    table, dense = make("table", space), make("dense", space)
    x = torch.tensor([-1e-20, -0.3, -1e-5, 1e-5, 0.3, 1e-20, 0.0, -0.0], requires_grad=True)
    y, z = table(x), dense(x)
    assert torch.allclose(y, z, rtol=1e-6, atol=1e-30)
    ours, theirs = (torch.autograd.grad(v.sum(), x)[0][:6] for v in (y, z))
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_far_outside_the_clipped_function_is_continued_exactly() -> None:
    table, dense = make("table"), make("dense")
    x = torch.tensor([2.0**HIGHEST, 1e5, 1e30, -(2.0**HIGHEST), -1e5, -1e30], requires_grad=True)
    y = table(x)
    assert torch.allclose(y, dense(x), rtol=2e-4)  # atan is not quite at its limit
    assert not torch.autograd.grad(y.sum(), x)[0].any()


def test_second_derivatives_are_those_of_the_dense_cell() -> None:
    table, dense = make("table", "smooth_c2"), make("dense", "smooth_c2")
    found = []
    for cell in (table, dense):
        x = torch.linspace(-3, 3, 500, requires_grad=True)
        first = torch.autograd.grad(cell(x).sin().sum(), x, create_graph=True)[0]
        loss = first.square().sum()
        found.append(torch.autograd.grad(loss, [x, *cell.parameters()], allow_unused=True))
    for a, b in zip(*found, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert relative(a, b.double()) < 1e-3


def test_only_the_input_is_saved_for_an_element() -> None:
    x = torch.randn(50_000, requires_grad=True)
    for survivors in (110, 20):
        cell = make("table")
        while cell.n_survivors > survivors:
            cell.drop_weakest()
        cell.resample()
        large: list[int] = []

        def pack(t: Tensor, large: list[int] = large) -> Tensor:
            if t.numel() >= x.numel():
                large.append(t.data_ptr())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            cell(x)
        assert large == [x.data_ptr()]


def test_auto_takes_the_table_once_the_sites_have_enough_elements() -> None:
    cell = make("auto", sites=1)
    assert cell._tables is None
    cell(torch.randn(100))
    cell.resample()
    assert cell._tables is None
    cell(torch.randn(3 * POINTS))
    cell.resample()
    assert cell._tables is not None
    assert int(cell.elements) == 3 * POINTS
    other = MixedCell("grafs", evaluator="auto")
    other.add_site("site 0")
    other.load_state_dict(cell.state_dict())
    other.resample()
    assert other._tables is not None  # a resumed search goes on with the same evaluator


@pytest.mark.parametrize("why", ["no clip", "float64", "discrete", "dense"])
def test_where_the_table_is_not_safe_the_cell_is_dense(why: str) -> None:
    space: object = "grafs"
    if why == "no clip":
        from actsearch import SearchSpace

        space = {**SearchSpace.load("grafs").to_dict(), "clip": {"kind": "none"}}
    cell = make("dense" if why == "dense" else "table", space)
    if why == "discrete":
        while cell.drop_weakest():
            pass
        cell.resample()
    dtype = torch.float64 if why == "float64" else torch.float32
    x = torch.randn(1000, dtype=dtype)
    reference = make("dense", space)
    if why == "discrete":
        while reference.drop_weakest():
            pass
        reference.resample()
    assert torch.equal(cell(x), reference(x))


def test_sites_have_tables_of_their_own_draws() -> None:
    cell = make("table", sites=2)
    x = torch.randn(1000)
    assert not torch.equal(cell(x, 0), cell(x, 1))
    dense = make("dense", sites=2)
    for site in range(2):
        assert torch.allclose(cell(x, site), dense(x, site), rtol=1e-3, atol=1e-3)


def test_knots_reach_below_the_floor_of_the_square_root() -> None:
    assert 2.0**LOWEST < 1e-3
    assert 1e-3 < knots()[knots() > 1e-3].min() < 1e-3 * (1 + 1e-2)
