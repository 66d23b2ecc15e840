"""Seeds that depend on several numbers.

A search draws nothing from a generator that merely runs on: each step and each batch seeds its own draws from (seed,
epoch, position). Resuming then needs no generator state, whatever the number of loader workers.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def mix_seed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers (SplitMix64's finaliser)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
        state = state * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
    return state >> 1


def seed_all(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices) from several numbers."""
    seed = mix_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  users' datasets may draw from it
    seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's global generators on all devices: `torch.manual_seed`, but quick where there is none.

    That formats a traceback for every kind of device that is not there: 0.3 ms, at every step and batch.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
