"""When a candidate is dropped: the published log-spaced schedule (arXiv 2408.06820)."""

from __future__ import annotations

import math

from actsearch.errors import SettingsError


def drop_times(candidates: int, slots: int, length: int, start: int) -> tuple[int, ...]:
    """The epoch (or step) after which each single drop happens, in order.

    With n candidates in m slots there are n - m drops; drop j comes after `start` - 1 + floor(10^(j/(n-m-1) ·
    log10(`length` - `start`))), j = 0 … n-m-1. The exponent is computed in floating point, as in the published figures:
    10^log10(48) is 47.99…, so for length 50 and start 2 the last drop comes after epoch 48.

    Raises SettingsError if the search is too short.
    """
    drops = candidates - slots
    if drops <= 0:
        return ()
    if length <= start:
        raise SettingsError(f"a search of length {length} cannot start to shrink at {start}")
    last = max(drops - 1, 1)
    return tuple(start - 1 + math.floor(10 ** (j / last * math.log10(length - start))) for j in range(drops))
