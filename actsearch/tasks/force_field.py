"""Force fields: energy, forces and stress fitted together, with weights that move with the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torchmetrics import Metric

from actsearch.errors import DataError, SettingsError, TaskError, unknown_name
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField, Prediction
from actsearch.tasks.optim import Task

LOSSES = ("mse", "huber")
HUBER_DELTA = 0.01
MILLI = 1000.0
KINDS = ("energy_rmse", "energy_mae", "force_rmse", "force_mae", "stress_rmse")
PARTS = ("train", "val", "test")


class MeanError(Metric):
    """(mean of |error|^power)^(1/power), times 1000, over all errors of an epoch and all processes."""

    total: Tensor
    count: Tensor

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, errors: Tensor) -> None:
        # Not in place: the state may have been made in inference mode.
        self.total = self.total + errors.double().abs().pow(self.power).sum()
        self.count = self.count + errors.numel()

    def compute(self) -> Tensor:
        return MILLI * (self.total / self.count).pow(1 / self.power)


class ForceFieldTask(Task):
    """Trains a ForceField on batches of frames (`FrameBatch`).

    Loss: p_E · mean over frames of ΔE²/N + p_F · mean over components of ΔF² + p_S · mean over frames and components of
    ΔΞ²/N, with N the atoms of a frame and Ξ its stress times its volume, eV. This is the normalisation of DeePMD-kit
    (arXiv 1712.03641 and 2304.09409; `loss/ener.py` of its release 3): ΔE² is divided by N, not by N². `force_loss`
    "huber" has Huber's H(ΔE/N), H(ΔF) and H(ΔΞ/N) instead, also as there: H(x) = x²/2 up to |x| = δ, then
    δ(|x| - δ/2), with δ = 0.01 in eV or eV/Å. A label that is not known (NaN) is left out of its mean.

    Each weight moves with the learning rate from start to limit: p = p_limit (1 - lr/lr₀) + p_start lr/lr₀. Training
    steps use the present value, of a search both levels; without a trainer, the start. Steps of validation and test use
    the limit, so that their losses can be compared between epochs.

    Logs, once an epoch, train_loss, val_loss and test_loss, and for each of these parts energy_rmse and energy_mae
    (meV an atom), force_rmse and force_mae (meV/Å, over components), stress_rmse (meV/Å³, over components; of training
    only where `stress_weight` is not 0), exactly over all frames and processes, where labels are known. In several
    processes each must see labels of the same kinds. A search logs the losses alone.

    Args:
        model: a ForceField.
        energy_weight, force_weight, stress_weight: (start, limit) of each weight.
        force_loss: "mse" or "huber".
        ema: decay of an exponential moving average of the weights, which then is validated, tested and kept; 0: off.
            A search does without it.
        optim: the fields of `actsearch.tasks.OptimSettings`.

    Raises SettingsError for settings out of range, TaskError for a model that is no ForceField, and, in a step,
    DataError for stress to be trained on together with frames that have no volume.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        energy_weight: Sequence[float] = (0.02, 1.0),
        force_weight: Sequence[float] = (1000.0, 1.0),
        stress_weight: Sequence[float] = (0.0, 0.0),
        force_loss: str = "mse",
        ema: float = 0.0,
        **optim: Any,
    ) -> None:
        super().__init__(model, **optim)
        if not isinstance(model, ForceField):
            raise TaskError(f"frames need a force field as their model; {type(model).__name__} is none")
        weights = {"energy_weight": energy_weight, "force_weight": force_weight, "stress_weight": stress_weight}
        for name, weight in weights.items():
            if len(weight) != 2 or not all(0 <= w < float("inf") for w in weight):
                raise SettingsError(f"{name} must be two numbers from 0 on, (start, limit), not {weight}")
        if not any(sum(weight) for weight in weights.values()):
            raise SettingsError("one of energy_weight, force_weight and stress_weight must be above 0")
        if force_loss not in LOSSES:
            raise SettingsError(unknown_name("force_loss", force_loss, LOSSES))
        if not 0 <= ema < 1:
            raise SettingsError(f"ema must be from 0 to below 1, not {ema}")
        self.weights = {name.removesuffix("_weight"): tuple(map(float, weight)) for name, weight in weights.items()}
        self.force_loss = force_loss
        self.ema = ema
        self.errors = nn.ModuleDict(
            {f"{part}_{kind}": MeanError(2 if kind.endswith("rmse") else 1) for part in PARTS for kind in KINDS}
        )
        self.save_hyperparameters(ignore=["model"])

    def configure_callbacks(self) -> list[pl.Callback]:
        """The moving average, in a training of its own."""
        # Buffers are copied: an average would turn the integers among them into others.
        return [EMAWeightAveraging(decay=self.ema, use_buffers=False)] if self.ema else []

    def prefactors(self, part: str) -> dict[str, float]:
        """The weights of energy, force and stress in a step of the `part` train, val or test."""
        share = self.rate if part == "train" else 0.0
        return {name: limit * (1 - share) + start * share for name, (start, limit) in self.weights.items()}

    def differences(self, part: str, batch: FrameBatch) -> dict[str, Tensor]:
        """Prediction - label where it is known: energy (b,) eV, force (n, 3) eV/Å, and stress (s, 3, 3) eV/Å³."""
        trained = part == "train"
        knows_stress = ~batch.stress.isnan().flatten(1).any(1)
        forces = not trained or any(self.weights["force"])
        stress = bool(knows_stress.any()) and (not trained or any(self.weights["stress"]))
        if stress and trained and not bool(torch.linalg.det(batch.cell).all()):
            raise DataError("stress is trained on periodic frames only; set stress_weight to 0, or leave others out")
        found: Prediction = self.model(batch, forces=forces, stress=stress)
        dtype = batch.positions.dtype
        # Totals are large and their differences small: subtracted in float64.
        differences = {"energy": (found.energy - batch.energy)[~batch.energy.isnan()].to(dtype)}
        if found.forces is not None:
            differences["force"] = (found.forces - batch.forces)[~batch.forces.isnan().any(1)]
        if found.stress is not None:
            differences["stress"] = (found.stress - batch.stress)[knows_stress]
        return differences

    def step(self, part: str, batch: Any) -> Tensor:
        sizes = batch.sizes.to(batch.positions.dtype)
        of_energy = sizes[~batch.energy.isnan()]
        differences = self.differences(part, batch)
        prefactors = self.prefactors(part)
        loss = prefactors["energy"] * self._mean(differences["energy"], of_energy)
        if "force" in differences:
            loss = loss + prefactors["force"] * self._mean(differences["force"], torch.ones_like(sizes[:1]))
        if "stress" in differences:
            known = ~batch.stress.isnan().flatten(1).any(1)
            volume = torch.linalg.det(batch.cell[known]).abs()[:, None, None]
            loss = loss + prefactors["stress"] * self._mean(volume * differences["stress"], sizes[known, None, None])
        self.log_epoch(part, len(batch), loss=loss.detach())
        if not self._is_searched:
            errors = {name: d.detach() for name, d in differences.items()}
            self._log_errors(part, len(batch), {**errors, "energy": errors["energy"] / of_energy})
        return loss

    def _mean(self, difference: Tensor, sizes: Tensor) -> Tensor:
        """Mean of the squares or of Huber's function; 0 if there is nothing."""
        if self.force_loss == "mse":
            terms = difference.square() / sizes
        else:
            x = difference / sizes
            terms = F.huber_loss(x, torch.zeros_like(x), delta=HUBER_DELTA, reduction="none")
        return terms.sum() / max(1, terms.numel())

    @property
    def _is_searched(self) -> bool:
        return self.has_trainer and self.trainer.lightning_module is not self

    def _log_errors(self, part: str, frames: int, errors: dict[str, Tensor]) -> None:
        for kind in KINDS:
            name = f"{part}_{kind}"
            found = errors.get(kind.partition("_")[0])
            if found is None or not found.numel():
                continue
            metric = self.errors[name]
            assert isinstance(metric, MeanError)
            metric.update(found)
            if self.has_trainer:
                shown = kind == "force_rmse"
                self.log(name, metric, on_step=False, on_epoch=True, prog_bar=shown, batch_size=frames)
