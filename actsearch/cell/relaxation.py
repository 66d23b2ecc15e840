"""Relaxations: how the α of a slot become weights on the simplex.

Softmax: DARTS, Liu et al., arXiv 1806.09055. Gumbel straight-through: GDAS, Dong & Yang, arXiv 1910.04465. Dirichlet:
DrNAS, Chen et al., arXiv 2006.10355, as used by GRAFS, arXiv 2408.06820.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet as DirichletDistribution
from torch.distributions import kl_divergence

from actsearch.errors import SettingsError, UnknownNameError


class Relaxation(ABC):
    """Maps the α of a slot's survivors, shape (n,), to weights; all in float32 and outside autocast."""

    stochastic: bool

    @abstractmethod
    def expected(self, alpha: Tensor) -> Tensor:
        """Mean weights, shape (n,): what is logged, and what discretisation ranks."""

    @abstractmethod
    def sample(self, alpha: Tensor, n: int) -> Tensor:
        """`n` draws of the weights, shape (n, len(alpha)), differentiable in α; uses torch's global generator."""

    def anchor(self, alpha: Tensor) -> Tensor:
        """Penalty that keeps the distribution near its start, a 0-d tensor; 0 unless the relaxation defines one."""
        return alpha.new_zeros(())

    def at_epoch(self, epoch: int, epochs: int) -> None:  # noqa: B027  most relaxations do not anneal
        """Told at the start of every epoch, counted from 0; for relaxations that anneal."""


@dataclass
class Softmax(Relaxation):
    """p = softmax(α / temperature), the same for every site."""

    temperature: float = 1.0
    stochastic = False

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)

    def expected(self, alpha: Tensor) -> Tensor:
        return torch.softmax(alpha / self.temperature, dim=-1)

    def sample(self, alpha: Tensor, n: int) -> Tensor:
        return self.expected(alpha).expand(n, -1)


class _StraightThrough(torch.autograd.Function):
    """One-hot of the largest entry forwards, identity backwards; exact, where `hard + soft - soft` rounds."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor) -> Tensor:
        return F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


@dataclass
class Gumbel(Relaxation):
    """One-hot samples argmax(α + Gumbel noise), gradients by the softmax at a temperature that falls linearly."""

    temperature: float = 10.0
    final_temperature: float = 0.1
    stochastic = True

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)
        _check_positive("final_temperature", self.final_temperature)
        self._now = self.temperature

    def at_epoch(self, epoch: int, epochs: int) -> None:
        done = epoch / max(epochs - 1, 1)
        self._now = self.temperature + done * (self.final_temperature - self.temperature)

    def expected(self, alpha: Tensor) -> Tensor:
        return torch.softmax(alpha, dim=-1)

    def sample(self, alpha: Tensor, n: int) -> Tensor:
        uniform = torch.rand(n, len(alpha), device=alpha.device, dtype=alpha.dtype)
        noise = -(-uniform.clamp(min=torch.finfo(alpha.dtype).tiny).log()).clamp(min=1e-20).log()
        return _StraightThrough.apply(torch.softmax((alpha + noise) / self._now, dim=-1))


@dataclass
class Dirichlet(Relaxation):
    """p ~ Dirichlet(ρ), ρ = max(ELU(α) + 1, floor), with its pathwise gradient.

    Small concentrations make the gradient NaN (PyTorch issue 76030), so they stop at `concentration_floor`.
    `anchor` is KL(Dirichlet(ρ) ‖ Dirichlet(1)), the regulariser of DrNAS, eq. 6.
    """

    concentration_floor: float = 0.05
    stochastic = True

    def __post_init__(self) -> None:
        if not 1e-3 <= self.concentration_floor <= 1:
            raise SettingsError(f"concentration_floor must lie between 0.001 and 1, not {self.concentration_floor!r}")

    def concentration(self, alpha: Tensor) -> Tensor:
        """ρ, shape of α."""
        return (F.elu(alpha) + 1).clamp(min=self.concentration_floor)

    def expected(self, alpha: Tensor) -> Tensor:
        concentration = self.concentration(alpha)
        return concentration / concentration.sum()

    def sample(self, alpha: Tensor, n: int) -> Tensor:
        return DirichletDistribution(self.concentration(alpha), validate_args=False).rsample((n,))

    def anchor(self, alpha: Tensor) -> Tensor:
        if len(alpha) < 2:
            return alpha.new_zeros(())
        concentration = self.concentration(alpha)
        prior = DirichletDistribution(torch.ones_like(concentration), validate_args=False)
        return kl_divergence(DirichletDistribution(concentration, validate_args=False), prior)


_RELAXATIONS: dict[str, Callable[..., Relaxation]] = {"dirichlet": Dirichlet, "gumbel": Gumbel, "softmax": Softmax}


def make_relaxation(relaxation: str | Relaxation, **options: float) -> Relaxation:
    """A relaxation by name, with options of its own, or as it is. Raises UnknownNameError or SettingsError."""
    if isinstance(relaxation, Relaxation):
        return relaxation
    if relaxation not in _RELAXATIONS:
        raise UnknownNameError("relaxation", relaxation, _RELAXATIONS)
    try:
        return _RELAXATIONS[relaxation](**options)
    except TypeError:
        raise SettingsError(f"relaxation {relaxation!r} does not take the options {sorted(options)}") from None


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise SettingsError(f"{name} must be a positive finite number, not {value!r}")
