"""From a configuration to what it names: data, and fresh tasks on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import actsearch._torchvision  # noqa: F401

from actsearch import data, models, tasks
from actsearch.config import SearchConfig, TransferConfig
from actsearch.data.build import AnyData
from actsearch.errors import UnknownNameError
from actsearch.tasks.optim import Task


@dataclass(frozen=True)
class TaskBuilder:
    """Makes a task with fresh weights, drawn from torch's global generator; it can be sent to another process.

    Attributes:
        kind, facts: of the data.
        model, options: the model by name, and its own arguments.
        training: the task's own arguments.
    """

    kind: str
    facts: Mapping[str, Any]
    model: str
    options: Mapping[str, Any]
    training: Mapping[str, Any]

    def __call__(self) -> Task:
        return tasks.build(self.kind, models.build(self.model, self.facts, **self.options), self.facts, **self.training)

    def description(self) -> dict[str, Any]:
        """How `task.model` is built: the arguments of `actsearch.models.build`."""
        return {"model": self.model, "options": self.options, "facts": self.facts}


@dataclass(frozen=True)
class Experiment:
    """What a configuration means: the data, and what makes a task on it."""

    data: AnyData
    build_task: TaskBuilder


def build(config: SearchConfig | TransferConfig) -> Experiment:
    """The parts that `config` names. Raises an ActsearchError for anything in it that cannot work."""
    if config.model.name not in models.names():  # before data may be downloaded
        raise UnknownNameError("model", config.model.name, models.names())
    training = dataclasses.asdict(config.training)
    tasks.divide(training)  # complains about the optimiser's
    values = dataclasses.asdict(config.data)
    options = values.pop("options")
    module = data.build(**values, **options)
    module.setup("fit")
    return Experiment(module, TaskBuilder(module.kind, module.facts, config.model.name, config.model.options, training))
