"""Physics-informed networks: a network trained to solve a differential equation (Raissi et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import actsearch._torchvision  # noqa: F401

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from actsearch.data.pde import Problem
from actsearch.errors import SettingsError, TaskError
from actsearch.tasks.optim import Task
from actsearch.work import under_way

HISTORY = 50  # pairs that L-BFGS keeps, as in the released code of Raissi et al.


class RelativeL2(Metric):
    """‖output - target‖ / ‖target‖ over all points of an epoch and all processes."""

    error: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("error", "scale"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        # Not in place: the state may have been made in inference mode.
        self.error = self.error + (output - target).square().sum()
        self.scale = self.scale + target.square().sum()

    def compute(self) -> Tensor:
        return (self.error / self.scale).sqrt()


class PINN(Task):
    """Trains `model`, points (B, d) → solution (B, 1), on batches of `actsearch.data.PointData`.

    Loss: `residual_weight` · the mean square of the equation's residual at all points of the batch + `data_weight` ·
    the mean square error at those whose solution is known; W_F and W_u of arXiv 1909.12228. A batch without such points
    has no second term. Logs, once an epoch, train_loss, train_residual and train_data (the two terms unweighted), val_…
    and test_…, and val_l2 and test_l2: the relative L2 error over all points whose solution is known.

    The activations must be twice differentiable. `lbfgs_steps` iterations of L-BFGS with a strong Wolfe line search,
    over all training points at once, may follow at the end of `Trainer.fit`; a search never takes them. Terms that a
    callback adds, such as slope recovery, are not in their loss.
    `optim` are the fields of `actsearch.tasks.OptimSettings`.
    Raises SettingsError for settings out of range and TaskError for a model that does not return such a solution.
    """

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        *,
        residual_weight: float = 1.0,
        data_weight: float = 1.0,
        lbfgs_steps: int = 0,
        **optim: Any,
    ) -> None:
        super().__init__(model, **optim)
        if not (residual_weight >= 0 and data_weight >= 0):
            raise SettingsError(
                f"residual_weight and data_weight cannot be negative, as {residual_weight} or {data_weight} is"
            )
        if lbfgs_steps < 0:
            raise SettingsError(f"lbfgs_steps must be 0 or more, not {lbfgs_steps}")
        self.problem = problem
        self.residual_weight = residual_weight
        self.data_weight = data_weight
        self.lbfgs_steps = lbfgs_steps
        self.val_l2 = RelativeL2()
        self.test_l2 = RelativeL2()
        self.save_hyperparameters(ignore=["model", "problem"])

    def terms(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Solution (B, 1), mean square residual (0-d) and mean square error where the solution is known (0-d)."""
        points, target, is_data = batch
        u, residual = self.problem.solve(self, points)
        if u.shape != target.shape:
            raise TaskError(f"the model must return solutions {tuple(target.shape)}, not {tuple(u.shape)}")
        known = is_data[:, None]
        error = torch.where(known, u - target, 0.0).square().sum() / known.sum().clamp(min=1)
        return u, residual.square().mean(), error

    def weighted(self, residual: Tensor, error: Tensor) -> Tensor:
        """The loss made of its two terms."""
        return self.residual_weight * residual + self.data_weight * error

    def step(self, part: str, batch: Sequence[Tensor]) -> Tensor:
        u, residual, error = self.terms(batch)
        loss = self.weighted(residual, error)
        self.log_epoch(part, len(u), loss=loss.detach(), residual=residual.detach(), data=error.detach())
        if part != "train":
            _, target, is_data = batch
            self._log_l2(part, u.detach()[is_data], target[is_data])
        return loss

    def _log_l2(self, part: str, u: Tensor, target: Tensor) -> None:
        metric = self.val_l2 if part == "val" else self.test_l2
        metric.update(u, target)
        if self.has_trainer:
            self.log(f"{part}_l2", metric, on_step=False, on_epoch=True, prog_bar=True, batch_size=max(1, len(u)))

    def on_fit_start(self) -> None:
        if self.lbfgs_steps and self.trainer.world_size > 1:
            raise SettingsError("lbfgs_steps needs all training points in one process; set it to 0, or devices to 1")

    def on_train_end(self) -> None:
        """The L-BFGS finish. Early enough for `Trainer.test`; checkpoints of the last epoch do not have it."""
        if self.lbfgs_steps:
            loader: Any = self.trainer.train_dataloader
            batches = [self.transfer_batch_to_device(batch, self.device, 0) for batch in loader]
            finish(self, [torch.cat(column) for column in zip(*batches, strict=True)], self.lbfgs_steps)


def finish(task: PINN, batch: Sequence[Tensor], steps: int) -> float:
    """Train the weights of `task` on one `batch` by at most `steps` iterations of L-BFGS; the loss at the end.

    The weights stay as they were if that does not lower it.
    """
    weights = [p for p in task.parameters() if p.requires_grad]
    before = [w.detach().clone() for w in weights]
    optimizer = torch.optim.LBFGS(
        weights, max_iter=steps, history_size=HISTORY, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        return task.weighted(*task.terms(batch)[1:])

    with under_way("L-BFGS", steps, "iterations") as work:

        def closure() -> float:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            work.at(optimizer.state[weights[0]].get("n_iter", 0))
            return value.item()

        start: float = optimizer.step(closure)
    optimizer.zero_grad()
    end = loss().item()
    if not end < start:  # so written, it takes back what is not finite too
        with torch.no_grad():
            for w, old in zip(weights, before, strict=True):
                w.copy_(old)
        return start
    return end
