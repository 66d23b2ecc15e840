"""Whether a step will fit into memory, foreseen from the bare function at small sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actsearch.bench.contestants import Contestant, Kit
from actsearch.bench.memory import available_bytes, kept_bytes, peak_bytes
from actsearch.bench.workloads import Elements, Elementwise

SMALL = 1 << 15
SHARE = 0.9  # of the available memory that may be asked for


@dataclass(frozen=True)
class PerElement:
    """Bytes an element of a site: at the peak of its step, and kept from the forward to the backward pass."""

    peak: float
    kept: float

    def total(self, elements: Elements) -> float:
        """What all sites need at once at most: all keep what they keep, and the largest is at its peak."""
        return self.kept * elements.total + self.peak * elements.largest


def per_element(contestant: Contestant, kit: Kit, device: torch.device) -> PerElement:
    """Of a contestant with a cell; at two sizes, so that what does not grow with the input (tables) drops out.

    It also compiles what is to be compiled, and finds out whether that can be done.
    """
    assert contestant.cell is not None
    peaks, kept = [], []
    for n in (SMALL, 2 * SMALL):
        workload = Elementwise(n)
        steps = workload.steps(contestant, kit, device)
        for step in steps.values():
            step()
        peaks.append(peak_bytes(steps["alpha"], device))
        cell = contestant.cell(kit).to(device)
        site = cell.add_site("bare")
        x, _ = workload.tensors(device)
        cell.resample()
        kept.append(kept_bytes(lambda site=site, x=x: site(x), device))  # type: ignore[misc]
    return PerElement(*(max(0.0, (large - small) / SMALL) for small, large in (peaks, kept)))


def reason_against(needed: float, device: torch.device) -> str | None:
    """Why a step that needs so many bytes for its activations is not tried; None if it fits."""
    available = available_bytes(device)
    if available is None or needed <= SHARE * available:
        return None
    return f"not tried: its cells need about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"
