"""Sums of a quantity by code, the same bits in every run."""

from __future__ import annotations

import torch
from torch import Tensor

COPIES = 64  # on an accelerator, so that threads seldom meet at the same number


def sum_by_code(codes: Tensor, g: Tensor, n: int) -> Tensor:
    """Σ g of the elements of each code in [0, n); codes int32 (N,), g float32 (N,) → float64 (n,).

    One thread adds up on a CPU. On an accelerator many do, in any order, so what they add there are whole numbers; see
    `fixed_point_sums`.
    """
    if g.device.type == "cpu":
        return torch.bincount(codes, g, minlength=n).double()
    return fixed_point_sums(codes, g, n)


def fixed_point_sums(codes: Tensor, g: Tensor, n: int) -> Tensor:
    """`sum_by_code` in any order of addition: g is rounded to multiples of max |g| · N / 2^62.

    Not finite anywhere if an element of g is not. Nothing waits for the device.
    """
    greatest = g.abs().max() if g.numel() else g.new_zeros(())
    scale = 2.0**62 / max(g.numel(), 1) / greatest.double().clamp(min=torch.finfo(torch.float32).tiny)
    whole = (g.double() * scale).nan_to_num(0.0, 0.0, 0.0).round().long()
    copy = torch.arange(g.numel(), device=g.device, dtype=torch.int64) % COPIES
    sums = torch.zeros(COPIES * n, dtype=torch.int64, device=g.device)
    sums.index_add_(0, copy * n + codes, whole)
    exact = sums.view(COPIES, n).sum(0).double() / scale
    return torch.where(greatest.isfinite(), exact, torch.nan)
