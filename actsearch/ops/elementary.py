"""Elementary functions of float32 written as arithmetic, which a compiler can inline and fuse.

On a CPU the compiler calls a library for each of these, vector by vector, and those calls decide what a fused kernel
takes: tanh costs five exponentials there, asinh eight. Here each is at most one exponential and a polynomial, within 3
units in the last place of the exact value, as the library's are. The polynomials were interpolated at Chebyshev nodes
in 40 digits; their errors are in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
_ONE = 0x3F800000  # the bits of 1

# f(x) = x + x³ P(x²), by the end of |x|.
_TANH = (-0.33333333295, 0.13333324200, -0.05396470045, 0.02181844913, -0.00852633306, 0.00252639071)  # 0.55
_SINH = (0.16666666647, 0.00833333968, 0.00019838102, 0.00000280626)  # 1
_ATAN = (
    -0.33333333083,
    0.19999949321,
    -0.14284003795,
    0.11088261629,
    -0.08931826777,
    0.07031914250,
    -0.04896051403,
    0.02630500111,
    -0.00914462976,
    0.00148869194,
)  # 1
# exp(x) - 1 = x + x² P(x) for |x| <= 1/2.
_EXPM1 = (0.50000001216, 0.16666666802, 0.04166579123, 0.00833323614, 0.00139821860, 0.00019944874)
# log(1 + x) = x - x²/2 + x³ P(x) for 1 + x between sqrt(1/2) and sqrt(2).
_LOG1P = (
    0.33333331180,
    -0.24999996956,
    0.20000715846,
    -0.16667802664,
    0.14249054322,
    -0.12425675786,
    0.11685443143,
    -0.11479836851,
    0.06971681253,
)
# erf(x) = x P(x²) for |x| <= 1.
_ERF = (
    1.1283791658,
    -0.3761262667,
    0.1128359472,
    -0.0268542120,
    0.0051890874,
    -0.0008016864,
    0.0000787588,
)
# erf(x) = 1 - t P(t) exp(-x²) with t = 1 / (1 + 0.3275911 x), for x >= 0: Abramowitz and Stegun, 7.1.26, within 1.5e-7;
# the formula that torch has for float32 vectors.
_ERF_FAR = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def tanh(x: Tensor) -> Tensor:
    far = 2 / (1 + (-2 * x).exp()) - 1
    return torch.where(x.abs() < 0.55, _odd(_TANH, x), far)


def sinh(x: Tensor) -> Tensor:
    growth = x.exp()
    return torch.where(x.abs() < 1, _odd(_SINH, x), 0.5 * (growth - 1 / growth))


def cosh(x: Tensor) -> Tensor:
    growth = x.exp()
    return 0.5 * (growth + 1 / growth)


def atan(x: Tensor) -> Tensor:
    far = x.abs() > 1
    near = _odd(_ATAN, torch.where(far, 1 / x, x))
    return torch.where(far, torch.where(x < 0, -math.pi / 2, math.pi / 2) - near, near)


def asinh(x: Tensor) -> Tensor:
    """Where x² is finite."""
    square = x * x
    return _signed(log1p(x.abs() + square / (1 + (square + 1).sqrt())), x)


def expm1(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 0.5, x + x * x * _polynomial(_EXPM1, x), x.exp() - 1)


def log1p(x: Tensor) -> Tensor:
    """For 0 <= x <= 1e30."""
    y = 1 + x
    bits = y.view(torch.int32)
    octaves = (bits - _SQRT_HALF) >> 23
    shift = octaves << 23
    # What rounding took from 1 + x is given back.
    rest = (x - (y - 1)) * (_ONE - shift).view(torch.float32)
    f = ((bits - shift).view(torch.float32) - 1) + rest
    return octaves.to(torch.float32) * math.log(2) + _log1p_near(f)


def _log1p_near(f: Tensor) -> Tensor:
    """log(1 + f) for 1 + f between sqrt(1/2) and sqrt(2)."""
    return f - f * f * (0.5 - f * _polynomial(_LOG1P, f))


def erf(x: Tensor) -> Tensor:
    square = x * x
    return torch.where(square < 1, x * _polynomial(_ERF, square), _erf_far(x, (-square).exp()))


def gelu(x: Tensor) -> Tensor:
    return x * _normal_distribution(x, (-0.5 * x * x).exp())


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    density = (-0.5 * x * x).exp()  # of the normal distribution, times sqrt(2 pi)
    return g * (_normal_distribution(x, density) + x * density * (1 / math.sqrt(2 * math.pi)))


def _normal_distribution(x: Tensor, density: Tensor) -> Tensor:
    return 0.5 + 0.5 * _erf_far(x * math.sqrt(0.5), density)


def _erf_far(x: Tensor, decay: Tensor) -> Tensor:
    """Within 2e-7 everywhere, but not relative to a small x; `decay` is exp(-x²)."""
    t = 1 / (1 + 0.3275911 * x.abs())
    return _signed(1 - t * _polynomial(_ERF_FAR, t) * decay, x)


def log_sigmoid(x: Tensor) -> Tensor:
    return _log_sigmoid_forward(x)[0]


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, expm1(x))


def _signed(size: Tensor, x: Tensor) -> Tensor:
    """`size` with the sign of `x`; `copysign` would be one more call."""
    return torch.where(x < 0, -size, size)


def _odd(coefficients: Sequence[float], x: Tensor) -> Tensor:
    square = x * x
    return x + x * (square * _polynomial(coefficients, square))


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Σ c_k x^k."""
    *rest, last = coefficients
    y: Tensor | float = last
    for c in reversed(rest):
        y = y * x + c
    assert isinstance(y, Tensor)
    return y


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The second is what the backward pass reads."""
    decay = (-x.abs()).exp()
    upper = decay > math.sqrt(2) - 1
    log = _log1p_near(torch.where(upper, 0.5 * (decay - 1), decay)) + torch.where(upper, math.log(2), 0.0)
    return x.clamp(max=0) - log, decay


def _log_sigmoid_backward(g: Tensor, x: Tensor, decay: Tensor) -> Tensor:
    return g * (torch.where(x < 0, 1.0, decay) / (1 + decay))


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    if (alpha, scale, input_scale) != (1, 1, 1):
        return NotImplemented
    return elu(x)


def _elu_backward(g: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor) -> Tensor:
    if (alpha, scale, input_scale, is_result) != (1, 1, 1, False):
        return NotImplemented
    return torch.where(x > 0, g, g * x.exp())


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return gelu(x) if approximate == "none" else NotImplemented


def _gelu_backward(g: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    return gelu_backward(g, x) if approximate == "none" else NotImplemented


_aten = torch.ops.aten

# For a trace, what stands in place of these operations; derivatives are formed before it, from the operations.
DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _aten.tanh.default: tanh,
    _aten.sinh.default: sinh,
    _aten.cosh.default: cosh,
    _aten.atan.default: atan,
    _aten.asinh.default: asinh,
    _aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    _aten.log_sigmoid_backward.default: _log_sigmoid_backward,
    _aten.elu.default: _elu,
    _aten.elu_backward.default: _elu_backward,
    _aten.erf.default: erf,
    _aten.gelu.default: _gelu,
    _aten.gelu_backward.default: _gelu_backward,
}
