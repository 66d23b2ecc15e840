"""The task that trains force fields on energy, forces and stress."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import actsearch
from actsearch import tasks
from actsearch.cell.mixed import MixedCell
from actsearch.compare import Budget, compare, contestant
from actsearch.config import TrainingConfig
from actsearch.errors import DataError, EvaluatorError, SettingsError, TaskError
from actsearch.forcefield.frames import Frame, FrameBatch, batch_of, collate
from actsearch.forcefield.potential import ForceField, sum_by_frame
from actsearch.search.bilevel import BilevelSearch
from actsearch.tasks import ForceFieldTask, OptimSettings

import pytorch_lightning as pl  # isort: skip

CUTOFF = 3.0
TRAINER: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
}  # fmt: skip
ON_CPU: dict[str, Any] = {"accelerator": "cpu", "log_every_n_steps": 1}
ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 3e-3, "weight_decay": 0.0, "schedule": "constant"}
pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")


class Pairs(ForceField):
    """A small network of the pair's distance, cut off smoothly."""

    def __init__(self, width: int = 4) -> None:
        super().__init__((1, 8), CUTOFF, {1: -1.0, 8: -20.0})
        self.fc1, self.act, self.fc2 = nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        r = vectors.norm(dim=1, keepdim=True)
        inside = (1 - (r / CUTOFF) ** 2).clamp(min=0) ** 3
        of_pairs = (self.fc2(self.act(self.fc1(r - 1))) * inside)[:, 0]
        return sum_by_frame(of_pairs.new_zeros(len(batch.frame)).index_add(0, batch.centre, of_pairs), batch)


def frames(n: int = 12, seed: int = 0, periodic: bool = True) -> list[Frame]:
    """Frames of 2 to 5 atoms with labels of a Morse potential."""
    generator = np.random.default_rng(seed)
    found = []
    for k in range(n):
        size = 2 + k % 4
        positions = np.stack([1.2 * np.arange(size), np.zeros(size), np.zeros(size)], 1)
        positions += generator.normal(scale=0.1, size=positions.shape)
        d = positions[None] - positions[:, None]
        r = np.linalg.norm(d, axis=2) + np.eye(size)
        e = np.exp(-(r - 1.1))
        pair = (e**2 - 2 * e) * (1 - np.eye(size))
        force = ((-2 * e**2 + 2 * e) / r * (1 - np.eye(size)))[:, :, None] * d
        numbers = np.where(np.arange(size) % 2, 1, 8)
        found.append(
            Frame(
                numbers,
                positions,
                cell=10 * np.eye(3),
                pbc=np.full(3, periodic),
                energy=float(pair.sum() / 2 + np.where(numbers == 1, -1.0, -20.0).sum()),
                forces=force.sum(1),
                stress=generator.normal(scale=1e-3, size=(3, 3)) if periodic else None,
            )
        )
    return found


def unlabelled(frame: Frame) -> Frame:
    return Frame(frame.numbers, frame.positions, frame.cell, frame.pbc)


def task_of(**options: Any) -> ForceFieldTask:
    torch.manual_seed(0)
    task = tasks.build("force_field", Pairs(), {}, **{**ADAM, **options})
    assert isinstance(task, ForceFieldTask)
    return task


class Frames(pl.LightningDataModule):
    """Frames as a data module of the package gives them."""

    kind = "force_field"

    def __init__(self, known: list[Frame], batch_size: int = 4) -> None:
        super().__init__()
        self.known, self.batch_size = known, batch_size
        self.train_set = [batch_of([f], CUTOFF) for f in known]

    def loader(self, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(self.train_set, self.batch_size, shuffle=shuffle, collate_fn=collate)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(True)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(False)


# --- the loss ----------------------------------------------------------------------------------------------------


def by_hand(task: ForceFieldTask, known: list[Frame], huber: bool) -> dict[str, float]:
    """The terms of the loss, a frame and a component at a time."""

    def of(x: float, size: int) -> float:
        if not huber:
            return x * x / size
        x = abs(x) / size
        return x * x / 2 if x <= 0.01 else 0.01 * (x - 0.005)

    terms: dict[str, list[float]] = {"energy": [], "force": [], "stress": []}
    for frame in known:
        size = len(frame.numbers)
        found = task.model(batch_of([frame], CUTOFF), stress=True)
        terms["energy"].append(of(float(found.energy.detach()) - frame.energy, size))
        assert frame.forces is not None
        assert frame.stress is not None
        for a, b in zip(found.forces.flatten().tolist(), frame.forces.flatten().tolist(), strict=True):
            terms["force"].append(of(a - b, 1))
        for a, b in zip(found.stress.flatten().tolist(), frame.stress.flatten().tolist(), strict=True):
            terms["stress"].append(of(1000.0 * (a - b), size))
    return {name: math.fsum(values) / len(values) for name, values in terms.items()}


@pytest.mark.parametrize("force_loss", ["mse", "huber"])
def test_the_loss_is_the_weighted_sum_of_its_three_means(force_loss: str) -> None:
    weights = {"energy_weight": (2.0, 0.5), "force_weight": (3.0, 0.25), "stress_weight": (5.0, 0.125)}
    task, known = task_of(force_loss=force_loss, **weights), frames()
    terms = by_hand(task, known, force_loss == "huber")
    assert all(value > 0 for value in terms.values())
    batch = batch_of(known, CUTOFF)
    start = 2 * terms["energy"] + 3 * terms["force"] + 5 * terms["stress"]
    limit = 0.5 * terms["energy"] + 0.25 * terms["force"] + 0.125 * terms["stress"]
    assert float(task.training_step(batch).detach()) == pytest.approx(start, rel=1e-4)
    assert float(task.validation_step(batch).detach()) == pytest.approx(limit, rel=1e-4)
    assert float(task.test_step(batch).detach()) == pytest.approx(limit, rel=1e-4)


def test_what_is_not_known_is_left_out() -> None:
    known = frames()
    only_energy = [Frame(f.numbers, f.positions, f.cell, f.pbc, energy=f.energy) for f in known[:5]]
    only_forces = [Frame(f.numbers, f.positions, f.cell, f.pbc, forces=f.forces) for f in known[5:]]
    nothing = unlabelled(known[0])
    task = task_of(energy_weight=(2.0, 2.0), force_weight=(3.0, 3.0), stress_weight=(1.0, 1.0))
    loss = task.training_step(batch_of([*only_energy, nothing, *only_forces], CUTOFF))
    terms = by_hand(task, known[:5], False)["energy"], by_hand(task, known[5:], False)["force"]
    assert float(loss.detach()) == pytest.approx(2 * terms[0] + 3 * terms[1], rel=1e-4)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in task.parameters())
    assert float(task.training_step(batch_of([nothing], CUTOFF)).detach()) == 0


def test_small_differences_of_great_energies_are_kept() -> None:
    known = frames(1)[0]
    task = task_of(force_weight=(0.0, 0.0))
    exact = float(task.model(batch_of([known], CUTOFF), forces=False).energy.detach())
    task.model.references += 1e6
    labelled = Frame(known.numbers, known.positions, known.cell, known.pbc, energy=exact + 2e6 + 1e-3)
    (difference,) = task.differences("train", batch_of([labelled], CUTOFF))["energy"].tolist()
    assert difference == pytest.approx(-1e-3, rel=1e-4)


def test_gradients_of_the_loss_are_those_of_finite_differences() -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        task, batch = task_of(stress_weight=(1.0, 1.0)), batch_of(frames(), CUTOFF)
        for weight in (task.model.fc1.weight, task.model.fc2.weight):
            (found,) = torch.autograd.grad(task.training_step(batch), weight)
            at, h, values = weight.detach().clone(), 1e-6, []
            for shift in (h, -h):
                with torch.no_grad():
                    weight.copy_(at)
                    weight.view(-1)[1] += shift
                values.append(float(task.training_step(batch).detach()))
            with torch.no_grad():
                weight.copy_(at)
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(found.view(-1)[1]), rel=1e-5)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_steps_work_where_gradients_are_off(off: Any) -> None:
    task, batch = task_of(), batch_of(frames(), CUTOFF)
    expected = task.training_step(batch)
    assert expected.requires_grad
    with off():
        for step in (task.training_step, task.validation_step, task.test_step):
            assert not step(batch).requires_grad
        assert float(task.training_step(batch)) == pytest.approx(float(expected.detach()), rel=1e-6)
    task.validation_step(batch)  # with metrics whose state was made in inference mode
    task.training_step(batch).backward()
    assert task.model.fc1.weight.grad.abs().sum() > 0


def test_stress_is_not_trained_on_molecules() -> None:
    mixed = batch_of([*frames(2), Frame(np.array([1, 8]), np.eye(3)[:2])], CUTOFF)
    with pytest.raises(DataError, match="periodic frames only"):
        task_of(stress_weight=(1.0, 1.0)).training_step(mixed)
    assert task_of().training_step(mixed).isfinite()


@pytest.mark.parametrize(("options", "message"), [
    ({"energy_weight": (1.0,)}, "energy_weight must be two numbers"),
    ({"force_weight": (-1.0, 1.0)}, "force_weight must be two numbers"),
    ({"stress_weight": (math.nan, 1.0)}, "stress_weight must be two numbers"),
    ({"energy_weight": (0, 0), "force_weight": (0, 0)}, "must be above 0"),
    ({"force_loss": "hubert"}, "did you mean"),
    ({"ema": 1.0}, "ema must be"),
    ({"schedule": "exponential"}, "set final_lr above 0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        task_of(**options)


def test_settings_of_force_fields_are_for_them_alone() -> None:
    with pytest.raises(TaskError, match="Linear is none"):
        tasks.build("force_field", nn.Linear(1, 1), {})
    for name, value, default in (
        ("force_weight", (1.0, 1.0), r"\[1000, 1\]"), ("force_loss", "huber", "mse"), ("ema", 0.9, "0"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=f"{name} is for force_field; set it to {default} for classification"):
            tasks.build("classification", nn.Linear(1, 2), {"num_classes": 2}, **{name: value})
    config = TrainingConfig()
    own = {"force_weight": list(config.force_weight), "force_loss": config.force_loss, "ema": config.ema}
    tasks.build("classification", nn.Linear(1, 2), {"num_classes": 2}, **own)


# --- training ----------------------------------------------------------------------------------------------------


class Seen(pl.Callback):
    """The prefactor of energy at every training step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(pl_module.prefactors("train")["energy"])


def fit(task: ForceFieldTask, known: list[Frame], epochs: int = 3, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(**{**TRAINER, "max_epochs": epochs, **options})
    trainer.fit(task, Frames(known).loader(False))
    return trainer


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_prefactors_go_from_start_to_limit_with_the_learning_rate(interval: str) -> None:
    schedule = {"schedule": "exponential", "lr": 1e-2, "final_lr": 1e-4, "interval": interval}
    task, seen = task_of(energy_weight=(0.02, 1.0), **schedule), Seen()
    fit(task, frames(), epochs=4, callbacks=[seen])
    n = 12 if interval == "step" else 4
    rates = np.repeat(0.01 ** (np.arange(n) / n), 12 // n)
    np.testing.assert_allclose(seen.values, 1 - rates + 0.02 * rates, rtol=1e-9)
    assert task.prefactors("val") == {"energy": 1.0, "force": 1.0, "stress": 0.0}


def test_without_a_schedule_the_start_holds() -> None:
    task = task_of(energy_weight=(0.5, 1.0))
    assert task.prefactors("train") == {"energy": 0.5, "force": 1000.0, "stress": 0.0}


def test_the_exponential_schedule_falls_by_a_constant_factor() -> None:
    optim = OptimSettings(lr=0.1, schedule="exponential", final_lr=0.001, warmup_epochs=2)
    rates = [optim.rate(t, 12) for t in range(13)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    factors = [b / a for a, b in itertools.pairwise(rates[2:])]
    assert factors == pytest.approx([0.01 ** (1 / 10)] * 10)
    assert rates[-1] == pytest.approx(0.01)
    with pytest.raises(SettingsError, match="max_epochs"):
        optim.rate(3, None)


def test_errors_are_exact_over_unequal_batches() -> None:
    known = [*frames(9), Frame(np.array([1, 8]), np.eye(3)[:2], energy=-21.5)]
    task = task_of()
    trainer = pl.Trainer(**TRAINER)
    (found,) = trainer.test(task, Frames(known, batch_size=4).loader(False), verbose=False)
    energy, force, stress = [], [], []
    for frame in known:
        p = task.model(batch_of([frame], CUTOFF), stress=bool(frame.pbc.any()))
        energy.append((float(p.energy.detach()) - frame.energy) / len(frame.numbers))
        if frame.forces is not None and frame.stress is not None:
            force += (p.forces.double().numpy(force=True) - frame.forces).ravel().tolist()
            stress += (p.stress.double().numpy(force=True) - frame.stress).ravel().tolist()
    expected = {
        "test_energy_rmse": np.sqrt(np.mean(np.square(energy))),
        "test_energy_mae": np.mean(np.abs(energy)),
        "test_force_rmse": np.sqrt(np.mean(np.square(force))),
        "test_force_mae": np.mean(np.abs(force)),
        "test_stress_rmse": np.sqrt(np.mean(np.square(stress))),
    }
    assert set(found) == {*expected, "test_loss"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(1000 * value, rel=1e-4), name


def test_errors_of_labels_that_no_frame_has_are_not_logged() -> None:
    known = [Frame(f.numbers, f.positions, forces=f.forces) for f in frames(4)]
    (found,) = pl.Trainer(**TRAINER).test(task_of(), Frames(known).loader(False), verbose=False)
    assert set(found) == {"test_loss", "test_force_rmse", "test_force_mae"}


def test_a_training_lowers_the_errors_and_logs_them() -> None:
    task, known = task_of(lr=1e-2), frames()
    first = fit(task, known, epochs=1).callback_metrics
    last = fit(task, known, epochs=60).callback_metrics
    names = {"train_loss", "train_energy_rmse", "train_energy_mae", "train_force_rmse", "train_force_mae"}
    assert set(last) == names
    assert last["train_force_rmse"] < 0.7 * first["train_force_rmse"]


# --- the moving average ------------------------------------------------------------------------------------------


def test_the_moving_average_is_tested_and_kept() -> None:
    decay, known = 0.8, frames()
    plain, steps = task_of(), []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            steps.append(pl_module.model.fc1.weight.detach().clone())

    fit(plain, known, epochs=3, callbacks=[Keep()])
    average = steps[0]
    for weight in steps[1:]:
        average = decay * average + (1 - decay) * weight
    averaged = task_of(ema=decay)
    trainer = fit(averaged, known, epochs=3)
    torch.testing.assert_close(averaged.model.fc1.weight.detach(), average)
    assert not torch.equal(averaged.model.fc1.weight, plain.model.fc1.weight)
    assert torch.equal(averaged.model.index_of_number, plain.model.index_of_number)
    loader = Frames(known).loader(False)
    (found,) = trainer.test(averaged, loader, verbose=False)
    (again,) = pl.Trainer(**TRAINER).test(averaged, loader, verbose=False)
    (other,) = pl.Trainer(**TRAINER).test(plain, loader, verbose=False)
    assert found == again
    assert found["test_force_rmse"] != other["test_force_rmse"]


def test_a_comparison_tests_the_moving_average(tmp_path: Path) -> None:
    found = {}
    for ema in (0.0, 0.9):
        result = compare(
            lambda ema=ema: task_of(ema=ema),  # type: ignore[misc]
            Frames(frames()),
            [contestant("tanh")],
            seeds=[0],
            budget=Budget(3),
            directory=tmp_path / str(ema),
            trainer=ON_CPU,
        )
        assert result.metric == "test_force_rmse"
        (found[ema],) = result.rows[0].values
    assert found[0.0] != found[0.9]


# --- the search --------------------------------------------------------------------------------------------------


class Losses:
    """Training loss of each epoch, and prefactors at both levels."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, snapshot: Any) -> None:
        self.values.append(snapshot.losses["train"])


@pytest.mark.parametrize(("order", "evaluator"), [(1, "dense"), (2, "dense"), (1, "auto")])
def test_a_search_with_forces_lowers_the_loss(order: Any, evaluator: Any, tmp_path: Path) -> None:
    task = task_of(lr=1e-2, ema=0.9, energy_weight=(1.0, 1.0), force_weight=(1.0, 1.0))
    losses = Losses()
    actsearch.search(
        task, Frames(frames(16), batch_size=8), space="smooth_c2", run_root=tmp_path, trainer=ON_CPU,
        observers=[losses], callbacks=[], epochs=4, order=order, evaluator=evaluator, warm="tanh", warm_epochs=1,
        shrink_start=2,
    )  # fmt: skip
    assert len(losses.values) == 4
    assert losses.values[-1] < 0.9 * losses.values[0]


def test_both_levels_of_a_search_see_the_same_weights_of_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[float]] = {"arch": [], "train": []}
    original = BilevelSearch._loss

    def loss(self: BilevelSearch, batch: Any, index: int, level: str | None) -> Tensor:
        if level in seen:
            seen[level].append(self.task.prefactors("train")["energy"])
        return original(self, batch, index, level)

    monkeypatch.setattr(BilevelSearch, "_loss", loss)
    monkeypatch.setattr("actsearch.tasks.force_field.EMAWeightAveraging", None)  # a search has no moving average
    task = task_of(ema=0.9, lr=1e-2, schedule="exponential", final_lr=1e-4, interval="step")
    actsearch.search(
        task, Frames(frames(16), batch_size=4), space="smooth_c2", run_root=tmp_path, trainer=ON_CPU,
        observers=[], callbacks=[], warm="tanh", epochs=2, evaluator="dense", shrink=False,
    )  # fmt: skip
    n = len(seen["train"])
    rates = 0.01 ** (np.arange(n) / n)
    assert seen["arch"] == seen["train"]
    np.testing.assert_allclose(seen["train"], 1 - rates + 0.02 * rates, rtol=1e-9)


@pytest.mark.parametrize("keeps_input", [True, False])
def test_forces_through_a_table_have_the_gradients_of_the_dense_cell_or_none(keeps_input: bool) -> None:
    batch, found = batch_of(frames(12), CUTOFF), {}
    for evaluator in ("dense", "table"):
        task = task_of(energy_weight=(0.0, 0.0), force_weight=(1.0, 1.0))
        cell = MixedCell("smooth_c2", relaxation="softmax", evaluator=evaluator)
        cell.evaluator.keeps_input = keeps_input
        task.model.act = cell.add_site("act")
        cell.resample()
        if evaluator == "table" and not keeps_input:
            with pytest.raises(EvaluatorError, match="second derivative"):
                task.training_step(batch)
            return
        wanted = [*cell.alpha.values(), task.model.fc1.weight]
        found[evaluator] = torch.autograd.grad(task.training_step(batch), wanted)
    for dense, table in zip(found["dense"], found["table"], strict=True):
        assert dense.abs().max() > 0
        torch.testing.assert_close(table, dense, rtol=1e-3, atol=1e-4 * float(dense.abs().max()))
