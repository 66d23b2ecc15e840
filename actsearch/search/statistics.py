"""What batch normalisation does while a search looks at a network in ways that its training should not feel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, batch normalisation uses the statistics of the batch and leaves its running ones as they are."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in layers]
    counts = [None if m.num_batches_tracked is None else m.num_batches_tracked.clone() for m in layers]
    for m in layers:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum, count in zip(layers, momenta, counts, strict=True):
            m.momentum = momentum
            if count is not None and m.num_batches_tracked is not None:
                m.num_batches_tracked.copy_(count)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but with the statistics of the batch in batch normalisation; modes are restored."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    for m in modes:
        if isinstance(m, _BatchNorm):
            m.train()
    try:
        with frozen_statistics(model):
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
