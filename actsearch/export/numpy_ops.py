"""The operations for NumPy arrays; of the same ids, values and guards as the registered ones, without derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from actsearch.errors import GenotypeError
from actsearch.ops.bases import HALF_PI, HERMITE_STRETCH
from actsearch.ops.binary import _LINEAR, _PRODUCT, _QUOTIENT, DIVISOR_OFFSET
from actsearch.ops.guard import SATURATED
from actsearch.ops.spec import OpSpec
from actsearch.ops.unary import _CUBE, _EXP, _SQUARE, LOG_OFFSET, SQRT_FLOOR

Array = NDArray[Any]


def limit(x: Array, bound: MappingProxyType[str, float]) -> Array:
    """`x` clipped to ±bound of its dtype."""
    return np.clip(x, -bound[x.dtype.name], bound[x.dtype.name])


def identity(x: Array) -> Array:
    return x


def neg(x: Array) -> Array:
    return -x


def square(x: Array) -> Array:
    return np.square(limit(x, _SQUARE))


def cube(x: Array) -> Array:
    x = limit(x, _CUBE)
    return x * x * x


def sqrt(x: Array) -> Array:
    return np.sqrt(np.maximum(x, SQRT_FLOOR))


def beta_add(x: Array, beta: float) -> Array:
    return limit(x, _LINEAR) + beta


def beta_mul(x: Array, beta: float) -> Array:
    return limit(x, _LINEAR) * beta


def beta(x: Array, beta: float) -> Array:
    return np.full_like(x, beta)


def exp(x: Array) -> Array:
    return np.exp(limit(x, _EXP))


def sinh(x: Array) -> Array:
    return np.sinh(limit(x, _EXP))


def cosh(x: Array) -> Array:
    return np.cosh(limit(x, _EXP))


def asinh(x: Array) -> Array:
    return np.arcsinh(limit(x, _SQUARE))


def erf(x: Array) -> Array:
    return special.erf(x)


def sigmoid(x: Array) -> Array:
    # exp(-|x|) does not overflow.
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def min0(x: Array) -> Array:
    return np.minimum(x, 0)


def softplus(x: Array) -> Array:
    return np.logaddexp(x, 0)


def silu(x: Array) -> Array:
    # exp(-|x|) does not overflow.
    small = np.exp(-np.abs(x))
    return x * np.where(x < 0, small, 1) / (1 + small)


def gelu(x: Array) -> Array:
    return 0.5 * x * special.erfc(-x * math.sqrt(0.5))


def elu(x: Array) -> Array:
    return np.maximum(x, 0) + np.expm1(np.minimum(x, 0))


def leaky_relu(x: Array) -> Array:
    return np.where(x < 0, 0.01 * x, x)


def log_abs(x: Array) -> Array:
    return np.log(np.abs(x) + LOG_OFFSET)


def sinc(x: Array) -> Array:
    return np.sinc(limit(x, _SQUARE) / math.pi)


def gauss(x: Array) -> Array:
    return np.exp(-np.square(np.clip(x, -SATURATED, SATURATED)))


def add(x1: Array, x2: Array) -> Array:
    return limit(x1, _LINEAR) + limit(x2, _LINEAR)


def sub(x1: Array, x2: Array) -> Array:
    return limit(x1, _LINEAR) - limit(x2, _LINEAR)


def mul(x1: Array, x2: Array) -> Array:
    return limit(x1, _PRODUCT) * limit(x2, _PRODUCT)


def sigmoid_mul(x1: Array, x2: Array) -> Array:
    # exp(-|x|) does not overflow.
    small = np.exp(-np.abs(x1))
    return np.where(x1 < 0, small, 1) / (1 + small) * limit(x2, _LINEAR)


def beta_mix(x1: Array, x2: Array, gamma: float) -> Array:
    share = special.expit(gamma)
    return share * limit(x1, _LINEAR) + (1 - share) * limit(x2, _LINEAR)


def left(x1: Array, x2: Array) -> Array:
    return x1


def right(x1: Array, x2: Array) -> Array:
    return x2


def div(x1: Array, x2: Array) -> Array:
    divisor = limit(x2 + DIVISOR_OFFSET, _PRODUCT)
    floor = np.where(divisor < 0, -DIVISOR_OFFSET, DIVISOR_OFFSET).astype(x2.dtype)
    return limit(x1, _QUOTIENT) / np.where(np.abs(divisor) < DIVISOR_OFFSET, floor, divisor)


def exp_abs_diff(x1: Array, x2: Array) -> Array:
    return np.exp(-np.abs(limit(x1, _LINEAR) - limit(x2, _LINEAR)))


def exp_sq_diff(x1: Array, x2: Array) -> Array:
    difference = limit(x1, _LINEAR) - limit(x2, _LINEAR)
    return np.exp(-np.square(np.clip(difference, -SATURATED, SATURATED)))


def slope(x: Array, a: float) -> Array:
    return limit(x, _LINEAR) * a


def bspline(x: Array, coefficients: tuple[float, ...]) -> Array:
    c = np.asarray(coefficients, x.dtype)
    n = len(c) - 3
    u = (np.tanh(x) + 1) * (n / 2)
    piece = np.clip(np.nan_to_num(u).astype(int), 0, n - 1)
    s = u - piece.astype(x.dtype)
    c0, c1, c2, c3 = c[piece], c[piece + 1], c[piece + 2], c[piece + 3]
    cubic = (c3 - c0 + 3 * (c1 - c2)) / 6
    quadratic = (c0 - 2 * c1 + c2) / 2
    return (c0 + 4 * c1 + c2) / 6 + s * ((c2 - c0) / 2 + s * (quadratic + s * cubic))


def fourier(x: Array, coefficients: tuple[float, ...]) -> Array:
    angle = np.tanh(x) * HALF_PI
    y = np.zeros_like(x)
    for k, c in enumerate(coefficients):
        wave = (k + 1) // 2 * angle
        y = y + c * (np.sin(wave) if k % 2 else np.cos(wave))
    return y


def chebyshev(x: Array, coefficients: tuple[float, ...]) -> Array:
    t = np.tanh(x)
    b1 = b2 = np.zeros_like(x)
    for c in reversed(coefficients[1:]):
        b1, b2 = c - b2 + 2 * t * b1, b1
    return coefficients[0] - b2 + t * b1


def legendre(x: Array, coefficients: tuple[float, ...]) -> Array:
    t = np.tanh(x)
    b1 = b2 = np.zeros_like(x)
    for k, c in reversed([*enumerate(coefficients)]):
        rest = c - (k + 1) / (k + 2) * b2
        b1, b2 = rest + (2 * k + 1) / (k + 1) * t * b1, b1
    return b1


def hermite(x: Array, coefficients: tuple[float, ...]) -> Array:
    z = np.tanh(x) * HERMITE_STRETCH
    b1 = b2 = np.zeros_like(x)
    for k, c in reversed([*enumerate(coefficients)]):
        rest = c - ((k + 1) / (k + 2)) ** 0.5 * b2
        b1, b2 = rest + (k + 1) ** -0.5 * z * b1, b1
    return b1


def rbf(x: Array, coefficients: tuple[float, ...]) -> Array:
    v = (np.tanh(x) + 1) * ((len(coefficients) - 3) / 2)
    y = np.zeros_like(x)
    for k, c in enumerate(coefficients):
        y = y + c * np.exp(-0.5 * np.square(v + (1 - k)))
    return y


_OF_NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "tanh": np.tanh,
    "atan": np.arctan,
    "sin": np.sin,
    "cos": np.cos,
    "max": np.maximum,
    "min": np.minimum,
    **{f"laaf_{scope}": slope for scope in ("network", "site", "channel")},
}


def of_op(spec: OpSpec) -> Callable[..., Any]:
    """The function of an operation. Raises GenotypeError for one that has none here."""
    function = _OF_NUMPY.get(spec.id) or globals().get(spec.id)
    if function is None:
        raise GenotypeError(f"operation {spec.id!r} has no NumPy form; add it to actsearch/export/numpy_ops.py")
    return function
