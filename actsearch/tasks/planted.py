"""Planted functions: a teacher network with a known activation makes the data, a student searches for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from actsearch.ops.formula import to_torch
from actsearch.tasks.regression import Regression

Function = Callable[[Tensor], Tensor]

# The teachers that the search is proven on; ReLU² is no operation of the space and needs a composition.
TEACHERS = {"silu": "silu(x)", "relu2": "relu(x)**2", "tanh": "tanh(x)", "sin": "sin(x)", "softplus": "softplus(x)"}


class _Function(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Planted:
    """Data from y = W₂ f(W₁ x) with x ~ N(0, I) and rows of W₁ of norm 1, so that f sees exactly N(0, 1).

    Args:
        formula: of f, by the name of a teacher or in the language of `actsearch.ops.formula`; parsed, never evaluated.
        width, inputs, outputs: of the network.
        examples: number of (x, y).
        seed: of weights and data.

    Raises FormulaError for a formula that is not in the language.
    """

    def __init__(
        self, formula: str, width: int = 32, inputs: int = 16, outputs: int = 8, examples: int = 4096, seed: int = 0
    ) -> None:
        self.formula = TEACHERS.get(formula, formula)
        self.function = to_torch(self.formula)
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(width, inputs, generator=generator)
        self._first = first / first.norm(dim=1, keepdim=True)
        self._second = torch.randn(outputs, width, generator=generator) / math.sqrt(width)
        x = torch.randn(examples, inputs, generator=generator)
        with torch.no_grad():
            y = self.function(x @ self._first.T) @ self._second.T
        # Losses of different teachers are then comparable; the scale goes into the last layer.
        scale = y.std()
        self._second /= scale
        self.data = TensorDataset(x, y / scale)
        self._shape = (inputs, width, outputs)

    def loader(self, batch_size: int = 128) -> DataLoader[tuple[Tensor, ...]]:
        """The data in batches."""
        return DataLoader(self.data, batch_size=batch_size, shuffle=True)

    def network(self, activation: nn.Module) -> nn.Sequential:
        """A network of the teacher's shape with torch's initial weights and biases; the activation is `act`."""
        inputs, width, outputs = self._shape
        model = nn.Sequential()
        model.add_module("first", nn.Linear(inputs, width))
        model.add_module("act", activation)
        model.add_module("second", nn.Linear(width, outputs))
        return model

    def student(self, teacher_weights: bool, lr: float = 3e-3) -> Regression:
        """A task whose activation is to be searched, with the teacher's weights, frozen, or with its own."""
        model = self.network(nn.ReLU())
        if teacher_weights:
            with torch.no_grad():
                model.first.weight.copy_(self._first)  # type: ignore[operator,union-attr]
                model.second.weight.copy_(self._second)  # type: ignore[operator,union-attr]
                for layer in (model.first, model.second):
                    layer.bias.zero_()  # type: ignore[operator,union-attr]
            model.requires_grad_(False)
        return Regression(model, optimizer="adam", lr=lr, weight_decay=0.0)

    def distance(self, found: Function) -> float:
        """‖found - f‖ / ‖f‖ in L² of N(0, 1)."""
        z, weight = _normal_grid()
        target, values = _values(self.function, z), _values(found, z)
        return math.sqrt(float(np.sum(weight * (values - target) ** 2) / np.sum(weight * target**2)))

    def affine_distance(self, found: Function) -> float:
        """The least `distance` of c·found(a z + b) + d over a, b, c, d.

        A student that learns its weights can hide an affine map of input and output in them.
        """
        z, weight = _normal_grid()
        target = _values(self.function, z)
        norm = float(np.sum(weight * target**2))
        root = np.sqrt(weight)

        def error(ab: NDArray[np.float64]) -> float:
            values = _values(found, ab[0] * z + ab[1])
            design = np.stack([values, np.ones_like(values)], axis=1) * root[:, None]
            coefficients, *_ = np.linalg.lstsq(design, target * root, rcond=None)
            return float(np.sum((design @ coefficients - target * root) ** 2)) / norm

        starts = [(a, b) for a in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0) for b in (-1.0, 0.0, 1.0)]
        best = min(starts, key=lambda ab: error(np.array(ab)))
        refined = [minimize(error, s, method="Nelder-Mead", options={"maxiter": 300}).fun for s in (best, (1.0, 0.0))]
        return math.sqrt(max(min(refined), 0.0))


def _normal_grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in [-6, 6] and the weights of the normal density on them."""
    z = np.linspace(-6, 6, 2401)
    weight = np.exp(-0.5 * z**2)
    return z, weight / weight.sum()


def _values(function: Function, z: NDArray[np.float64]) -> NDArray[np.float64]:
    with torch.no_grad():
        return function(torch.from_numpy(z)).double().numpy()
