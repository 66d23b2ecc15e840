"""Chart: axes, lines and marks as SVG whose colours are classes of the page's style, light and dark.

Everything is drawn in a frame of about the width of a phone, so that text keeps its size there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Numbers = Sequence[float] | NDArray[Any]
WIDTH = 440.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 14.0, 32.0
LINE = 13.0  # height of a line of text
FAR = 6.0  # times the usual distance from the middle: then a group is left out of the range


@dataclass(frozen=True)
class Scale:
    """From data to the drawing: `low` is drawn at `start`, `high` at `end`; logarithmic if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(value) if self.log else value
        return self.start + (self.end - self.start) * (at - low) / ((high - low) or 1.0)

    @property
    def step(self) -> float:
        """Of a linear scale, what one unit is in the drawing."""
        return (self.end - self.start) / ((self.high - self.low) or 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers within, at most `most`."""
        if self.log:
            found = _decades(self.low, self.high)
            return found[:: -(-len(found) // most)]
        return round_numbers(self.low, self.high, most)


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], at most `most`."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [k * step + 0.0 for k in range(first, last + 1)]
    return [low]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in multiples if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            return found
    return found or [low, high]


def number(value: float) -> str:
    """For an axis or a table: four significant digits, a true minus sign, no exponent where that is shorter."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if math.isnan(value):
        return "–"
    return f"{value + 0.0:.4g}".replace("e+0", "e").replace("e-0", "e-").replace("-", "−")


def signed(text: str) -> str:
    """`text` with true minus signs before its numbers."""
    return re.sub(r"(?<![\w.])-(?=[\d.∞])", "−", text)


def short(name: str, most: int) -> str:
    """`name`, cut to so many letters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def spans(values: Iterable[float], share: float = 0.06, least: float = 0.0) -> tuple[float, float]:
    """The range of the finite values with some room about them, at least `least` high; (0, 1) of none."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    extent = max(high - low, least, 1e-9 * max(abs(low), abs(high)), 1e-12)
    middle = (low + high) / 2
    return middle - extent * (0.5 + share), middle + extent * (0.5 + share)


def common_spans(groups: Sequence[tuple[float, float]], cut: bool = False) -> tuple[float, float]:
    """The range of groups (low, high) without those that lie so far away that the others would shrink to a point.

    `cut`: also without those that only reach that far.
    """
    if not groups:
        return 0.0, 1.0
    middles = np.array([(low + high) / 2 for low, high in groups])
    centre = float(np.median(middles))
    reach = [abs(m - centre) + (high - low) / 2 for m, (low, high) in zip(middles, groups, strict=True)]
    far = FAR * float(np.median(reach))
    at = reach if cut else [abs(m - centre) for m in middles]
    near = [group for distance, group in zip(at, groups, strict=True) if distance <= far] or list(groups)
    return spans([end for group in near for end in group])


def path(xs: Numbers, ys: Numbers) -> str:
    """The data of an SVG path through points of the drawing; interrupted where one is not finite."""
    parts, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


@dataclass
class Chart:
    """One pair of axes; what is added lies above what was there.

    Args:
        x, y: limits of the axes.
        height: of the drawing; it is `WIDTH` wide.
        label: for those who cannot see it.
        x_title, y_title: of the axes.
        right: room for names at the ends of lines.
        log: whether y is logarithmic.
        left: room for the y axis.
        whole: only whole numbers are marked on the x axis.
        categories: names at 0, 1, … on the y axis instead of numbers; those in `bold` stand out.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    label: str
    height: float = 240.0
    x_title: str = ""
    y_title: str = ""
    left: float = LEFT
    right: float = RIGHT
    log: bool = False
    whole: bool = False
    classes: str = ""
    categories: Sequence[str] = ()
    bold: Sequence[str] = ()
    _parts: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sx = Scale(*self.x, self.left, WIDTH - self.right)
        self.sy = Scale(*self.y, self.height - BOTTOM, TOP + (LINE if self.y_title else 0), self.log)

    def add(self, template: str, **values: object) -> None:
        """A piece of SVG; `values` are escaped."""
        self._parts.append(Markup(template).format(**values))

    def line(self, xs: Numbers, ys: Numbers, classes: str, name: str = "") -> None:
        """A line in data coordinates, dots where it has one point; cut at the edges of the axes."""
        at = [self.sx(float(v)) for v in xs]
        up = [self._y(float(v)) for v in ys]
        if len(up) == 1:
            for x, y in zip(at, up, strict=True):
                if math.isfinite(y):
                    self.add('<circle class="dot {c}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>', c=classes, x=x, y=y)
            return
        extra = Markup(' data-name="{}"').format(name) if name else ""
        self.add('<path class="line {c}"{e} d="{d}"/>', c=classes, e=extra, d=path(at, up))

    def _y(self, value: float) -> float:
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        # Far outside, where numbers only cost bytes.
        return min(max(self.sy(value), -2 * self.height), 3 * self.height)

    def dot(self, x: float, y: float, classes: str, radius: float = 3.0) -> None:
        """A mark in data coordinates; nothing of what is not finite."""
        if math.isfinite(x) and math.isfinite(self._y(y)):
            self.add(
                '<circle class="dot {c}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
                c=classes,
                x=self.sx(x),
                y=self._y(y),
                r=radius,
            )

    def outside(self, x: float, k: float, text: str) -> bool:
        """Whether `x` is beyond the axis; then `text` with an arrow stands at that edge, at `k` of the y axis."""
        if self.x[0] <= x <= self.x[1]:
            return False
        left = x < self.x[0]
        self.add(
            '<text class="beyond{e}" x="{x:.1f}" y="{y:.1f}">{t}</text>',
            e=" right" * (not left),
            t=f"← {text}" if left else (f"{text} →"),
            x=self.left + 4 if left else WIDTH - self.right,
            y=self.sy(k) + 4,
        )
        return True

    def histogram(self, values: np.ndarray, bins: int = 60) -> None:
        """The shape of the values over the x axis, in the height of the panel whatever they are."""
        counts, edges = np.histogram(values, bins=bins, range=self.x)
        if not counts.any():
            return
        low, room = self.height - BOTTOM, 0.92 * (self.sy.start - self.sy.end)
        tops = [low - room * float(c) / float(counts.max()) for c in counts]
        at = [self.sx(float(e)) for e in edges]
        steps = "".join(f"L{a:.1f} {t:.1f}L{b:.1f} {t:.1f}" for a, b, t in zip(at, at[1:], tops, strict=False))
        self.add('<path class="histogram" d="M{a:.1f} {l}{s}L{b:.1f} {l}Z"/>', a=at[0], b=at[-1], l=low, s=steps)

    def ends(self, names: Sequence[tuple[str, float, str]], x: float | None = None) -> None:
        """Names beside the ends of lines: (text, y of the data, classes); moved apart so that each can be read.

        `x`: where the lines end; default: the right edge.
        """
        wanted = sorted(
            ((self._y(y), text, classes) for text, y, classes in names if math.isfinite(self._y(y))),
            key=lambda one: one[0],
        )
        places: list[float] = []
        for y, _, _ in wanted:
            places.append(max(y, places[-1] + LINE) if places else max(y, TOP + 4))
        for k in range(len(places) - 1, -1, -1):
            limit = self.height - BOTTOM + 4 if k == len(places) - 1 else places[k + 1] - LINE
            places[k] = min(places[k], limit)
        at = WIDTH - self.right if x is None else self.sx(x)
        for place, (_, text, classes) in zip(places, wanted, strict=True):
            self.add(
                '<text class="end {c}" x="{x:.1f}" y="{y:.1f}">{t}</text>', c=classes, x=at + 5, y=place + 4, t=text
            )

    def labels(self, points: Sequence[tuple[str, float, float]]) -> None:
        """Names beside points (text, x, y of the data); lower where they would stand on one another."""
        placed: list[tuple[float, float]] = []
        for text, x, y in sorted(points, key=lambda one: -one[2]):
            at, up = self.sx(x) + 8, self._y(y) + 4
            while any(abs(up - other) < LINE - 2 and abs(at - beside) < 90 for beside, other in placed):
                up += 2
            placed.append((at, up))
            self.add('<text class="end" x="{x:.1f}" y="{y:.1f}">{t}</text>', x=at, y=up, t=text)

    def series(self, lines: Sequence[tuple[str, Numbers, Numbers, str]]) -> None:
        """Lines, each with its name where its last finite point is: (name, xs, ys, classes)."""
        last: dict[float, list[tuple[str, float, str]]] = {}
        for name, xs, ys, classes in lines:
            self.line(xs, ys, classes, name)
            known = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True) if math.isfinite(float(y))]
            if known:
                last.setdefault(known[-1][0], []).append((name, known[-1][1], classes))
        for x, names in last.items():
            self.ends(names, x)

    def cursor(self) -> None:
        """A line that the slider moves along the x axis."""
        self.add(
            '<line class="cursor" data-zero="{z:.2f}" data-step="{s:.4f}" x1="0" x2="0" y1="{a:.1f}" y2="{b:.1f}"/>',
            z=self.sx(0.0),
            s=self.sx.step,
            a=self.sy.end,
            b=self.sy.start,
        )

    def svg(self) -> Markup:
        """The whole drawing."""
        bottom, top, end = self.sy.start, self.sy.end, WIDTH - self.right
        parts = []
        for k, name in enumerate(self.categories):
            parts.append(
                Markup('<text class="tick y{b}" x="{x}" y="{y:.1f}"><title>{whole}</title>{t}</text>').format(
                    b=" bold" if name in self.bold else "",
                    x=self.left - 8,
                    y=self.sy(k) + 4,
                    whole=name,
                    t=short(name, int((self.left - 10) / 6.6)),
                )
            )
        for tick in [] if self.categories else self.sy.ticks(5):
            y = self.sy(tick)
            parts.append(
                Markup(
                    '<path class="grid" d="M{a} {y:.1f}H{b}"/><text class="tick y" x="{x}" y="{t:.1f}">{n}</text>'
                ).format(a=self.left, b=end, y=y, x=self.left - 6, t=y + 3.5, n=number(tick))
            )
        for tick in self.sx.ticks(7):
            if self.whole and tick != round(tick):
                continue
            x = self.sx(tick)
            parts.append(
                Markup(
                    '<path class="grid" d="M{x:.1f} {a:.1f}V{b:.1f}"/>'
                    '<text class="tick x" x="{x:.1f}" y="{t:.1f}">{n}</text>'
                ).format(x=x, a=top, b=bottom, t=bottom + 15, n=number(tick))
            )
        zero = [
            Markup('<path class="zero" d="{}"/>').format(d)
            for d, there in (
                (f"M{self.left} {self.sy(0):.1f}H{end}" if not self.log else "", self.y[0] < 0 < self.y[1]),
                (f"M{self.sx(0):.1f} {top:.1f}V{bottom:.1f}", self.x[0] < 0 < self.x[1] and not self.whole),
            )
            if there and d
        ]
        titles = []
        if self.x_title:
            titles.append(
                Markup('<text class="axis x" x="{x:.1f}" y="{y:.1f}">{t}</text>').format(
                    x=(self.left + end) / 2, y=self.height - 3, t=self.x_title
                )
            )
        if self.y_title:
            titles.append(Markup('<text class="axis y" x="0" y="11">{}</text>').format(self.y_title))
        # Dots and thick lines may stand over the edges a little.
        clip = Markup(
            '<svg x="{x:.1f}" y="{a:.1f}" width="{w:.1f}" height="{h:.1f}" viewBox="{x:.1f} {a:.1f} {w:.1f} {h:.1f}">'
        ).format(x=self.left - 4, a=top - 2, w=end - self.left + 8, h=bottom - top + 4)
        inside = Markup("").join(p for p in self._parts if "<text" not in p)
        words = Markup("").join(p for p in self._parts if "<text" in p)
        return Markup(
            '<svg class="chart {c}" role="img" aria-label="{label}" viewBox="0 0 {w:g} {h:g}">{back}{zero}{clip}'
            "{inside}</svg>{words}{titles}</svg>"
        ).format(
            c=self.classes,
            label=self.label,
            w=WIDTH,
            h=self.height,
            back=Markup("").join(parts),
            zero=Markup("").join(zero),
            clip=clip,
            inside=inside,
            words=words,
            titles=Markup("").join(titles),
        )
