"""Trainable bases (TAAFS), y = Σ_k c_k φ_k(tanh x) with trained coefficients c: the bases, and the operations.

E. Li, arXiv 2412.14655. Every φ_k is a function on [-1, 1]; tanh brings the input there. What the paper leaves open: an
operation has 10 coefficients, and they start at the least-squares fit to tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from numpy.polynomial import chebyshev as np_chebyshev
from numpy.polynomial import hermite_e as np_hermite
from numpy.polynomial import legendre as np_legendre
from torch import Tensor

from actsearch.errors import SettingsError, UnknownNameError
from actsearch.ops.fitting import FIT_RANGE, least_squares, normal_weights, points
from actsearch.ops.spec import OpParameter, registrar

TAAFS = "Li 2024, arXiv 2412.14655"

N_COEFFICIENTS = 10

# Half the lowest angle of a Fourier series that had the range as its period.
HALF_PI = math.pi / 2

# Without it, 10 functions can hardly be told apart on [-1, 1]: a condition number of 2.5e6, with it 120.
HERMITE_STRETCH = 3.0

# -- the operations: each is one `def` of its own, which the exporters write into files as it stands -----------------


def bspline(x: Tensor, coefficients: Tensor | tuple[float, ...]) -> Tensor:
    c = torch.as_tensor(coefficients, dtype=x.dtype, device=x.device)
    n = c.shape[0] - 3
    u = (torch.tanh(x) + 1) * (n / 2)
    piece = u.long().clamp(0, n - 1)  # also of NaN, which s keeps
    s = u - piece
    # The cubic of each piece in s, of the four coefficients that act there.
    c0, c1, c2, c3 = c[:n], c[1 : n + 1], c[2 : n + 2], c[3:]
    cubics = [
        (c0 + 4 * c1 + c2) / 6,
        (c2 - c0) / 2,
        (c0 - 2 * c1 + c2) / 2,
        (c3 - c0 + 3 * (c1 - c2)) / 6,
    ]
    shared = c[0].numel()
    row = torch.arange(shared, device=x.device).view(c.shape[1:])
    at = torch.add(row, piece, alpha=shared)
    flat = at.flatten()
    a0, a1, a2, a3 = [a.flatten().index_select(0, flat).view(at.shape) for a in cubics]
    return torch.addcmul(a0, s, torch.addcmul(a1, s, torch.addcmul(a2, s, a3)))


def fourier(x: Tensor, coefficients: Tensor | tuple[float, ...]) -> Tensor:
    c = torch.as_tensor(coefficients, dtype=x.dtype, device=x.device)
    angle = torch.tanh(x) * HALF_PI
    cos, sin = angle.cos(), angle.sin()
    cos2 = 2 * cos
    constant, *waves = c.unbind(0)
    u1 = u2 = v1 = v2 = c.new_zeros(())
    for a in reversed(waves[1::2]):
        u1, u2 = torch.addcmul(a - u2, cos2, u1), u1
    for a in reversed(waves[::2]):
        v1, v2 = torch.addcmul(a - v2, cos2, v1), v1
    return torch.addcmul(torch.addcmul(constant - u2, cos, u1), sin, v1)


def chebyshev(x: Tensor, coefficients: Tensor | tuple[float, ...]) -> Tensor:
    c = torch.as_tensor(coefficients, dtype=x.dtype, device=x.device)
    t = torch.tanh(x)
    t2 = 2 * t
    constant, *others = c.unbind(0)
    b1 = b2 = c.new_zeros(())
    for a in reversed(others):
        b1, b2 = torch.addcmul(a - b2, t2, b1), b1
    return torch.addcmul(constant - b2, t, b1)


def legendre(x: Tensor, coefficients: Tensor | tuple[float, ...]) -> Tensor:
    c = torch.as_tensor(coefficients, dtype=x.dtype, device=x.device)
    t = torch.tanh(x)
    b1 = b2 = c.new_zeros(())
    for k, a in reversed([*enumerate(c.unbind(0))]):
        rest = torch.sub(a, b2, alpha=(k + 1) / (k + 2))
        b1, b2 = torch.addcmul(rest, t, b1, value=(2 * k + 1) / (k + 1)), b1
    return b1


def hermite(x: Tensor, coefficients: Tensor | tuple[float, ...]) -> Tensor:
    c = torch.as_tensor(coefficients, dtype=x.dtype, device=x.device)
    z = torch.tanh(x) * HERMITE_STRETCH
    b1 = b2 = c.new_zeros(())
    for k, a in reversed([*enumerate(c.unbind(0))]):
        rest = torch.sub(a, b2, alpha=((k + 1) / (k + 2)) ** 0.5)
        b1, b2 = torch.addcmul(rest, z, b1, value=(k + 1) ** -0.5), b1
    return b1


def rbf(x: Tensor, coefficients: Tensor | tuple[float, ...]) -> Tensor:
    c = torch.as_tensor(coefficients, dtype=x.dtype, device=x.device)
    v = (torch.tanh(x) + 1) * ((c.shape[0] - 3) / 2)
    y = torch.zeros_like(v)
    for k, a in enumerate(c.unbind(0)):
        y = torch.addcmul(y, a, ((v + (1 - k)).square() * -0.5).exp())
    return y


# -- the bases: functions of t in [-1, 1], (…) -> (…, k) -------------------------------------------------------------


def _bspline_functions(t: Tensor, k: int) -> Tensor:
    u = (t + 1) * ((k - 3) / 2)
    piece = u.long().clamp(0, k - 4)
    s = u - piece
    weights = [
        (1 - s) ** 3 / 6,
        ((3 * s - 6) * s * s + 4) / 6,
        (((3 - 3 * s) * s + 3) * s + 1) / 6,
        s**3 / 6,
    ]
    index = piece.unsqueeze(-1) + torch.arange(4, device=t.device)
    return t.new_zeros((*t.shape, k)).scatter(-1, index, torch.stack(weights, -1))


def _fourier_functions(t: Tensor, k: int) -> Tensor:
    angle = HALF_PI * t
    waves = [((n + 1) // 2 * angle).sin() if n % 2 else (n // 2 * angle).cos() for n in range(k)]
    return torch.stack(waves, -1)


def _recurrent_functions(t: Tensor, k: int, step: Callable[[int], tuple[float, float]]) -> Tensor:
    """φ_0 = 1 and φ_{n+1} = a_n t φ_n - b_n φ_{n-1}, with (a_n, b_n) = step(n)."""
    functions = [torch.ones_like(t)]
    before = torch.zeros_like(t)
    for n in range(k - 1):
        a, b = step(n)
        functions.append(a * t * functions[-1] - b * before)
        before = functions[-2]
    return torch.stack(functions, -1)


def _chebyshev_functions(t: Tensor, k: int) -> Tensor:
    return _recurrent_functions(t, k, lambda n: (2.0 if n else 1.0, 1.0))


def _legendre_functions(t: Tensor, k: int) -> Tensor:
    return _recurrent_functions(t, k, lambda n: ((2 * n + 1) / (n + 1), n / (n + 1)))


def _hermite_functions(t: Tensor, k: int) -> Tensor:
    return _recurrent_functions(t, k, lambda n: (HERMITE_STRETCH / math.sqrt(n + 1), math.sqrt(n / (n + 1))))


def _rbf_functions(t: Tensor, k: int) -> Tensor:
    v = (t + 1) * ((k - 3) / 2)
    return ((v.unsqueeze(-1) - torch.arange(-1, k - 1, dtype=t.dtype, device=t.device)).square() * -0.5).exp()


# -- the same in the language of formulas: φ_k(tanh x), of n functions -----------------------------------------------


def _bspline_formula(k: int, n: int) -> str:
    distance = f"abs{_from_centre(k, n)}"
    return f"(max(2 - {distance}, 0)**3 - 4 * max(1 - {distance}, 0)**3) / 6"


def _fourier_formula(k: int, n: int) -> str:
    angle = f"({(k + 1) // 2} * {HALF_PI!r} * tanh(x))"
    return f"sin{angle}" if k % 2 else f"cos{angle}"


def _chebyshev_formula(k: int, n: int) -> str:
    return _polynomial_formula(np_chebyshev.cheb2poly([0] * k + [1]))


def _legendre_formula(k: int, n: int) -> str:
    # 2^k P_k has whole coefficients.
    return _polynomial_formula(2**k * np_legendre.leg2poly([0] * k + [1])) + f" / {2**k}"


def _hermite_formula(k: int, n: int) -> str:
    powers = np_hermite.herme2poly([0] * k + [1])
    stretched = [c * HERMITE_STRETCH**power for power, c in enumerate(powers)]
    return _polynomial_formula(stretched) + f" / sqrt({math.factorial(k)})"


def _rbf_formula(k: int, n: int) -> str:
    return f"exp(-{_from_centre(k, n)}**2 / 2)"


def _from_centre(k: int, n: int) -> str:
    """How far tanh(x) is from the centre of a spline or Gaussian, in spacings."""
    return f"({(n - 3) / 2:g} * (tanh(x) + 1) {'-' if k > 0 else '+'} {abs(k - 1)})"


def _polynomial_formula(coefficients: object) -> str:
    """Σ_k c_k tanh(x)^k in brackets, of whole c."""
    whole = [round(float(c)) for c in coefficients]  # type: ignore[attr-defined]
    return "(" + " + ".join(f"{c} * tanh(x)**{k}" for k, c in enumerate(whole) if c) + ")"


# -- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Basis:
    """A set of functions on [-1, 1].

    Attributes:
        functions: (t, k) -> the values of k functions at t, (…) -> (…, k).
        series: (x, coefficients) -> Σ_k coefficients_k φ_k(tanh x), the operation.
        formula: (k, n) -> φ_k(tanh x), of n functions, in the language of `actsearch.ops.formula`.
        least: the fewest functions that make a basis.
        smoothness: the functions are C^smoothness.
    """

    functions: Callable[[Tensor, int], Tensor]
    series: Callable[[Tensor, Tensor], Tensor]
    formula: Callable[[int, int], str]
    least: int = 1
    smoothness: float = math.inf


BASES: Mapping[str, Basis] = {
    "bspline": Basis(_bspline_functions, bspline, _bspline_formula, least=4, smoothness=2),
    "fourier": Basis(_fourier_functions, fourier, _fourier_formula),
    "chebyshev": Basis(_chebyshev_functions, chebyshev, _chebyshev_formula),
    "legendre": Basis(_legendre_functions, legendre, _legendre_formula),
    "hermite": Basis(_hermite_functions, hermite, _hermite_formula),
    "rbf": Basis(_rbf_functions, rbf, _rbf_formula, least=4),
}


def of_name(name: str, k: int) -> Basis:
    """The entry of `name`, for k functions. Raises UnknownNameError, and SettingsError for a k that it cannot have."""
    if name not in BASES:
        raise UnknownNameError("basis", name, BASES)
    if not isinstance(k, int) or k < BASES[name].least:
        raise SettingsError(f"basis {name!r} needs at least {BASES[name].least} functions, not {k}")
    return BASES[name]


def basis(name: str, k: int) -> Callable[[Tensor], Tensor]:
    """The first k functions of a basis, as one function of t in [-1, 1]: a tensor (…) becomes one of (…, k).

    bspline: cubic, on a uniform grid of k - 3 pieces; their sum is 1. Beyond ±1 the outermost pieces go on.
    fourier: 1, sin(πt/2), cos(πt/2), sin(πt), …. Their period is 4, twice the range: with a period of 2 the value and
        every derivative would be the same at both ends, which a function such as tanh is not.
    chebyshev, legendre: T_n and P_n, by their recurrences.
    hermite: the probabilists', stretched and normalised: He_n(3t) / sqrt(n!), by their recurrence. Within ±10.4 for
        every n (Cramér's inequality, 1.09 exp((3t)²/4)).
    rbf: exp(-(t - centre)² / (2 spacing²)), with uniform centres, the first and the last one spacing outside the range.

    Raises UnknownNameError, and SettingsError for k below 4 (bspline, rbf) or below 1.
    """
    functions = of_name(name, k).functions
    return lambda t: functions(t, k)


def fitted_to_tanh(name: str, k: int = N_COEFFICIENTS) -> tuple[float, ...]:
    """The coefficients with which Σ_k c_k φ_k(tanh x) is nearest to tanh x, under N(0, 1) in `FIT_RANGE`.

    tanh is in the span of the splines and of the polynomials: rounding makes their coefficients what they are.
    """
    x = points(*FIT_RANGE)
    found = least_squares(basis(name, k)(x.tanh()), x.tanh(), normal_weights(x))
    return tuple(round(c, 12) + 0.0 for c in found)


def _register(name: str) -> None:
    n = N_COEFFICIENTS
    entry = BASES[name]
    registrar(1, "taafs", TAAFS)(
        name,
        entry.series,
        " + ".join(f"coefficients_{k} * {entry.formula(k, n)}" for k in range(n)),
        parameters=(OpParameter("coefficients", mean=fitted_to_tanh(name), scope="site", trained_with="weights"),),
        smoothness=entry.smoothness,
        complexity=3,
    )


for _name in BASES:
    _register(_name)
