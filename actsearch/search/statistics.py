"""What batch normalisation does while a search looks at a network in ways that its training should not feel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def statistics_layers(model: nn.Module) -> list[_NormBase]:
    """The layers of `model` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase)]


@contextmanager
def frozen_statistics(layers: Iterable[_NormBase]) -> Iterator[None]:
    """Within it, batch normalisation uses the statistics of the batch and leaves its running ones as they are."""
    # A momentum of 0 would not do: 0 · inf is NaN.
    frozen = [m for m in layers if m.training and m.track_running_stats]
    for m in frozen:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in frozen:
            m.track_running_stats = True


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but with the statistics of the batch in batch normalisation; modes are restored."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    layers = statistics_layers(model)
    for layer in layers:
        layer.train()
    try:
        with frozen_statistics(layers):
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
