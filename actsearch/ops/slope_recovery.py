"""Slope recovery, S(a): a term of the loss that drives adaptive slopes up.

S(a) = 1 / [1/(D-1) · Σ_k exp(mean of the slopes of layer k)] over the D-1 hidden layers: Jagtap, Kawaguchi,
Karniadakis, Proc. R. Soc. A 476 (2020), arXiv 1909.12228. It is on a and not on n·a. It is above 0 whatever the slopes
are, so report the loss on data apart from it.

A module takes part by a method `adaptive_slopes()`, which returns its slopes: an iterable of tensors, one a layer, each
() or (C,). They should be the parameters themselves, as a tensor that comes twice counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from actsearch.errors import SettingsError, unknown_name

Reduction = Literal["mean", "sum"]


def recovery(means: Sequence[Tensor], reduction: Reduction = "mean") -> Tensor:
    """S(a) from the mean slope of each layer, 0-d tensors: a 0-d tensor with their gradient.

    reduction: "mean" over layers, as published, or "sum": 1 / Σ_k exp(a^k), which is 1/(D-1) of it.
    Raises SettingsError for another word, or without any layer.
    """
    if reduction not in get_args(Reduction):
        raise SettingsError(unknown_name("reduction of slopes", str(reduction), get_args(Reduction)))
    if not means:
        raise SettingsError("slope recovery needs at least one slope; see actsearch.ops.slopes.adapt")
    slopes = torch.stack([mean.to(means[0].device) for mean in means])
    # exp(a) overflows from a = 89 on, and the gradient of 1/∞ is NaN; its logarithm does not.
    log_sum = slopes.logsumexp(0)
    return (math.log(len(means)) - log_sum if reduction == "mean" else -log_sum).exp()


def slope_recovery(model: nn.Module, reduction: Reduction = "mean") -> Tensor:
    """S(a) of all adaptive slopes of `model`, a 0-d tensor; add it to the loss, with a weight.

    Every tensor of slopes is a layer, and the exponent is its mean; a shared tensor counts once. So a network with one
    slope (GAAF, for which no S is published) has S = exp(-a) in both reductions; by the mean that is what the formula
    gives if it counts in every layer.

    reduction: see `recovery`.
    Raises SettingsError if the model has no slopes, or some that have no size yet.
    """
    layers = layer_slopes(model)
    if any(isinstance(a, UninitializedParameter) for a in layers):
        raise SettingsError(f"slopes of {type(model).__name__} have no size yet; run it on one batch first")
    # Half precision has too few digits for a sum over thousands of channels.
    return recovery([(a.float() if a.dtype.itemsize < 4 else a).mean() for a in layers], reduction)


def layer_slopes(model: nn.Module) -> list[Tensor]:
    """The slopes of every layer of `model`, in the order of its modules; shared ones once.

    Raises SettingsError if there are none.
    """
    methods = (getattr(module, "adaptive_slopes", None) for module in model.modules())
    told: list[Iterable[Tensor]] = [method() for method in methods if callable(method)]
    layers = list({id(a): a for slopes in told for a in slopes}.values())
    if not layers:
        raise SettingsError(f"{type(model).__name__} has no adaptive slopes; actsearch.ops.slopes.adapt gives it some")
    return layers
