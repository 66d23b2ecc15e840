"""The unary operations: the 23 of the published space and those of the older literature.

GRAFS: Strack, Safari, Hutter, arXiv 2408.06820, the published set. RAMACHANDRAN: Ramachandran, Zoph, Le, "Searching for
Activation Functions", arXiv 1710.05941.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from actsearch.ops.guard import SATURATED, exponential_bound, limit, power_bound
from actsearch.ops.spec import OpParameter, registrar

GRAFS = "Strack et al. 2024, arXiv 2408.06820"
RAMACHANDRAN = "Ramachandran et al. 2017, arXiv 1710.05941"

SQRT_FLOOR = 1e-3
LOG_OFFSET = 1e-3

_LINEAR = power_bound(1)
_SQUARE = power_bound(2)
_CUBE = power_bound(3)
_EXP = exponential_bound()
_BETA = OpParameter("beta", mean=1.0, std=0.25)
_NON_NEGATIVE = (0.0, math.inf)


def identity(x: Tensor) -> Tensor:
    return x


def neg(x: Tensor) -> Tensor:
    return -x


def square(x: Tensor) -> Tensor:
    x = limit(x, _SQUARE)
    return x * x


def cube(x: Tensor) -> Tensor:
    x = limit(x, _CUBE)
    return x * x * x


def sqrt(x: Tensor) -> Tensor:
    return x.clamp(min=SQRT_FLOOR).sqrt()


def beta_add(x: Tensor, beta: Tensor) -> Tensor:
    return limit(x, _LINEAR) + beta.to(x.dtype)


def beta_mul(x: Tensor, beta: Tensor) -> Tensor:
    return limit(x, _LINEAR) * beta.to(x.dtype)


def beta(x: Tensor, beta: Tensor) -> Tensor:
    return beta.to(x.dtype).expand_as(x)


def exp(x: Tensor) -> Tensor:
    return limit(x, _EXP).exp()


def sinh(x: Tensor) -> Tensor:
    return limit(x, _EXP).sinh()


def cosh(x: Tensor) -> Tensor:
    return limit(x, _EXP).cosh()


def asinh(x: Tensor) -> Tensor:
    # The vectorised kernel overflows where x² does.
    return limit(x, _SQUARE).asinh()


def atan(x: Tensor) -> Tensor:
    return limit(x, _SQUARE).atan()


def erf(x: Tensor) -> Tensor:
    return x.clamp(-SATURATED, SATURATED).erf()


def min0(x: Tensor) -> Tensor:
    return -torch.relu(-x)


def softplus(x: Tensor) -> Tensor:
    # F.softplus turns linear at 20 (a jump of 2e-9); log1p(exp x) overflows.
    return -F.logsigmoid(-x)


def gelu(x: Tensor) -> Tensor:
    # The second derivative of F.gelu is inf·0 at large |x|.
    inside = F.gelu(x.clamp(-SATURATED, SATURATED))
    return torch.where(x > SATURATED, x, inside)


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


def log_abs(x: Tensor) -> Tensor:
    return (x.abs() + LOG_OFFSET).log()


def sinc(x: Tensor) -> Tensor:
    # Near 0 the quotient and its derivatives cancel; the Taylor series is exact to float64 for |x| < 1.
    near = x.abs() < 1
    square = torch.where(near, x, 0.0).square()
    series = torch.zeros_like(square)
    for k in range(9, -1, -1):
        series = series * square + (-1) ** k / math.factorial(2 * k + 1)
    far = torch.where(near, math.pi, limit(x, _SQUARE))
    return torch.where(near, series, far.sin() / far)


def gauss(x: Tensor) -> Tensor:
    return (-x.clamp(-SATURATED, SATURATED).square()).exp()


_grafs = registrar(1, "grafs", GRAFS)
_literature = registrar(1, "literature", RAMACHANDRAN)

_grafs(
    "identity", identity, "x", printed="{0}", monotonic="increasing", contracting=True, projection=True, complexity=0
)
_grafs("neg", neg, "-x", printed="-{0}", monotonic="decreasing", contracting=True)
_grafs("abs", torch.abs, "abs(x)", range=_NON_NEGATIVE, smoothness=0, kinks=(0.0,), contracting=True)
_grafs("square", square, "x**2", printed="{0}**2", range=_NON_NEGATIVE, exact_within=_SQUARE)
_grafs("cube", cube, "x**3", printed="{0}**3", monotonic="increasing", exact_within=_CUBE)
_grafs(
    "sqrt",
    sqrt,
    f"sqrt(max(x, {SQRT_FLOOR}))",
    range=(math.sqrt(SQRT_FLOOR), math.inf),
    smoothness=0,
    kinks=(SQRT_FLOOR,),
    monotonic="increasing",
)
_grafs(
    "beta_add",
    beta_add,
    "x + beta",
    printed="({0} + {beta})",
    parameters=(_BETA,),
    monotonic="increasing",
    exact_within=_LINEAR,
)
_grafs(
    "beta_mul",
    beta_mul,
    "x * beta",
    printed="{beta} * {0}",
    parameters=(_BETA,),
    monotonic="increasing",
    exact_within=_LINEAR,
)
_grafs("beta", beta, "beta", printed="{beta}", parameters=(_BETA,), range=(1.0, 1.0), monotonic="constant")
_grafs("exp", exp, "exp(x)", range=_NON_NEGATIVE, monotonic="increasing", exact_within=_EXP)
_grafs("sinh", sinh, "sinh(x)", monotonic="increasing", exact_within=_EXP)
_grafs("tanh", torch.tanh, "tanh(x)", range=(-1.0, 1.0), monotonic="increasing", contracting=True)
_grafs("asinh", asinh, "asinh(x)", monotonic="increasing", contracting=True, exact_within=_SQUARE)
_grafs(
    "atan",
    atan,
    "atan(x)",
    range=(-math.pi / 2, math.pi / 2),
    monotonic="increasing",
    contracting=True,
)
_grafs("erf", erf, "erf(x)", range=(-1.0, 1.0), monotonic="increasing")
_grafs("sigmoid", torch.sigmoid, "1 / (1 + exp(-x))", range=(0.0, 1.0), monotonic="increasing")
_grafs(
    "relu",
    torch.relu,
    "max(x, 0)",
    range=_NON_NEGATIVE,
    smoothness=0,
    kinks=(0.0,),
    monotonic="increasing",
    contracting=True,
)
_grafs(
    "min0",
    min0,
    "min(x, 0)",
    range=(-math.inf, 0.0),
    smoothness=0,
    kinks=(0.0,),
    monotonic="increasing",
    contracting=True,
)
_grafs("softplus", softplus, "log(1 + exp(x))", range=_NON_NEGATIVE, monotonic="increasing")
_grafs("silu", F.silu, "x / (1 + exp(-x))", range=(-0.27846454276107377, math.inf), contracting=True)
_grafs("gelu", gelu, "x * (1 + erf(x / sqrt(2))) / 2", range=(-0.16997120747990369, math.inf), contracting=True)
_grafs(
    "elu",
    F.elu,
    "max(x, 0) + exp(min(x, 0)) - 1",
    range=(-1.0, math.inf),
    smoothness=1,
    kinks=(0.0,),
    monotonic="increasing",
    contracting=True,
)
_grafs(
    "leaky_relu",
    leaky_relu,
    "max(x, 0) + 0.01 * min(x, 0)",
    smoothness=0,
    kinks=(0.0,),
    monotonic="increasing",
    contracting=True,
)

_literature(
    "log_abs",
    log_abs,
    f"log(abs(x) + {LOG_OFFSET})",
    range=(math.log(LOG_OFFSET), math.inf),
    smoothness=0,
    kinks=(0.0,),
)
_literature("sin", torch.sin, "sin(x)", range=(-1.0, 1.0), contracting=True)
_literature("cos", torch.cos, "cos(x)", range=(-1.0, 1.0))
_literature("cosh", cosh, "cosh(x)", range=(1.0, math.inf), exact_within=_EXP)
_literature("sinc", sinc, "sinc(x)", range=(-0.21723362821122166, 1.0), exact_within=_SQUARE)
_literature("gauss", gauss, "exp(-x**2)", range=(0.0, 1.0))
