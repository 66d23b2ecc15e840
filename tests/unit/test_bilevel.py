"""Promise 1: the two levels do not touch each other, and their gradients are those of a problem in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

from actsearch.cell import MixedCell
from actsearch.errors import TaskError
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.loader import PairLoader
from actsearch.search.schedule import drop_times
from actsearch.search.settings import RefineSettings, SearchSettings
from actsearch.space import SearchSpace
from actsearch.swap import swap


def fit(search: BilevelSearch, loader: PairLoader, epochs: int, *callbacks: pl.Callback) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=epochs,
        callbacks=list(callbacks),
    )
    trainer.fit(search, train_dataloaders=loader)


def settings_of(**changes: Any) -> SearchSettings:
    defaults: dict[str, Any] = {
        "epochs": 2,
        "relaxation": "softmax",
        "evaluator": "dense",
        "shrink": False,
        "warm_epochs": 0,
        "alpha_lr": 0.05,
        "refine": RefineSettings(enabled=False),
    }
    return SearchSettings(**(defaults | changes))


def pair_loader(search: list[BilevelSearch], data: TensorDataset, n_weights: int, size: int) -> PairLoader:
    template = DataLoader(data, batch_size=size)
    return PairLoader(template, range(n_weights), range(n_weights, len(data)), 0, lambda: search[0].current_epoch)


# -- a quadratic problem -----------------------------------------------------------------------------------------------

A, B = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.4, 1.0, -1.0]).double()
SPACE = SearchSpace.from_dict(
    {"cell": {"u1": {"inputs": "x", "candidates": ["identity", "neg", "beta_mul"]}}, "clip": {"kind": "none"}}
)
LR = 0.3


class Quadratic(pl.LightningModule):
    """L(w, α; v) = ½‖w - s(α) v‖², where s is the cell at 1; v is `A` in the weights' part and `B` in α's."""

    def __init__(self, cell: MixedCell) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.2, 0.1, -0.3], dtype=torch.float64))
        self.site = cell.add_site("site")

    def training_step(self, batch: Any, index: int) -> Tensor:
        s = self.site(torch.ones((), dtype=torch.float64))
        return 0.5 * (self.w - s * batch[0]).square().sum(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.w], lr=LR)


class ClosedForm:
    """The same search with gradients by hand."""

    def __init__(self, search: BilevelSearch) -> None:
        cell = search.cells["network"]
        self.s = search.settings
        self.w = search.task.w.detach().clone()
        self.alpha = nn.Parameter(cell.alpha["u1"].detach().clone())
        self.beta = nn.Parameter(cell.op_parameters["u1/beta_mul/beta"].detach().clone())
        self.adam = [
            torch.optim.Adam([self.alpha], self.s.alpha_lr, self.s.alpha_betas, weight_decay=self.s.alpha_weight_decay),
            torch.optim.Adam([self.beta], self.s.alpha_lr, self.s.alpha_betas)
            if self.s.op_parameters == "published"
            else torch.optim.Adam([self.beta], 1e-3),
        ]

    def values(self) -> tuple[Tensor, Tensor]:
        p = torch.softmax(self.alpha.detach(), 0).double()
        return p, torch.stack([torch.tensor(1.0), torch.tensor(-1.0), self.beta.detach()]).double()

    def set_gradients(self, ds: Tensor, both: bool) -> None:
        p, o = self.values()
        self.alpha.grad = (ds * p * (o - p @ o)).float()
        self.beta.grad = (ds * p[2]).float() if both else None

    def step(self, warm: bool = False) -> None:
        p, o = self.values()
        s = p @ o
        if self.s.order == 1:
            ds = -(self.w - s * B) @ B
        else:  # w' = w - ξ (w - s A), differentiated through
            xi = self.s.inner_lr or LR
            ahead = self.w - xi * (self.w - s * A)
            ds = -(ahead - s * B) @ B + xi * (ahead - s * B) @ A
        with_alpha = self.s.op_parameters == "published"
        self.set_gradients(ds, with_alpha)
        for optimizer in self.adam[: 2 if with_alpha else 1]:
            optimizer.step()
        p, o = self.values()
        s = torch.tensor(1.0).double() if warm else p @ o  # the warm start's ReLU at 1
        residual = self.w - s * A
        if not with_alpha and not warm:
            self.beta.grad = (-(residual @ A) * p[2]).float()
            self.adam[1].step()
        self.w = self.w - LR * residual


def quadratic(settings: SearchSettings, task: type[Quadratic] = Quadratic) -> tuple[BilevelSearch, PairLoader]:
    """A search over four steps an epoch."""
    cell = MixedCell(SPACE, "softmax", "dense", seed=3)
    with torch.no_grad():
        cell.alpha["u1"].copy_(torch.tensor([0.3, -0.2, 0.1]))
    search = BilevelSearch(task(cell), {"network": cell}, settings)
    rows = torch.cat([A.expand(8, -1), B.expand(4, -1)])
    return search, pair_loader([search], TensorDataset(rows), 8, 2)


def assert_same_state(search: BilevelSearch, expected: ClosedForm) -> None:
    cell = search.cells["network"]
    torch.testing.assert_close(search.task.w.detach(), expected.w, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cell.alpha["u1"].detach(), expected.alpha.detach(), rtol=1e-4, atol=1e-6)
    beta = cell.op_parameters["u1/beta_mul/beta"].detach()
    torch.testing.assert_close(beta, expected.beta.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("op_parameters", ["published", "weights"])
@pytest.mark.parametrize(("order", "inner_lr"), [(1, None), (2, None), (2, 0.7)])
def test_a_search_follows_the_closed_form(order: Any, inner_lr: float | None, op_parameters: Any) -> None:
    search, loader = quadratic(settings_of(order=order, inner_lr=inner_lr, op_parameters=op_parameters))
    expected = ClosedForm(search)
    fit(search, loader, 2)
    for _ in range(8):
        expected.step()
    assert_same_state(search, expected)


@contextmanager
def recorded_gradients(search: BilevelSearch) -> Iterator[list[dict[str, Tensor | None]]]:
    """Within it, collects the gradients of α and β, as they are when an optimiser is about to apply them."""
    found: list[dict[str, Tensor | None]] = []
    cell = search.cells["network"]

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        if optimizer.param_groups[0]["params"][0] is cell.alpha["u1"]:
            beta = cell.op_parameters["u1/beta_mul/beta"].grad
            alpha = cell.alpha["u1"].grad
            found.append({"alpha": None if alpha is None else alpha.clone(), "beta": beta if beta is None else +beta})

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("order", [1, 2])
def test_the_hypergradient_is_the_closed_form(order: Any) -> None:
    """Adam hides the scale of a gradient; this looks at the gradient itself."""
    search, loader = quadratic(settings_of(order=order))
    expected = ClosedForm(search)
    with recorded_gradients(search) as found:
        fit(search, loader, 1)
    assert len(found) == 4
    for gradients in found:
        expected.step()  # leaves the gradients that it applied
        torch.testing.assert_close(gradients["alpha"], expected.alpha.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradients["beta"], expected.beta.grad, rtol=1e-4, atol=1e-6)


def test_the_two_orders_are_told_apart_by_the_problem() -> None:
    forms = [ClosedForm(quadratic(settings_of(order=order))[0]) for order in (1, 2)]
    for form in forms:
        form.step()
    assert not torch.allclose(forms[0].alpha.grad, forms[1].alpha.grad, rtol=0.05)


class Noisy(Quadratic):
    """Its loss of the weights' part has a random term, as dropout would give it one."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = super().training_step(batch, index)
        of_weights = torch.equal(batch[0][0], A)
        return loss + torch.randn(()) * self.site(torch.ones((), dtype=torch.float64)) if of_weights else loss


def test_both_ends_of_the_finite_difference_see_the_same_randomness() -> None:
    """Their difference is divided by a small number: other draws would drown the second order in noise."""
    search, loader = quadratic(settings_of(order=2), Noisy)
    expected = ClosedForm(search)
    fit(search, loader, 1)
    for _ in range(4):
        expected.step()
    assert_same_state(search, expected)


def test_warm_weight_steps_run_with_the_standard_activation_while_alpha_is_trained() -> None:
    search, loader = quadratic(settings_of(warm_epochs=1))
    expected = ClosedForm(search)
    fit(search, loader, 2)
    for k in range(8):
        expected.step(warm=k < 4)
    assert_same_state(search, expected)
    search, loader = quadratic(settings_of(warm_steps=3))
    expected = ClosedForm(search)
    fit(search, loader, 1)
    for k in range(4):
        expected.step(warm=k < 3)
    assert_same_state(search, expected)


def test_accumulated_batches_make_one_step() -> None:
    """The mean gradient of two batches; α steps before the second batch of the weights, which sees the new α."""
    search, loader = quadratic(settings_of(accumulate=2, epochs=1))
    expected = ClosedForm(search)
    with recorded_gradients(search) as found:
        fit(search, loader, 1)
    assert len(found) == 2
    for gradients in found:
        w, (p, o) = expected.w, expected.values()
        expected.step()
        torch.testing.assert_close(gradients["alpha"], expected.alpha.grad, rtol=1e-4, atol=1e-6)
        expected.w = 0.5 * (expected.w + w - LR * (w - p @ o * A))
    assert_same_state(search, expected)


def test_a_warm_start_counts_steps_and_not_the_batches_that_are_accumulated() -> None:
    search, loader = quadratic(settings_of(accumulate=2, epochs=1, warm_steps=1))
    phases = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            phases.append(search.phase)

    fit(search, loader, 1, Watch())
    assert phases == ["warm start", "search", "search", "search"]  # as the next batch sees it


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 8), (2, 4)])
def test_shrinking_by_steps_counts_steps_and_ends_with_the_search(accumulate: int, steps: int) -> None:
    search, loader = quadratic(settings_of(accumulate=accumulate, shrink=True, shrink_unit="step", shrink_start=1))
    left = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            left.append(next(iter(search._cells())).n_survivors)

    fit(search, loader, 2, Watch())
    expected = [3 - sum(drop <= k // accumulate for drop in drop_times(3, 1, steps, 1)) for k in range(1, 9)]
    assert left == expected
    assert left[-1] == 1


def test_arch_steps_can_be_rarer() -> None:
    search, loader = quadratic(settings_of(arch_every=4))
    with recorded_gradients(search) as found:
        fit(search, loader, 2)
    assert len(found) == 2


# -- the two levels ----------------------------------------------------------------------------------------------------


class Network(pl.LightningModule):
    """A small network with everything that keeps state: batch normalisation, dropout, momentum."""

    def __init__(self, cell: MixedCell, dropout: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(6, 5),
            nn.ReLU(),
            nn.Linear(5, 1),
        )
        swap(self.net, lambda site: cell.add_site(site.name))

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


class Levels(pl.Callback):
    """Compares, bit by bit, what each level finds with what the other left."""

    def __init__(self, search: BilevelSearch, op_parameters: str) -> None:
        task, cell = search.task, search.cells["network"]
        ops = {f"op.{k}": v for k, v in cell.op_parameters.items()}
        alpha = {f"alpha.{k}": v for k, v in cell.alpha.items()}
        self.lower: dict[str, Tensor] = {**dict(task.named_parameters()), **(ops if op_parameters == "weights" else {})}
        self.upper: dict[str, Tensor] = {**alpha, **(ops if op_parameters == "published" else {})}
        self.buffers = dict(task.named_buffers())
        self.kept: dict[str, Tensor] = {}
        self.steps: list[str] = []
        self.moved: set[str] = set()
        plain_step = task.training_step

        def training_step(batch: Any, index: int) -> Tensor:
            if self.steps and self.steps[-1] == "upper":  # α's step is over, and the weights' begins
                self.check("after α's step", self.lower | self.buffers, self.lower)
                self.keep(self.upper)
            return plain_step(batch, index)

        task.training_step = training_step  # type: ignore[method-assign]

    def keep(self, tensors: dict[str, Tensor]) -> None:
        for name, t in tensors.items():
            if name in self.kept and not torch.equal(t, self.kept[name]):
                self.moved.add(name)
            self.kept[name] = t.detach().clone()

    def check(self, when: str, unchanged: dict[str, Tensor], without_gradient: dict[str, Tensor]) -> None:
        for name, t in unchanged.items():
            assert torch.equal(t, self.kept[name]), f"{name} changed {when}"
        for name, t in without_gradient.items():
            assert t.grad is None, f"{name} has a gradient {when}"

    def on_train_batch_start(self, *args: Any) -> None:
        self.keep(self.lower | self.upper | self.buffers)

    def on_train_batch_end(self, *args: Any) -> None:
        self.check("in the weights' step", self.upper, self.lower | self.upper)

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        first = optimizer.param_groups[0]["params"][0]
        level = "upper" if any(first is p for p in self.upper.values()) else "lower"
        self.steps.append(level)
        mine, other = (self.upper, self.lower) if level == "upper" else (self.lower, self.upper)
        self.check(f"before the {level} step", other, other)
        assert any(p.grad is not None for p in mine.values())


def network(settings: SearchSettings, rows: Tensor | None = None, **options: Any) -> tuple[BilevelSearch, PairLoader]:
    torch.manual_seed(1)
    cell = MixedCell("tiny", settings.relaxation, "dense", seed=1)
    search = BilevelSearch(Network(cell, **options), {"network": cell}, settings)
    x = torch.randn(32, 3) if rows is None else rows
    return search, pair_loader([search], TensorDataset(x, x.sum(1, keepdim=True).sin()), 24, 4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("op_parameters", ["published", "weights"])
@pytest.mark.parametrize("relaxation", ["dirichlet", "gumbel", "softmax"])
def test_neither_level_leaves_a_trace_in_the_other(order: Any, op_parameters: Any, relaxation: Any) -> None:
    search, loader = network(settings_of(order=order, op_parameters=op_parameters, relaxation=relaxation))
    levels = Levels(search, op_parameters)
    handle = register_optimizer_step_pre_hook(levels.before)
    try:
        fit(search, loader, 2, levels)
    finally:
        handle.remove()
    assert levels.steps.count("upper") == (24 if op_parameters == "published" else 12)
    assert levels.steps.count("lower") == (12 if op_parameters == "published" else 24)
    assert levels.moved == set(levels.lower) | set(levels.upper) | set(levels.buffers)  # and yet everything is trained


def test_the_three_groups_are_disjoint_and_complete() -> None:
    search, _ = network(settings_of())
    groups = [search.weights, search.alphas, search.op_parameters]
    ids = [id(p) for group in groups for p in group]
    assert len(ids) == len(set(ids)) == len(list(search.parameters()))
    cell = search.cells["network"]
    task = search.task
    task.stray = cell
    with pytest.raises(TaskError, match="register the cell in one place"):
        BilevelSearch(task, {"network": cell}, settings_of())


def test_an_optimizer_that_holds_alpha_is_refused() -> None:
    search, loader = network(settings_of())
    cell = search.cells["network"]
    search.task.configure_optimizers = lambda: torch.optim.SGD(  # type: ignore[method-assign]
        [*search.task.parameters(), *cell.alpha.values()], lr=0.1
    )
    with pytest.raises(TaskError, match="holds α or op parameters"):
        fit(search, loader, 1)


def test_an_arch_batch_that_is_not_finite_leaves_the_statistics_alone() -> None:
    rows = torch.randn(32, 3)
    rows[24:] = torch.inf
    search, loader = network(settings_of(epochs=1), rows)
    fit(search, loader, 1)
    assert int(search.skipped) == 6
    assert all(b.isfinite().all() for b in search.task.buffers())


@pytest.mark.parametrize("output", [None, 1.0, torch.zeros(2), {"loss": None}, {"other": torch.zeros(())}], ids=repr)
def test_a_task_without_a_loss_is_told_so(output: Any) -> None:
    search, loader = network(settings_of())
    search.task.training_step = lambda batch, index: output  # type: ignore[method-assign]
    with pytest.raises(TaskError, match=r"training_step returned .* needs it to return the loss"):
        fit(search, loader, 1)


def test_a_task_that_does_not_use_the_swapped_model_is_told_so() -> None:
    search, loader = network(settings_of())
    search.task.training_step = lambda batch, index: torch.zeros(())  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="does not depend on what is trained"):
        fit(search, loader, 1)


class Watched(Network):
    """Notes of each loss which of its parameters need a gradient; the last layer's bias is frozen by its author."""

    def __init__(self, cell: MixedCell) -> None:
        super().__init__(cell)
        self.net[-1].bias.requires_grad_(False)
        self.seen: list[list[str]] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.seen.append([name for name, p in self.named_parameters() if p.requires_grad])
        return super().training_step(batch, index)


@pytest.mark.parametrize("order", [1, 2])
def test_an_arch_step_builds_no_graph_for_the_weights_unless_the_order_needs_it(order: Any) -> None:
    cell = MixedCell("tiny", "softmax", "dense", seed=1)
    task = Watched(cell)
    trained = [name for name, p in task.named_parameters() if p.requires_grad]
    assert len(trained) == len(list(task.parameters())) - 1
    search = BilevelSearch(task, {"network": cell}, settings_of(order=order, epochs=1))
    x = torch.randn(32, 3)
    fit(search, pair_loader([search], TensorDataset(x, x.sum(1, keepdim=True)), 24, 4), 1)
    assert task.seen == ([[], trained] * 6 if order == 1 else [trained] * 5 * 6)
    assert [name for name, p in task.named_parameters() if p.requires_grad] == trained


def test_a_loss_of_the_weights_alone_is_told_so() -> None:
    search, loader = network(settings_of())
    search.task.training_step = lambda batch, index: search.task.net[0](batch[0]).mean()  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="does not depend on what is trained"):
        fit(search, loader, 1)


def test_a_discrete_search_may_leave_out_the_cell_that_has_parameters_left() -> None:
    spaces = [
        SearchSpace.from_dict({"cell": {"u1": {"inputs": "x", "candidates": [op]}}}) for op in ("tanh", "beta_mul")
    ]
    cells = {name: MixedCell(space, "softmax", "dense") for name, space in zip("ab", spaces, strict=True)}
    task = Network(cells["a"])
    cells["b"].add_site("nowhere")
    search = BilevelSearch(task, cells, settings_of(epochs=1))
    x = torch.randn(32, 3)
    fit(search, pair_loader([search], TensorDataset(x, x.sum(1, keepdim=True)), 24, 4), 1)
    assert int(search.steps) == 6


def drive(**changes: Any) -> BilevelSearch:
    search, loader = network(settings_of(relaxation="dirichlet", **changes))
    fit(search, loader, search.settings.epochs)
    return search


def test_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = drive(), drive(), drive(seed=1)
    state = first.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_shrinking_ends_with_a_discrete_cell() -> None:
    search = drive(epochs=5, shrink=True)
    assert search.cells["network"].is_discrete
    assert search.phase == "discrete"


# -- second derivatives ------------------------------------------------------------------------------------------------


class Penalised(pl.LightningModule):
    """A regression whose loss holds the derivative of the network, as that of a PINN or a force field does."""

    def __init__(self, cell: MixedCell, penalty: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 16), cell.add_site("a"), nn.Linear(16, 1))
        self.penalty = penalty

    def training_step(self, batch: Any, index: int) -> Tensor:
        x = batch[0].requires_grad_()
        y = self.net(x)
        self.log("calls", 1.0)
        loss = (y - x.sin()).square().mean()
        if self.penalty:
            slope = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
            loss = loss + self.penalty * (slope - x.cos()).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def penalised(evaluator: str, penalty: float, epochs: int = 3) -> BilevelSearch:
    cell = MixedCell("smooth_c2", "softmax", evaluator=evaluator, seed=1)  # type: ignore[arg-type]
    search = BilevelSearch(Penalised(cell, penalty), {"network": cell}, settings_of(epochs=epochs))
    data = TensorDataset(torch.linspace(-2, 2, 96)[:, None])
    fit(search, pair_loader([search], data, 64, 16), epochs)
    return search


def test_tables_keep_their_inputs_only_once_a_second_derivative_was_asked_for() -> None:
    assert not penalised("table", 0.0).cells["network"].evaluator.keeps_input
    search = penalised("table", 1.0)
    cell = search.cells["network"]
    assert cell.evaluator.keeps_input
    assert bool(cell.state_dict()["evaluator.keeps"])  # a resumed search does not have to find out again
    exact = penalised("dense", 1.0)
    for a, b in zip(search.task.parameters(), exact.task.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    for slot, alpha in cell.alpha.items():
        assert torch.allclose(alpha, exact.cells["network"].alpha[slot], rtol=0.05, atol=5e-3), slot


def test_a_step_that_was_computed_twice_is_logged_once() -> None:
    counts = []

    class Counts(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            counts.append(module._averages.counts())

    cell = MixedCell("smooth_c2", "softmax", evaluator="table", seed=1)
    search = BilevelSearch(Penalised(cell, 1.0), {"network": cell}, settings_of(epochs=1))
    fit(search, pair_loader([search], TensorDataset(torch.linspace(-2, 2, 96)[:, None]), 64, 16), 1, Counts())
    assert counts[0]["train/calls"] == counts[0]["arch/calls"] == 1
    assert counts[1]["train/calls"] == counts[1]["arch/calls"] == 2
