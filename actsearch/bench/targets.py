"""The targets for speed and memory, and what was measured for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actsearch.bench.results import Group, Results, Row
from actsearch.bench.timing import Ratio


@dataclass(frozen=True)
class Finding:
    """A target and what was measured; `most` is None where only a report is asked for, `measured` where it is missing.

    `detail` holds quartiles and what else belongs to the figure.
    """

    what: str
    most: float | None
    measured: float | None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is no target or no figure."""
        return None if self.most is None or self.measured is None else self.measured <= self.most


def findings(results: Results) -> list[Finding]:
    """Every row of the target table that the bench can fill."""
    resnet, bare = results.group("resnet20"), results.group("elementwise")
    growth = results.group("growth")
    found = [
        _time("ResNet-20: table weight step / ReLU step", 1.5, resnet, lambda g: (g.row("table"), g.row("relu"))),
        _time("ResNet-20: table α step / ReLU step", 2.0, resnet, lambda g: (g.row("table", "alpha"), g.row("relu"))),
        _memory(resnet),
        _time(
            "α step, 300 candidates (15 slots) / 30 (6 slots)",
            1.2,
            growth,
            lambda g: (g.row("table", "alpha", 300), _sized(g, 30, 6)),
        ),
        _time(
            "α step, 300 candidates (15 slots) / 30 (15 slots)",
            1.2,
            growth,
            lambda g: (g.row("table", "alpha", 300), _sized(g, 30, 15)),
        ),
        _time(
            "ResNet-20: dense compiled weight step / ReLU step",
            None,
            resnet,
            lambda g: (g.row("dense_compiled"), g.row("relu")),
        ),
        _time(
            "ResNet-20: dense compiled α step / ReLU step",
            None,
            resnet,
            lambda g: (g.row("dense_compiled", "alpha"), g.row("relu")),
        ),
        _time(
            "winner compiled / GELU, forward + backward, element-wise",
            1.3,
            bare,
            lambda g: (g.row("winner_compiled"), g.row("gelu")),
        ),
    ]
    for whole in results.whole:
        for activation, ratio in whole.ratios.items():
            what = f"whole search ({whole.label}) / one retraining with {activation}"
            found.append(Finding(what, 0.8 if whole.contestant == "table" else None, ratio.median, quartiles(ratio)))
    return [f for f in found if f.measured is not None]


def _sized(group: Group, candidates: int, slots: int) -> Row | None:
    for row in group.rows:
        if (row.contestant, row.step, row.candidates, row.slots) == ("table", "alpha", candidates, slots):
            return row
    return None


def _time(
    what: str, most: float | None, group: Group | None, rows: Callable[[Group], tuple[Row | None, Row | None]]
) -> Finding:
    ratio = None if group is None else group.ratio(*rows(group))
    return Finding(what, most, None) if ratio is None else Finding(what, most, ratio.median, quartiles(ratio))


def _memory(group: Group | None) -> Finding:
    what = "ResNet-20: peak memory of either table step / ReLU step"
    if group is None:
        return Finding(what, 1.3, None)
    found = [group.memory_to_baseline(group.row("table", step)) for step in ("weight", "alpha")]
    known = [f for f in found if f is not None]
    if not known:
        return Finding(what, 1.3, None)
    return Finding(what, 1.3, max(known), " and ".join(f"{f:.2f}" for f in known))


def quartiles(ratio: Ratio) -> str:
    """Quartiles and number of rounds, in words."""
    return f"[{ratio.low:.2f}, {ratio.high:.2f}], {ratio.n} rounds"
