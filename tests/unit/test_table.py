"""The table evaluator against the dense one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from actsearch import SearchSpace
from actsearch.cell import MixedCell
from actsearch.cell.half import INPUTS, every_input
from actsearch.cell.knots import HIGHEST
from actsearch.cell.lookup import Table
from actsearch.cell.piecewise import CODES
from actsearch.errors import EvaluatorError
from actsearch.ops.guard import HALF


def make(evaluator: str, space: object = "grafs", seed: int = 0, sites: int = 3, **options: object) -> MixedCell:
    cell = MixedCell(space, evaluator=evaluator, seed=seed, **options)  # type: ignore[arg-type]
    for k in range(sites):
        cell.add_site(f"site {k}")
    cell.resample()
    return cell


def double(cell: MixedCell) -> MixedCell:
    """The cell with the same draws in float64, densely."""
    cell.evaluator.start(
        {s: w.double() for s, w in cell.evaluator._weights.items()},  # type: ignore[union-attr]
        cell.op_parameters,
    )
    return cell


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def uses_table(cell: MixedCell) -> bool:
    return cell.evaluator._uses_table


@pytest.mark.parametrize("space", ["grafs", "swish", "full", "smooth_c2"])
def test_a_step_in_the_middle_of_training_agrees_with_dense_in_float64(space: str) -> None:
    table, dense = make("table", space), double(make("dense", space))
    x = torch.randn(100_000, requires_grad=True)
    upstream = torch.tanh(x.detach() - 0.3)  # what a loss hands back is correlated with x
    exact = x.detach().double().requires_grad_()
    names = [n for n, _ in table.named_parameters()]
    y, z = table(x, 1), dense(exact, 1)
    assert relative(y, z) < 5e-5
    ours = torch.autograd.grad(y, [x, *table.parameters()], upstream, allow_unused=True)
    theirs = torch.autograd.grad(z, [exact, *dense.parameters()], upstream.double(), allow_unused=True)
    # log(|u| + 1e-3), in `full`, is the hardest: its slope falls from 1000 to 500 within a thousandth.
    assert relative(ours[0], theirs[0]) < (0.06 if space == "full" else 0.02)
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, a, b in zip(names, ours[1:], theirs[1:], strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            # α by slot; of the scalar parameters, some of which all but cancel, the vector.
            key = name if name.startswith("alpha") else "op parameters"
            groups.setdefault(key, []).append((a.flatten(), b.flatten()))
    for key, pairs in groups.items():
        most = 0.02 if space == "full" else 0.01
        assert relative(*(torch.cat(side) for side in zip(*pairs, strict=True))) < most, (space, key)


def test_all_sites_get_their_gradients_from_one_evaluation() -> None:
    table, dense = make("table"), double(make("dense"))
    x = torch.randn(3, 20_000)
    total = sum(table(x[k], k).square().sum() for k in range(3))
    exact = sum(dense(x[k].double(), k).square().sum() for k in range(3))
    ours = torch.autograd.grad(total, list(table.alpha.values()))
    theirs = torch.autograd.grad(exact, list(dense.alpha.values()))
    assert relative(torch.cat(ours), torch.cat(theirs)) < 1e-3


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
    x = torch.tensor([2.0**HIGHEST, 1e5, 1e30, -(2.0**HIGHEST), -1e5, -1e30, torch.inf, -torch.inf], requires_grad=True)
    y = table(x)
    assert torch.allclose(y[:6], dense(x)[:6], rtol=2e-4)  # atan is not quite at its limit
    assert y.isfinite().all()
    assert not torch.autograd.grad(y.sum(), x)[0].any()


def test_nan_stays_nan() -> None:
    x = torch.tensor([1.0, torch.nan, -torch.nan, 2.0])
    for dtype in (torch.float32, *HALF):
        assert make("table")(x.to(dtype)).isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_are_those_of_the_dense_cell(dtype: torch.dtype) -> None:
    table, dense = make("table", "smooth_c2"), make("dense", "smooth_c2")
    found = []
    for cell in (table, dense):
        x = torch.linspace(-3, 3, 500).to(dtype).requires_grad_()
        first = torch.autograd.grad(cell(x).float().sin().sum(), x, create_graph=True)[0]
        loss = first.float().square().sum()
        found.append(torch.autograd.grad(loss, [x, *cell.parameters()], allow_unused=True))
    for a, b in zip(*found, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert relative(a, b) < (1e-3 if dtype == torch.float32 else 2e-2)


def test_second_derivatives_through_three_sites_are_those_of_the_dense_cell() -> None:
    found = []
    for evaluator in ("table", "dense"):
        cell = make(evaluator, "smooth_c2")
        x = torch.linspace(-2, 2, 50).requires_grad_()
        y = cell(cell(cell(x, 0), 1), 2)
        # With a graph for the parameters too, as for a term of the loss that holds their gradient.
        first = torch.autograd.grad(y.sum(), [x, *cell.parameters()], create_graph=True, allow_unused=True)
        loss = sum(g.square().mean() for g in first if g is not None)
        found.append(torch.autograd.grad(loss, list(cell.parameters()), allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert relative(a, b) < 1e-2


def test_a_second_derivative_without_the_input_is_refused_and_not_wrong() -> None:
    cell = make("table")
    cell.evaluator.keeps_input = False
    x = torch.randn(10, requires_grad=True)
    torch.autograd.grad(cell(x).sum(), x)
    with pytest.raises(EvaluatorError, match="set keeps_input"):
        torch.autograd.grad(cell(x).sum(), x, create_graph=True)


@pytest.mark.parametrize(("dtype", "keeps_input", "expected"), [
    (torch.float32, False, 2),
    (torch.float32, True, 6),
    (torch.bfloat16, False, 2),
    (torch.bfloat16, True, 2),
])  # fmt: skip
@pytest.mark.parametrize("survivors", [110, 20])
def test_bytes_saved_for_an_element(dtype: torch.dtype, keeps_input: bool, expected: int, survivors: int) -> None:
    x = torch.randn(200_000, dtype=dtype, requires_grad=True)
    cell = make("table", sites=1)
    while cell.n_survivors > survivors:
        cell.drop_weakest()
    cell.evaluator.keeps_input = keeps_input
    cell.resample()
    cell(x)  # the table itself is saved once a step
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.numel() >= x.numel():
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = cell(x)
    assert sum(storages.values()) == expected * x.numel()
    del y


@pytest.mark.parametrize("dtype", HALF)
def test_in_half_precision_every_input_has_the_bits_of_the_rounded_float32_result(dtype: torch.dtype) -> None:
    cell = make("table")
    x = every_input(dtype)
    # The same operations in the same order: those of all sites at once.
    weights = {s: w.T for s, w in cell.evaluator._weights.items()}  # type: ignore[union-attr]
    expected = cell.evaluator._dense(x[None], weights, dict(cell.op_parameters.items())).to(dtype)
    for site in range(3):
        found = cell(x.to(dtype), site)
        assert found.dtype == dtype
        assert torch.equal(found.nan_to_num(), expected[site].nan_to_num())
    assert len(x) == INPUTS
    assert x.isnan().sum() > 0


@pytest.mark.parametrize("dtype", HALF)
def test_in_half_precision_gradients_are_those_of_float32(dtype: torch.dtype) -> None:
    table, dense = make("table"), double(make("dense"))
    x = torch.randn(30_000).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = torch.tanh(x.detach().float() - 0.3).to(dtype)
    ours = torch.autograd.grad(table(x, 1), [x, *table.alpha.values()], upstream)
    theirs = torch.autograd.grad(dense(exact, 1), [exact, *dense.alpha.values()], upstream.double())
    assert ours[0].dtype == dtype
    assert relative(ours[0], theirs[0]) < torch.finfo(dtype).eps
    assert relative(torch.cat(ours[1:]), torch.cat(theirs[1:])) < 1e-5


def layouts() -> dict[str, Callable[[], Tensor]]:
    image = lambda: torch.randn(4, 8, 6, 5)  # noqa: E731
    return {
        "contiguous": image,
        "channels last": lambda: image().contiguous(memory_format=torch.channels_last),
        "transposed": lambda: image().transpose(1, 3),
        "with gaps": lambda: image()[:, ::2],
        "expanded": lambda: torch.randn(4, 1, 6).expand(4, 3, 6),
        "a number": lambda: torch.randn(()),
        "empty": lambda: torch.randn(0, 3),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_memory_format_gives_the_same_and_keeps_it(layout: str, dtype: torch.dtype) -> None:
    cell = make("table", "tiny")
    x = layouts()[layout]().to(dtype)
    leaf = x.detach().requires_grad_()
    plain = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    upstream = torch.randn_like(plain)
    y, z = cell(leaf), cell(plain)
    assert torch.equal(y, z)
    assert y.shape == x.shape
    if layout in ("contiguous", "channels last", "transposed"):
        assert y.stride() == x.stride()
    ours = torch.autograd.grad(y, leaf, upstream, retain_graph=True)
    theirs = torch.autograd.grad(z, plain, upstream)
    assert torch.equal(*ours, *theirs)


def test_what_a_table_returns_can_be_changed_in_place() -> None:
    cell = make("table", "tiny")
    x = torch.randn(5, 3, requires_grad=True)
    y = cell(x)
    torch.relu_(y)
    d_x = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    expected = torch.autograd.grad(torch.relu(cell(x)).sum(), x)[0]
    assert torch.equal(d_x, expected)


def test_compiled_kernels_have_the_bits_of_the_plain_ones() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        cell = make("table")
        cell.resample()
        table: Table = cell.evaluator._tables_for(dtype)[1]
        for n in (1, 7, 4096, 5001):
            x = torch.randn(n)
            x[: n // 8] *= 1e-3
            x[n // 8 : n // 7] *= 1e4
            x = x.to(dtype)
            g = torch.randn(n).to(dtype)
            found = []
            for compiled in (False, True):
                y, codes = table.at(x, compiled)
                d_x = table.times_slope(g, codes, compiled)
                found.append((y, *codes, d_x, table.gradient(g, codes, compiled)))
            for a, b in zip(*found, strict=True):
                assert torch.equal(a, b)


def test_a_cell_with_tables_can_be_copied_pickled_and_shared_by_an_inference() -> None:
    cell = make("table", "tiny")
    x = torch.randn(50, requires_grad=True)
    with torch.inference_mode():
        y = cell(x.detach())
    assert torch.equal(cell(x), y)
    assert torch.autograd.grad(cell(x).sum(), list(cell.alpha.values()))
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        other.release()
        assert other.alpha["u1"].equal(cell.alpha["u1"])


def test_autocast_does_not_reach_into_the_table() -> None:
    cell = make("table")
    x = torch.randn(2000)
    plain = cell(x)
    cell.resample(repeat=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cell(x), plain)


# -- which evaluator runs ----------------------------------------------------------------------------------------------


def test_auto_takes_the_table_until_it_has_seen_a_pass_and_dense_for_few_elements() -> None:
    cell = make("auto", sites=1)
    assert uses_table(cell)
    cell(torch.randn(100))
    cell.resample()
    assert not uses_table(cell)
    assert int(cell.evaluator.elements) == 100
    assert int(cell.evaluator.chosen) == 0  # no trial was needed


def test_auto_takes_what_a_trial_finds_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[int] = []

    def fake(by_table: bool) -> Callable[..., bool]:
        return lambda **given: trials.append(given["elements"]) or by_table

    cell = make("auto", sites=1)
    many = torch.randn(CODES)
    for by_table in (False, True):
        monkeypatch.setattr("actsearch.cell.evaluator.faster", fake(by_table))
        cell.evaluator.chosen.zero_()
        cell.evaluator._read()
        cell(many)
        cell.resample()
        assert uses_table(cell) == by_table
        cell(many)
        cell.resample()
    assert trials == [CODES, CODES]  # once each
    while cell.n_survivors > 110 // 2:
        cell.drop_weakest()
    cell(many)
    cell.resample()
    assert len(trials) == 3  # half of the candidates are gone

    other = MixedCell("grafs", evaluator="auto")
    other.add_site("site 0")
    other.load_state_dict(cell.state_dict())
    other.resample()
    assert uses_table(other)  # a resumed search goes on with the same evaluator
    assert len(trials) == 3


def test_auto_decides_after_a_checkpoint_as_it_would_have_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actsearch.cell.evaluator.faster", lambda **given: True)
    many, few = torch.randn(CODES), torch.randn(100)
    cell = make("auto", sites=1)
    for x in (many, few, many, many, few):  # as batches that end an epoch are smaller
        cell(x)
        other = make("auto", sites=1)
        other.load_state_dict(cell.state_dict())
        for each in (cell, other):
            each.resample()
        assert uses_table(cell) == uses_table(other) == (x is many)


def test_auto_decides_by_the_last_pass_when_candidates_are_dropped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actsearch.cell.evaluator.faster", lambda **given: True)
    cell = make("auto", sites=1)
    for x in (torch.randn(100), torch.randn(CODES)):
        cell(x)
        cell.resample()
    cell(torch.randn(100))
    cell.drop_weakest()
    cell.resample()
    assert not uses_table(cell)


def test_a_trial_prefers_the_table_where_there_are_hundreds_of_elements_to_a_knot() -> None:
    cell = make("auto", sites=1)
    cell(torch.randn(1 << 21))
    before = int(cell.draws)
    cell.resample()
    assert uses_table(cell)
    assert int(cell.evaluator.chosen) == 2
    assert int(cell.draws) == before + 1  # the trial draws nothing
    twin = make("table", sites=1)
    twin(torch.randn(10))
    twin.resample()
    x = torch.randn(1000)
    assert torch.equal(cell(x), twin(x))


@pytest.mark.parametrize("why", ["no clip", "a clip beyond the table", "float64", "discrete", "dense"])
def test_where_the_table_is_not_safe_the_cell_is_dense(why: str) -> None:
    space: object = "grafs"
    if why == "no clip":
        space = {**SearchSpace.load("grafs").to_dict(), "clip": {"kind": "none"}}
    if why == "a clip beyond the table":
        space = {**SearchSpace.load("grafs").to_dict(), "clip": {"kind": "hard", "limit": 1e6}}
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


def test_dropped_operations_leave_the_table() -> None:
    cell = make("table", "tiny", sites=1)
    dense = make("dense", "tiny", sites=1)
    for _ in range(6):
        assert cell.drop_weakest() == dense.drop_weakest()
    cell.resample()
    dense.resample()
    x = torch.randn(1000)
    assert torch.allclose(cell(x), dense(x), rtol=1e-4, atol=1e-4)


def test_a_network_trains_through_the_table_as_through_the_dense_cell() -> None:
    outputs = []
    for evaluator in ("table", "dense"):
        torch.manual_seed(0)
        cell = MixedCell("grafs", evaluator=evaluator, seed=3)  # type: ignore[arg-type]
        net = nn.Sequential(
            nn.Linear(4, 32), cell.add_site("a"), nn.Linear(32, 32), cell.add_site("b"), nn.Linear(32, 1)
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        x = torch.randn(256, 4)
        for _ in range(20):
            cell.resample()
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        outputs.append(float(loss.detach()))
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-2)
