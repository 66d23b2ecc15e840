"""When candidates are dropped: the published table, and what holds for every length."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actsearch.errors import SettingsError
from actsearch.search.schedule import drop_times

# arXiv 2408.06820, for T = 50 epochs and s = 2: survivors after the epoch.
PUBLISHED = {
    1: 110, 2: 91, 3: 80, 4: 73, 5: 67, 6: 62, 7: 58, 8: 54, 9: 51, 10: 48, 12: 43, 15: 37,
    20: 30, 25: 24, 30: 19, 35: 15, 40: 11, 45: 8, 47: 7, 48: 6, 49: 6, 50: 6,
}  # fmt: skip


@pytest.mark.parametrize("epoch", PUBLISHED)
def test_survivors_are_those_of_the_published_table(epoch: int) -> None:
    times = drop_times(candidates=110, slots=6, length=50, start=2)
    assert len(times) == 104
    assert 110 - sum(t <= epoch for t in times) == PUBLISHED[epoch]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.integers(1, 150), st.integers(1, 8), st.integers(1, 2000), st.integers(1, 2000))
def test_every_drop_happens_in_order_between_the_start_and_the_end(n: int, slots: int, length: int, start: int) -> None:
    if n <= slots:
        assert drop_times(n, slots, length, start) == ()
        return
    if length <= start:
        with pytest.raises(SettingsError, match="cannot start to shrink"):
            drop_times(n, slots, length, start)
        return
    times = drop_times(n, slots, length, start)
    assert len(times) == n - slots
    assert list(times) == sorted(times)
    assert times[0] == start
    assert times[-1] <= length - 1  # the last epoch sees the discrete cell
    if n - slots > 1:
        assert times[-1] >= length - 2
