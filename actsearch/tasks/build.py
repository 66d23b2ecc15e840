"""The task that fits a kind of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from actsearch.errors import SettingsError, UnknownNameError
from actsearch.tasks.classification import Classification
from actsearch.tasks.force_field import ForceFieldTask
from actsearch.tasks.language_modelling import LanguageModelling
from actsearch.tasks.optim import OptimSettings, Task
from actsearch.tasks.pinn import PINN

# What a kind of task can be told beside the fields of OptimSettings, with the value that leaves it out.
OWN: Mapping[str, Mapping[str, Any]] = {
    "classification": {"label_smoothing": 0.0},
    "language_modelling": {},
    "pinn": {"residual_weight": 1.0, "data_weight": 1.0, "lbfgs_steps": 0},
    "force_field": {
        "energy_weight": (0.02, 1.0),
        "force_weight": (1000.0, 1.0),
        "stress_weight": (0.0, 0.0),
        "force_loss": "mse",
        "ema": 0.0,
    },
}
KINDS = tuple(OWN)


def build(kind: str, model: nn.Module, facts: Mapping[str, Any], **training: Any) -> Task:
    """A task of `kind`, which data modules name, around `model`; `facts` as for `actsearch.models.build`.

    `training` are the fields of OptimSettings, and label_smoothing of classification, residual_weight, data_weight and
    lbfgs_steps of pinn, energy_weight, force_weight, stress_weight, force_loss and ema of force_field; another kind
    takes them at their defaults only.
    Raises UnknownNameError for an unknown kind and SettingsError for settings out of range.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of task", kind, KINDS)
    optim, own = divide(training)
    for other, defaults in OWN.items():
        for name, default in defaults.items():
            if other != kind and _plain(own.pop(name, default)) != _plain(default):
                raise SettingsError(f"{name} is for {other}; set it to {_written(default)} for {kind}")
    if kind == "classification":
        return Classification(model, facts["num_classes"], **own, **optim)
    if kind == "pinn":
        return PINN(model, facts["problem"], **own, **optim)
    if kind == "force_field":
        return ForceFieldTask(model, **own, **optim)
    return LanguageModelling(model, **optim)


def _plain(value: Any) -> Any:
    """Lists, as a YAML file has them, and tuples alike."""
    return tuple(value) if isinstance(value, list) else value


def _written(default: Any) -> str:
    if isinstance(default, tuple):
        return f"[{', '.join(map(_written, default))}]"
    return default if isinstance(default, str) else f"{default:g}"


def divide(training: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the optimiser, and those of one kind of task. Raises SettingsError for the former."""
    own_names = {name for defaults in OWN.values() for name in defaults}
    own = {name: value for name, value in training.items() if name in own_names}
    optim = {name: value for name, value in training.items() if name not in own_names}
    OptimSettings.of(optim)
    return optim, own
