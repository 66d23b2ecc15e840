"""Checksums that tell whether processes hold the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from actsearch.errors import RankError
from actsearch.search import agreement
from actsearch.search.agreement import check_agreement, fingerprint

CPU = torch.device("cpu")


def of(*tensors: Tensor) -> int:
    return int(fingerprint(tensors, CPU))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int64]
)
def test_a_single_changed_value_changes_the_checksum(dtype: torch.dtype) -> None:
    x = torch.zeros(7, dtype=dtype)
    y = x.clone()
    y[3] = 1
    assert of(x) != of(y)
    assert of(x) == of(x.clone())


def test_a_single_bit_a_change_of_places_and_the_order_of_tensors_are_seen() -> None:
    x = torch.randn(100)
    one_bit = x.clone()
    one_bit[17] = torch.nextafter(x[17], torch.tensor(9.0))
    assert of(x) != of(one_bit)
    assert of(x) != of(x.flip(0))
    assert of(x, one_bit) != of(one_bit, x)


def test_nan_is_a_value_as_any_other_and_layout_in_memory_none() -> None:
    x = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    assert of(x) == of(x.clone())
    assert of(x.t()) == of(x.t().contiguous())
    assert of(x) != of(x.t())


def gathered(monkeypatch: pytest.MonkeyPatch, change: dict[int, Any], world: int = 4) -> None:
    """As if there were so many processes, of which some hold another number at a place of the message."""

    def all_gather(found: list[Tensor], mine: Tensor) -> None:
        for rank, one in enumerate(found):
            one.copy_(mine)
            if rank in change:
                one[change[rank]] += 1

    monkeypatch.setattr(agreement, "rank_and_world", lambda: (0, world))
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)


def check() -> None:
    check_agreement({"α": [torch.ones(3)], "weights": [torch.ones(2)]}, {"survivors": "a"}, CPU, 12)


def test_the_message_names_the_step_what_differs_and_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered(monkeypatch, {})
    check()
    gathered(monkeypatch, {1: 0, 3: 2})
    with pytest.raises(RankError, match=r"^step 12: α and survivors of rank 1, 3 differ from those of rank 0"):
        check()


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_gather", lambda *args: pytest.fail("a message was sent"))
    check()
