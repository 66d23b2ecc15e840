"""The binary operations: the 9 of the published space and those of the older literature (references in `unary`)."""

from __future__ import annotations

import torch
from torch import Tensor

from actsearch.ops.guard import SATURATED, limit, power_bound
from actsearch.ops.spec import OpParameter, registrar
from actsearch.ops.unary import GRAFS, RAMACHANDRAN

DIVISOR_OFFSET = 1e-3  # the ε of x1 / (x2 + ε), and the least |x2 + ε|

_LINEAR = power_bound(1)
_PRODUCT = power_bound(2)
_QUOTIENT = power_bound(1, margin=1e-10)  # the second derivative is 2 x1 / ε³
_GAMMA = OpParameter("gamma", mean=0.0)


def add(x1: Tensor, x2: Tensor) -> Tensor:
    return limit(x1, _LINEAR) + limit(x2, _LINEAR)


def sub(x1: Tensor, x2: Tensor) -> Tensor:
    return limit(x1, _LINEAR) - limit(x2, _LINEAR)


def mul(x1: Tensor, x2: Tensor) -> Tensor:
    return limit(x1, _PRODUCT) * limit(x2, _PRODUCT)


def sigmoid_mul(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.sigmoid(x1) * limit(x2, _LINEAR)


def beta_mix(x1: Tensor, x2: Tensor, gamma: Tensor) -> Tensor:
    share = torch.sigmoid(gamma).to(x1.dtype)
    return share * limit(x1, _LINEAR) + (1 - share) * limit(x2, _LINEAR)


def left(x1: Tensor, x2: Tensor) -> Tensor:
    return x1


def right(x1: Tensor, x2: Tensor) -> Tensor:
    return x2


def div(x1: Tensor, x2: Tensor) -> Tensor:
    divisor = x2 + DIVISOR_OFFSET
    floor = torch.where(divisor < 0, -DIVISOR_OFFSET, DIVISOR_OFFSET).to(divisor.dtype)
    divisor = torch.where(divisor.abs() < DIVISOR_OFFSET, floor, divisor)
    # x1 / divisor² in the derivative overflows with the square of the divisor.
    return limit(x1, _QUOTIENT) / limit(divisor, _PRODUCT)


def exp_abs_diff(x1: Tensor, x2: Tensor) -> Tensor:
    return (-(limit(x1, _LINEAR) - limit(x2, _LINEAR)).abs()).exp()


def exp_sq_diff(x1: Tensor, x2: Tensor) -> Tensor:
    difference = limit(x1, _LINEAR) - limit(x2, _LINEAR)
    return (-difference.clamp(-SATURATED, SATURATED).square()).exp()


_grafs = registrar(2, "grafs", GRAFS)
_literature = registrar(2, "literature", RAMACHANDRAN)

_grafs("add", add, "x1 + x2", printed="({0} + {1})", commutative=True, exact_within=_LINEAR)
_grafs("sub", sub, "x1 - x2", printed="({0} - {1})", exact_within=_LINEAR)
_grafs("mul", mul, "x1 * x2", printed="{0} * {1}", commutative=True, exact_within=_PRODUCT)
_grafs(
    "max",
    torch.maximum,
    "max(x1, x2)",
    smoothness=0,
    tie_kinks=True,
    commutative=True,
    idempotent=True,
    contracting=True,
)
_grafs(
    "min",
    torch.minimum,
    "min(x1, x2)",
    smoothness=0,
    tie_kinks=True,
    commutative=True,
    idempotent=True,
    contracting=True,
)
_grafs(
    "sigmoid_mul",
    sigmoid_mul,
    "x2 / (1 + exp(-x1))",
    printed="sigmoid({0}) * {1}",
    contracting=True,
    exact_within=_LINEAR,
)
_grafs(
    "beta_mix",
    beta_mix,
    "x1 / (1 + exp(-gamma)) + x2 / (1 + exp(gamma))",
    printed="({gamma_share} * {0} + {gamma_rest} * {1})",
    parameters=(_GAMMA,),
    contracting=True,
    idempotent=True,
    exact_within=_LINEAR,
)
_grafs("left", left, "x1", printed="{0}", contracting=True, projection=True, complexity=0)
_grafs("right", right, "x2", printed="{1}", contracting=True, projection=True, complexity=0)

_literature(
    "div",
    div,
    f"x1 / (x2 + {DIVISOR_OFFSET})",
    printed=f"({{0}} / ({{1}} + {DIVISOR_OFFSET}))",
    smoothness=-1,
    exact_within=_QUOTIENT,
)
_literature(
    "exp_abs_diff",
    exp_abs_diff,
    "exp(-abs(x1 - x2))",
    range=(0.0, 1.0),
    smoothness=0,
    tie_kinks=True,
    commutative=True,
    exact_within=_LINEAR,
)
_literature(
    "exp_sq_diff",
    exp_sq_diff,
    "exp(-(x1 - x2)**2)",
    range=(0.0, 1.0),
    commutative=True,
    exact_within=_LINEAR,
)
