"""What is trained: plain LightningModules around a model. A search wraps any of them, and any of a user's own."""

import actsearch._torchvision  # noqa: F401

from actsearch.tasks.build import build, divide
from actsearch.tasks.classification import Classification
from actsearch.tasks.force_field import ForceFieldTask
from actsearch.tasks.language_modelling import LanguageModelling
from actsearch.tasks.optim import OptimSettings, parameter_groups
from actsearch.tasks.pinn import PINN
from actsearch.tasks.regression import Regression
from actsearch.tasks.slope_recovery import SlopeRecovery

__all__ = [
    "PINN",
    "Classification",
    "ForceFieldTask",
    "LanguageModelling",
    "OptimSettings",
    "Regression",
    "SlopeRecovery",
    "build",
    "divide",
    "parameter_groups",
]
