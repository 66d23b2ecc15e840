"""What can be said of an activation in numbers: limits, extrema, steepness, zeros, dead and clipped inputs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from actsearch.activation import Activation, second_moment_gain
from actsearch.ops.clip import Clip
from actsearch.report.curve import Array, Function, central_range, derivatives, finite_values, on_cpu, values
from actsearch.swap.smoothness import smoothness_in_words, smoothness_of

DEAD_SLOPE = 0.01
ANSWERS = 20_001  # points at which the function is asked


@dataclass(frozen=True)
class Limit:
    """A limit at infinity.

    Attributes:
        value: may be infinite; None if the function oscillates or settles too slowly to tell.
        clipped: without the clip it would be another.
    """

    value: float | None
    clipped: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return "no limit"
        return f"→ {number(self.value)}{' (clipped)' if self.clipped else ''}"


@dataclass(frozen=True)
class Extremum:
    """The least or greatest value on the range, and (the first place) where it is taken."""

    x: float
    value: float

    def __str__(self) -> str:
        return f"{number(self.value)} at {number(self.x)}"


@dataclass(frozen=True)
class Facts:
    """What can be said of an activation.

    "The range" is that of the central 99.8 % of the recorded inputs, [-5, 5] without them.

    Attributes:
        range: (low, high) that the facts below refer to.
        at_minus_infinity, at_plus_infinity: limits.
        at_zero: f(0).
        slopes_at_zero: derivatives at 0 from the left and from the right.
        minimum, maximum: on the range.
        lipschitz: max |f'| on the range.
        smoothness: k such that the function is C^k (a lower bound); None if it is not known.
        monotone: `increasing`, `decreasing` (in the weak sense), `constant` or None, on the range.
        zeros: (first, last) of every stretch on the range where f is 0; equal for an isolated zero.
        gain: 1 / sqrt(E[f(z)²]) for z ~ N(0, 1).
        dead_share: share of the recorded inputs with |f'| < 0.01; None without inputs.
        clipped_share: share of the recorded inputs at which the clip acts anywhere in the function; None without
            inputs, or if the function has no clip.
    """

    range: tuple[float, float]
    at_minus_infinity: Limit
    at_plus_infinity: Limit
    at_zero: float
    slopes_at_zero: tuple[float, float]
    minimum: Extremum
    maximum: Extremum
    lipschitz: float
    smoothness: float | None
    monotone: str | None
    zeros: tuple[tuple[float, float], ...]
    gain: float
    dead_share: float | None = None
    clipped_share: float | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values in words, for tables."""
        low, high = (number(end) for end in self.range)
        left, right = self.slopes_at_zero
        is_smooth = math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-6)
        found = [
            ("x → -∞", str(self.at_minus_infinity)),
            ("x → +∞", str(self.at_plus_infinity)),
            ("f(0)", number(self.at_zero)),
            (
                "f'(0)",
                number(round((left + right) / 2, 9))
                if is_smooth
                else f"{number(left)} | {number(right)} (left | right)",
            ),
            (f"minimum on [{low}, {high}]", str(self.minimum)),
            (f"maximum on [{low}, {high}]", str(self.maximum)),
            ("Lipschitz constant there", number(self.lipschitz)),
            ("monotone there", self.monotone or "no"),
            ("zeros there", _zeros_in_words(self.zeros)),
            ("smoothness", smoothness_in_words(self.smoothness)),
            ("second-moment gain", number(self.gain)),
        ]
        if self.dead_share is not None:
            found.append((f"inputs with |f'| < {DEAD_SLOPE:g}", f"{self.dead_share:.2%}"))
        if self.clipped_share is not None:
            found.append(("inputs where the clip acts", f"{self.clipped_share:.2%}"))
        return found


@np.errstate(invalid="ignore", over="ignore")  # a user's function may be infinite or NaN somewhere
def facts(activation: Activation | Function, inputs: Tensor | None = None) -> Facts:
    """The facts of an activation; `inputs` (any shape) are recorded pre-activations.

    Everything is computed numerically in float64, so it takes milliseconds whatever the formula.
    """
    function = on_cpu(activation)
    low, high = central_range(inputs)
    x = _grid(low, high)
    y, slope = derivatives(function, x, 1)
    around_zero = derivatives(function, np.array([-1e-9, 0.0, 1e-9]), 1)
    recorded = finite_values(inputs)
    return Facts(
        range=(low, high),
        at_minus_infinity=_limit_with_clip(function, -1),
        at_plus_infinity=_limit_with_clip(function, 1),
        at_zero=float(around_zero[0][1]),
        slopes_at_zero=(float(around_zero[1][0]), float(around_zero[1][2])),
        minimum=_extremum(function, x, y, -1),
        maximum=_extremum(function, x, y, 1),
        lipschitz=_steepest(function, x, slope),
        smoothness=smoothness_of(function),
        monotone=_monotone(y),
        zeros=_zeros(function, x, y),
        gain=second_moment_gain(function),
        dead_share=_dead_share(function, recorded) if recorded.size else None,
        clipped_share=clipped_share(function, recorded) if recorded.size else None,
    )


def number(value: float) -> str:
    """Four significant digits; ∞ for infinity, and 0 without a sign."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return format(value + 0.0, ".4g")


def _zeros_in_words(zeros: tuple[tuple[float, float], ...], most: int = 6) -> str:
    shown = [number(a) if a == b else f"[{number(a)}, {number(b)}]" for a, b in zeros[:most]]
    return (", ".join(shown) or "none") + (f", … ({len(zeros)} in all)" if len(zeros) > most else "")


def _grid(low: float, high: float) -> Array:
    """Even points, and ever closer ones about 0, where kinks and floors of operations sit."""
    close = np.logspace(-9, 0, 200)
    points = np.concatenate([np.linspace(low, high, ANSWERS), -close, [0.0], close])
    return np.unique(points[(points >= low) & (points <= high)])


# -- limits --------------------------------------------------------------------------------------------------------


def _limit_with_clip(function: Function, sign: int) -> Limit:
    value = _limit(function, sign)
    if not isinstance(function, Activation) or function.genotype.clip.kind == "none":
        return Limit(value)
    unclipped = _limit(_with_clip(function, Clip("none")), sign)
    clipped = value is not None and (
        unclipped is None or not math.isclose(value, unclipped, rel_tol=1e-6, abs_tol=1e-6)
    )
    return Limit(value, clipped)


def _limit(function: Function, sign: int) -> float | None:
    """The limit by what the function does between 10 and 10^100.

    Values that stay put are a limit; large ones of one sign, or growth that does not fade over the decades (a
    logarithm's), mean infinity. The points are no round numbers, so that a periodic function gives itself away.
    """
    decades = np.arange(1, 101)
    y = values(function, sign * 10.0**decades * (1 + 0.7 * np.modf(decades * 0.618034)[0]))
    if np.isnan(y).any():
        return None
    tail = y[len(y) // 2 :]
    if (abs(tail) > 1e6).all() and (np.sign(tail) == np.sign(tail[0])).all():
        return math.copysign(math.inf, tail[0])
    if not np.isfinite(tail).all():
        return None
    if np.ptp(tail) <= 1e-6 * (1 + abs(tail[-1])):
        return round(float(tail[-1]), 12)
    return _slow_growth(y)


def _slow_growth(y: Array) -> float | None:
    """Infinity for growth like a power of log x; None for what oscillates or fades."""
    steps = np.diff(y[9::10])
    grows = (steps > 0).all() or (steps < 0).all()
    return math.copysign(math.inf, steps[-1]) if grows and steps[-1] / steps[len(steps) // 2] > 0.45 else None


def _with_clip(activation: Activation, clip: Clip) -> Activation:
    """A copy with another clip, and the present values of its parameters."""
    return Activation(dataclasses.replace(activation.genotype, clip=clip))


# -- on the range --------------------------------------------------------------------------------------------------


def _neighbourhood(x: Array, k: int) -> Array:
    return np.linspace(x[max(k - 1, 0)], x[min(k + 1, len(x) - 1)], 401)


def _greatest(x: Array, y: Array) -> int:
    """The position of the greatest value: the first of a plateau, the middle of a tie that is mere rounding."""
    best = float(np.max(y, initial=-math.inf, where=~np.isnan(y)))
    ties = np.flatnonzero(y >= best - 1e-12 * abs(best)) if math.isfinite(best) else np.flatnonzero(y == best)
    if ties.size == 0:
        return 0
    stretch = ties[: 1 + int(np.argmin(np.append(np.diff(ties) == 1, False)))]
    return int(stretch[len(stretch) // 2] if x[stretch[-1]] - x[stretch[0]] < 1e-3 else stretch[0])


def _extremum(function: Function, x: Array, y: Array, sign: int) -> Extremum:
    k = _greatest(x, sign * y)
    place, value = float(x[k]), float(y[k])
    close = _neighbourhood(x, k)
    close_y = values(function, close)
    best = _greatest(close, sign * close_y)
    # A gain within rounding would only move the place away from a round number.
    if sign * (close_y[best] - value) > 1e-12 * (1 + abs(value)):
        place, value = float(close[best]), float(close_y[best])
    return Extremum(place, value)


def _steepest(function: Function, x: Array, slope: Array) -> float:
    k = _greatest(x, abs(slope))
    return float(max(np.nanmax(abs(derivatives(function, _neighbourhood(x, k), 1)[1])), abs(slope[k])))


def _monotone(y: Array) -> str | None:
    tolerance = 1e-12 * (1 + float(np.max(abs(y))))
    steps = np.diff(y)
    rises, falls = bool((steps > tolerance).any()), bool((steps < -tolerance).any())
    if rises and falls:
        return None
    if not (rises or falls):
        return "constant" if np.ptp(y) <= 1e-9 * (1 + abs(float(y[0]))) else None
    return "increasing" if rises else "decreasing"


def _zeros(function: Function, x: Array, y: Array) -> tuple[tuple[float, float], ...]:
    found = _stretches(x, y == 0)

    def at(point: float) -> float:
        return float(values(function, np.array([point]))[0])

    scale = float(np.max(abs(y)))
    for k in np.flatnonzero((y[1:] * y[:-1] < 0) & np.isfinite(y[1:]) & np.isfinite(y[:-1])):
        zero = brentq(at, x[k], x[k + 1], xtol=1e-18)
        # A change of sign across a jump or a pole is no zero.
        if abs(at(zero)) <= 1e-3 * max(abs(y[k]), abs(y[k + 1])):
            found.append((zero, zero))
    size = abs(y)
    touching = (size[1:-1] < size[:-2]) & (size[1:-1] <= size[2:]) & (size[1:-1] < 1e-6 * scale) & (size[1:-1] > 0)
    for k in np.flatnonzero(touching) + 1:
        if y[k - 1] * y[k] > 0 and y[k] * y[k + 1] > 0:
            bounds = (float(x[k - 1]), float(x[k + 1]))
            lowest = minimize_scalar(lambda p: abs(at(p)), bounds=bounds, method="bounded", options={"xatol": 1e-10})
            if lowest.fun < 1e-12 * scale:
                found.append((float(lowest.x), float(lowest.x)))
    return tuple(sorted(found))


def _stretches(x: Array, is_zero: np.ndarray) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_zero, [False]]).astype(int)))
    return [(float(x[a]), float(x[b - 1])) for a, b in zip(edges[::2], edges[1::2], strict=True)]


# -- on the recorded inputs ----------------------------------------------------------------------------------------


def _dead_share(function: Function, recorded: Array) -> float:
    return float(np.mean(abs(derivatives(function, recorded, 1)[1]) < DEAD_SLOPE))


@dataclass(frozen=True)
class _WatchedClip(Clip):
    """A clip that notes where it was asked to act."""

    acted: list[Tensor] = field(default_factory=list, compare=False)

    def __call__(self, y: Tensor) -> Tensor:
        self.acted.append(y.abs() > self.limit)
        return super().__call__(y)


def clipped_share(function: Activation | Function, recorded: Array) -> float | None:
    """Share of the inputs at which some operation of the function exceeds the clip's limit; None without a clip."""
    if not isinstance(function, Activation) or function.genotype.clip.kind == "none":
        return None
    clip = function.genotype.clip
    watched = _WatchedClip(clip.kind, clip.limit)
    values(_with_clip(function, watched), recorded)
    if not watched.acted:
        return 0.0
    # An operation that does not depend on x may have given a single number.
    shape = torch.Size((len(recorded),))
    return float(torch.stack([a.expand(shape) for a in watched.acted]).any(0).double().mean())
