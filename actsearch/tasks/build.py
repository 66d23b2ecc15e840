"""The task that fits a kind of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from actsearch.errors import SettingsError, UnknownNameError
from actsearch.tasks.classification import Classification
from actsearch.tasks.language_modelling import LanguageModelling
from actsearch.tasks.optim import Task

KINDS = ("classification", "language_modelling")


def build(kind: str, model: nn.Module, facts: Mapping[str, Any], label_smoothing: float = 0.0, **optim: Any) -> Task:
    """A task of `kind`, which data modules name, around `model`; `facts` as for `actsearch.models.build`.

    `label_smoothing` is of classification; `optim` are the fields of OptimSettings.
    Raises UnknownNameError for an unknown kind and SettingsError for settings out of range.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of task", kind, KINDS)
    if kind == "classification":
        return Classification(model, facts["num_classes"], label_smoothing=label_smoothing, **optim)
    if label_smoothing:
        raise SettingsError(f"label_smoothing is for classification; set it to 0 for {kind}")
    return LanguageModelling(model, **optim)
