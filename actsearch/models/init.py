"""Initial weights for an activation other than the one that a model's initialiser had in mind."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from actsearch.errors import SettingsError


def scale_weights(model: nn.Module, factor: float) -> int:
    """Multiply the weights of all linear and convolutional layers of `model` by `factor`, in place.

    Biases, normalisations and embeddings stay, and so does a head whose weight is an embedding's. Returns how many
    weights there were.
    Raises SettingsError unless `factor` is finite and above 0.
    """
    if not 0 < factor < float("inf"):
        raise SettingsError(f"weights can be scaled by a finite factor above 0, not by {factor}")
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) and id(m.weight) not in embeddings]
    weights = {id(layer.weight): layer.weight for layer in layers}  # a weight that two layers share is scaled once
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(factor)
    return len(weights)
