"""Physics-informed networks: equations, their solutions, points, and the task that trains on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import actsearch
from actsearch import data, models, tasks
from actsearch.compare import Budget, compare, contestant
from actsearch.data.pde import Burgers, Heat, Poisson, Problem, derivative, draw_points, grid_points
from actsearch.data.pde.module import PointData
from actsearch.errors import SettingsError, TaskError, UnknownNameError
from actsearch.tasks import PINN
from actsearch.tasks.pinn import finish

import pytorch_lightning as pl  # isort: skip

PROBLEMS = pytest.mark.parametrize(
    "problem", [Burgers(), Burgers(0.05), Heat(), Heat(1.0), Poisson(), Poisson(2)], ids=str
)
NO_VALIDATION = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
SAMPLINGS = pytest.mark.parametrize("sampling", ["sobol", "uniform"])
TRAINER: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
}  # fmt: skip


def small_data(**options: Any) -> PointData:
    module = PointData("burgers", **{"batch_size": 24, "n_residual": 40, "n_data": 8, **options})
    module.setup("fit")
    return module


def small_task(data: PointData, **options: Any) -> PINN:
    torch.manual_seed(0)
    model = models.build("pinn_mlp", data.facts, layers=2, width=6)
    settings = {"optimizer": "adam", "lr": 3e-3, "weight_decay": 0.0, "schedule": "constant"}
    task = tasks.build(data.kind, model, data.facts, **{**settings, **options})
    assert isinstance(task, PINN)
    return task


def batch_of(module: PointData) -> list[Tensor]:
    return module.train_set.__getitems__(range(len(module.train_set))).stacked()


# --- equations and solutions -------------------------------------------------------------------------------------


def exact(problem: Problem, points: Tensor) -> Tensor:
    """The solution as a module would compute it, in torch."""
    a, b = points[:, :1], points[:, 1:]
    if isinstance(problem, Heat):
        return torch.exp(-problem.diffusivity * math.pi**2 * b) * torch.sin(math.pi * a)
    if isinstance(problem, Poisson):
        k = problem.waves * math.pi
        return torch.sin(k * a) * torch.sin(k * b)
    assert isinstance(problem, Burgers)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite.hermgauss(80))
    y = math.pi * (a - torch.sqrt(4 * problem.viscosity * b) * nodes)
    f = weights * torch.exp(-torch.cos(y) / (2 * math.pi * problem.viscosity))
    return -(torch.sin(y) * f).sum(1, keepdim=True) / f.sum(1, keepdim=True)


def inside(problem: Problem, n: int = 50) -> Tensor:
    """Points well within the domain, float64."""
    low, high = torch.tensor(problem.domain, dtype=torch.float64).unbind(1)
    return low + (high - low) * (0.05 + 0.9 * torch.rand(n, len(low), dtype=torch.float64))


@PROBLEMS
def test_the_solution_has_no_residual_and_is_the_reference(problem: Problem) -> None:
    points = inside(problem)
    solution = exact(problem, points)
    np.testing.assert_allclose(problem.reference(points.numpy()), solution[:, 0].numpy(), atol=1e-10)
    assert problem.residual(lambda p: exact(problem, p), points).abs().max() < 1e-7
    assert problem.residual(lambda p: exact(problem, p) + 0.01 * p[:, :1] ** 2, points).abs().max() > 1e-4


@PROBLEMS
def test_a_residual_is_that_of_finite_differences(problem: Problem) -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    points, h = inside(problem, 20), 1e-4
    e = h * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        u = net(points)
        first = [(net(points + s) - net(points - s)) / (2 * h) for s in e]
        second = [(net(points + s) - 2 * u + net(points - s)) / h**2 for s in e]
        if isinstance(problem, Burgers):
            expected = first[1] + u * first[0] - problem.viscosity * second[0]
        elif isinstance(problem, Heat):
            expected = first[1] - problem.diffusivity * second[0]
        else:
            assert isinstance(problem, Poisson)
            k = problem.waves * math.pi
            source = 2 * k**2 * torch.sin(k * points[:, :1]) * torch.sin(k * points[:, 1:])
            expected = (second[0] + second[1] + source) / k**2
        torch.testing.assert_close(problem.residual(net, points), expected, rtol=1e-5, atol=1e-6)


def test_a_derivative_of_what_does_not_depend_on_the_input_is_zero() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    assert not derivative(torch.ones(3, 1), x).any()
    linear = derivative(x[:, :1] * 2, x)
    assert linear.tolist() == [[2.0, 0.0]] * 3
    assert not derivative(linear[:, :1], x).any()


# mpmath.quad of the Cole-Hopf integral with 30 digits, over η/√(4νt) from -16 to 16 in 64 pieces, at ν = 0.01/π.
GOLDEN = [
    (-0.5, 0.25, 0.80319842084063256),
    (0.01, 0.5, -0.89804964225282787),
    (0.25, 0.75, -0.67946679681824856),
    (-0.9, 0.9, 0.081895852075098193),
    (0.003, 0.99, -0.24542012882544243),
    (-0.04, 1.0, 0.70674506748474826),
]


@pytest.mark.parametrize(("x", "t", "u"), GOLDEN)
def test_the_burgers_reference_is_the_cole_hopf_integral(x: float, t: float, u: float) -> None:
    assert Burgers().reference(np.array([[x, t]]))[0] == pytest.approx(u, rel=1e-11, abs=1e-13)


def test_the_burgers_reference_is_the_published_one(data_root: Path) -> None:
    path = data_root / "pde" / "pinns" / "burgers_shock.mat"
    if not path.is_file():
        pytest.skip("no pde/pinns/burgers_shock.mat among the development data")
    published = scipy.io.loadmat(path)
    problem = Burgers()
    for axis, name in zip(problem.axes, ("x", "t"), strict=True):
        np.testing.assert_allclose(axis, published[name].ravel(), atol=1e-15)
    u = problem.reference(problem.grid).reshape(256, 100)
    assert np.linalg.norm(u - published["usol"]) < 1e-8 * np.linalg.norm(u)


@pytest.mark.parametrize("make", [lambda: Burgers(0.0), lambda: Burgers(2.0), lambda: Heat(0.0), lambda: Poisson(0)])
def test_an_equation_without_a_known_solution_is_refused(make: Any) -> None:
    with pytest.raises(SettingsError, match="must be"):
        make()


# --- points ------------------------------------------------------------------------------------------------------


@PROBLEMS
@SAMPLINGS
def test_points_lie_in_the_domain_and_the_solution_is_known_on_its_faces(problem: Problem, sampling: str) -> None:
    points = draw_points(problem, 100, 41, sampling, seed=3)
    low, high = torch.tensor(problem.domain).unbind(1)
    x = points.coordinates
    assert ((x >= low) & (x <= high)).all()
    assert points.is_data.tolist() == [False] * 100 + [True] * 41
    on_face = torch.stack([x[:, f.axis] == f.value for f in problem.faces], 1)
    assert on_face[100:].any(1).all()
    assert not on_face[:100].any()
    counts = on_face[100:].sum(0)
    for face, count in zip(problem.faces, counts.tolist(), strict=True):
        assert abs(count - 41 * face.share) <= len(problem.faces)
    expected = problem.reference(x[100:].double().numpy())
    np.testing.assert_allclose(points.solution[100:, 0], expected, atol=1e-6)
    assert not points.solution[:100].any()


@SAMPLINGS
def test_points_follow_from_their_seed(sampling: str) -> None:
    first, again, other = (draw_points(Heat(), 30, 9, sampling, seed).coordinates for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 39


def test_sobol_points_fill_the_domain_evenly() -> None:
    worst = {}
    for sampling in ("sobol", "uniform"):
        x = draw_points(Heat(), 1024, 4, sampling).coordinates[:1024].numpy()
        counts, *_ = np.histogram2d(x[:, 0], x[:, 1], bins=16, range=[[-1, 1], [0, 1]])
        worst[sampling] = np.abs(counts - 4).max()
    assert worst["sobol"] == 0  # a net: exactly four points in each of 256 boxes
    assert worst["uniform"] > 3


@pytest.mark.parametrize("options", [
    {"sampling": "grid"}, {"n_data": 2}, {"n_residual": -1}, {"batch_size": 0}, {"viscosity": 3.0},
])  # fmt: skip
def test_points_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        small_data(**options)


def test_equations_have_names_and_own_options() -> None:
    assert data.names("equations") == ["burgers", "heat", "poisson"]
    assert data.build("poisson", waves=2, augment=None).problem == Poisson(2)
    for option, wanted in ("augment", "images"), ("limit_train", "images and text and frames"), ("context", "text"):
        with pytest.raises(SettingsError, match=f"is for {wanted}; the data set heat holds equations"):
            data.build("heat", **{option: 5})
    with pytest.raises(SettingsError, match="unknown option of data set heat 'viscosity'"):
        data.build("heat", viscosity=0.1)
    with pytest.raises(UnknownNameError, match="burgers"):
        data.build("burger")


def test_a_batch_holds_any_points_and_is_never_collated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = PointData("burgers", batch_size=10_400)
    module.setup("fit")
    monkeypatch.setattr("torch.utils.data._utils.collate.default_collate", None)
    (batch,) = list(module.train_dataloader())
    assert [tuple(c.shape) for c in batch] == [(10_400, 2), (10_400, 1), (10_400,)]
    assert int(batch[2].sum()) == 400
    part = module.loader(Subset(module.train_set, [10_000, 1, 10_399]), shuffle=False)
    coordinates, solution, is_data = next(iter(part))
    assert torch.equal(coordinates, module.train_set.coordinates[[10_000, 1, 10_399]])
    assert torch.equal(solution, module.train_set.solution[[10_000, 1, 10_399]])
    assert is_data.tolist() == [True, False, True]


def test_an_item_is_a_point() -> None:
    coordinates, solution, is_data = small_data().train_set[47]
    assert coordinates.shape == (2,)
    assert solution.shape == (1,)
    assert is_data is True


def test_the_test_part_is_the_grid_of_the_reference() -> None:
    points = grid_points(Burgers())
    assert len(points) == 256 * 100
    assert points.is_data.all()
    first_row = points.solution[::100, 0]  # t = 0
    torch.testing.assert_close(first_row, -torch.sin(math.pi * torch.linspace(-1, 1, 256)), atol=1e-6, rtol=0)


# --- the model ---------------------------------------------------------------------------------------------------


def test_the_network_scales_its_inputs_and_starts_as_published() -> None:
    torch.manual_seed(0)
    model = models.build("pinn_mlp", {"domain": ((-1.0, 1.0), (0.0, 4.0))}, layers=3, width=400)
    scaled = model.scale(torch.tensor([[-1.0, 0.0], [1.0, 4.0], [0.0, 1.0]]))
    assert scaled.tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, -0.5]]
    for layer in (model.fc2, model.fc3):
        std = (2 / 800) ** 0.5
        assert layer.weight.abs().max() <= 2 * std
        # The standard deviation of a normal distribution that is cut at two of its own.
        assert layer.weight.std().item() == pytest.approx(0.8796 * std, rel=0.01)
        assert not layer.bias.any()
    assert sum(isinstance(m, nn.Tanh) for m in model.modules()) == 3
    assert model(torch.zeros(5, 2)).shape == (5, 1)


def test_a_network_for_images_says_that_it_needs_them() -> None:
    with pytest.raises(SettingsError, match="resnet8 needs images"):
        models.build("resnet8", small_data().facts)
    with pytest.raises(SettingsError, match="at least one unit"):
        models.build("pinn_mlp", small_data().facts, layers=0)


# --- the task ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_two_terms() -> None:
    module = small_data()
    task, batch = small_task(module, residual_weight=0.5, data_weight=3.0), batch_of(module)
    points, target, is_data = batch
    with torch.no_grad():
        residual = module.problem.residual(task.model, points).square().mean()
        error = (task.model(points[is_data]) - target[is_data]).square().mean()
        assert residual > 0
        assert error > 0
    torch.testing.assert_close(task.training_step(batch), 0.5 * residual + 3 * error)
    # Without points whose solution is known there is no second term.
    torch.testing.assert_close(
        task.training_step([c[~is_data] for c in batch]).detach(),
        0.5 * module.problem.residual(task.model, points[~is_data]).square().mean().detach(),
    )


def test_gradients_of_the_loss_are_those_of_finite_differences() -> None:
    module = small_data()
    task = small_task(module).double()
    batch = [c.double() if c.is_floating_point() else c for c in batch_of(module)]
    weight = task.model.fc2.weight
    (found,) = torch.autograd.grad(task.training_step(batch), weight)
    h = 1e-6
    with torch.no_grad():
        for i, j in ((0, 0), (3, 5)):
            at = weight[i, j].item()
            values = []
            for shift in (h, -h):
                weight[i, j] = at + shift
                values.append(float(task.training_step(batch)))
            weight[i, j] = at
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(found[i, j]), rel=1e-5)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_steps_work_where_gradients_are_off(off: Any) -> None:
    module = small_data()
    task = small_task(module)
    expected = task.training_step(batch_of(module))
    assert expected.requires_grad
    with off():
        batch = batch_of(module)
        for step in (task.training_step, task.validation_step, task.test_step):
            loss = step(batch)
            assert not loss.requires_grad
            assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    task.training_step(batch_of(module)).backward()
    assert task.model.fc1.weight.grad.abs().sum() > 0


def test_a_frozen_network_still_has_a_residual() -> None:
    module = small_data()
    task = small_task(module)
    expected = task.training_step(batch_of(module)).detach()
    task.requires_grad_(False)
    torch.testing.assert_close(task.training_step(batch_of(module)).detach(), expected)


def test_a_model_of_another_shape_is_refused() -> None:
    module = small_data()
    task = PINN(models.build("pinn_mlp", module.facts, outputs=2), module.problem)
    with pytest.raises(TaskError, match="must return solutions"):
        task.training_step(batch_of(module))


@pytest.mark.parametrize("options", [{"residual_weight": -1.0}, {"data_weight": -1.0}, {"lbfgs_steps": -1}])
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        small_task(small_data(), **options)


def test_settings_of_other_tasks_are_refused() -> None:
    module = small_data()
    with pytest.raises(SettingsError, match="label_smoothing is for classification; set it to 0 for pinn"):
        small_task(module, label_smoothing=0.1)
    with pytest.raises(SettingsError, match="residual_weight is for pinn; set it to 1 for classification"):
        tasks.build("classification", nn.Identity(), {"num_classes": 2}, residual_weight=2.0)


@NO_VALIDATION
def test_training_lowers_the_error_and_logs_both_terms() -> None:
    module = small_data(n_data=60, batch_size=100)
    task = small_task(module, lr=1e-2)
    trainer = pl.Trainer(max_epochs=150, **TRAINER)
    (before,) = trainer.test(task, module.test_dataloader(), verbose=False)
    trainer.fit(task, module.train_dataloader())
    assert {"train_loss", "train_residual", "train_data"} <= set(trainer.callback_metrics)
    (after,) = trainer.test(task, module.test_dataloader(), verbose=False)
    assert set(after) == {"test_loss", "test_residual", "test_data", "test_l2"}
    assert after["test_l2"] < 0.9 * before["test_l2"]


def test_the_relative_error_is_that_of_the_whole_grid_whatever_the_batches() -> None:
    module = small_data(batch_size=7_001)
    task = small_task(module)
    (found,) = pl.Trainer(**TRAINER).test(task, module.test_dataloader(), verbose=False)
    problem = module.problem
    with torch.no_grad():
        u = task(torch.from_numpy(problem.grid).float())[:, 0].double().numpy()
    reference = problem.reference(problem.grid)
    expected = np.linalg.norm(u - reference) / np.linalg.norm(reference)
    assert found["test_l2"] == pytest.approx(expected, rel=1e-5)


def test_lbfgs_lowers_the_loss_over_all_points() -> None:
    module = small_data()
    task, batch = small_task(module), batch_of(module)
    before = task.training_step(batch).item()
    after = finish(task, batch, 20)
    assert after < 0.8 * before
    assert task.training_step(batch).item() == pytest.approx(after, rel=1e-5)
    assert all(p.grad is None for p in task.parameters())


def test_lbfgs_that_fails_leaves_the_weights() -> None:
    module = small_data()
    task, batch = small_task(module), batch_of(module)
    before = [p.clone() for p in task.parameters()]
    batch[1] = torch.full_like(batch[1], torch.nan)
    finish(task, batch, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))


@NO_VALIDATION
def test_a_fit_ends_with_lbfgs_if_asked() -> None:
    module = small_data()
    losses = {}
    for steps in (0, 30):
        task = small_task(module, lbfgs_steps=steps)
        pl.Trainer(max_epochs=1, **TRAINER).fit(task, module.train_dataloader())
        losses[steps] = task.weighted(*task.terms(batch_of(module))[1:]).item()
    assert losses[30] < 0.8 * losses[0]


# --- search and comparison ---------------------------------------------------------------------------------------


SPACE = {
    "cell": {
        "u1": {"inputs": "x", "candidates": ["tanh", "sin", "beta_mul"]},
        "u2": {"inputs": "x", "candidates": ["gauss", "identity"]},
        "b1": {"inputs": ["u1", "u2"], "candidates": ["mul", "add"]},
    },
    "output": "b1",
    "clip": {"kind": "smooth", "limit": 10.0},
    "constraints": {"smoothness": 2},
}


@pytest.mark.parametrize("evaluator", ["dense", "auto"])
def test_a_search_on_a_small_network_ends_with_a_discrete_function(tmp_path: Path, evaluator: str) -> None:
    module = small_data(batch_size=18)
    task = small_task(module)
    before = {name: p.clone() for name, p in task.named_parameters()}
    result = actsearch.search(
        task,
        module,
        space=SPACE,
        evaluator=evaluator,
        epochs=3,
        warm="tanh",
        alpha_lr=0.05,
        refine={"evaluations": 5},
        run_root=tmp_path,
        observers=[],
        callbacks=[],
        trainer={"accelerator": "cpu"},
    )
    assert result.snapshot.phase == "discrete"
    assert result.snapshot.skipped == 0
    assert {"val_residual", "val_data", "arch/train_residual", "train/train_data"} <= set(result.snapshot.metrics)
    assert result.inputs.isfinite().all()
    assert any(not torch.equal(p, before[name]) for name, p in task.named_parameters())
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    assert derivative(result.activation(x)[:, None], x).isfinite().all()


def test_second_order_search_steps_work(tmp_path: Path) -> None:
    module = small_data(batch_size=18)
    result = actsearch.search(
        small_task(module), module, space=SPACE, evaluator="dense", epochs=3, order=2, warm="tanh",
        refine={"enabled": False}, run_root=tmp_path, observers=[], callbacks=[], trainer={"accelerator": "cpu"},
    )  # fmt: skip
    assert result.snapshot.skipped == 0


def test_a_split_keeps_the_share_of_known_points() -> None:
    module = small_data(n_residual=40, n_data=8)
    weights, arch = actsearch.search.split.split(48, 0.25, 0, actsearch.search.split.labels_of(module.train_set))
    assert int(module.train_set.is_data[arch].sum()) == 2
    assert int(module.train_set.is_data[weights].sum()) == 6


def test_a_comparison_is_by_the_relative_error(tmp_path: Path) -> None:
    module = small_data(batch_size=10_000)
    found = compare(
        lambda: small_task(module),
        module,
        [contestant("tanh"), contestant("sin")],
        seeds=[0],
        budget=Budget(1),
        directory=tmp_path,
        trainer={"accelerator": "cpu", "log_every_n_steps": 1},
        reference="tanh",
    )
    assert found.metric == "test_l2"
    assert not found.higher_is_better
    assert 0 < found.row("sin").mean < 10
