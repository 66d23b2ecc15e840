"""Clipping of unbounded operations (GRAFS, arXiv 2408.06820): one policy for search, retraining and export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from actsearch.errors import SettingsError, unknown_name
from actsearch.ops.spec import OpSpec

ClipKind = Literal["hard", "smooth", "none"]

GREATEST_LIMIT = 1e30  # well within bfloat16 and float32
_SHARPNESS = 8  # even, so that the smooth clip is C^∞; at |y| = ℓ/3 it is off by 2e-5 of y


@dataclass(frozen=True)
class Clip:
    """What happens to an output y of an unbounded operation.

    `hard`: y with |y| > limit becomes limit·sign(y), as published. `smooth`: y / (1 + (y/limit)^8)^(1/8), which is C^∞,
    for models whose forces or residuals differentiate the activation. `none`: y.

    Raises SettingsError for an unknown kind or a limit that is not positive and finite.
    """

    kind: ClipKind = "hard"
    limit: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ClipKind):
            raise SettingsError(unknown_name("clip", self.kind, get_args(ClipKind)))
        number = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if not (number and 0 < self.limit <= GREATEST_LIMIT):
            raise SettingsError(f"clip limit must be a positive number up to {GREATEST_LIMIT:g}, not {self.limit!r}")

    @property
    def smoothness(self) -> float:
        """k if the clip is C^k."""
        return 0 if self.kind == "hard" else math.inf

    def needed(self, spec: OpSpec, inputs_limited: bool) -> bool:
        """Whether an output of `spec` can exceed the limit; never after a contraction of limited inputs."""
        return self.kind != "none" and not spec.bounded and not (spec.contracting and inputs_limited)

    def __call__(self, y: Tensor) -> Tensor:
        """`y` clipped, element-wise, any shape."""
        if self.kind == "none":
            return y
        if self.kind == "hard":
            return y.clamp(-self.limit, self.limit)
        # Beyond 100 limits the derivative is 1e-18; the inner clamp keeps the eighth power finite.
        ratio = (y / self.limit).clamp(-100, 100)
        return self.limit * ratio * (1 + ratio.square().square().square()) ** (-1 / _SHARPNESS)

    def hits(self, y: Tensor) -> Tensor:
        """Number of elements of `y` beyond the limit, a 0-d integer tensor."""
        return (y.abs() > self.limit).sum()
