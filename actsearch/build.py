"""From a configuration to what it names: data, and fresh tasks on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl

from actsearch import models
from actsearch.compare import Contestant, standard_contestants
from actsearch.config import SearchConfig
from actsearch.data import ImageData
from actsearch.errors import UnknownNameError
from actsearch.space import SearchSpace
from actsearch.tasks import Classification, OptimSettings


@dataclass(frozen=True)
class Experiment:
    """What a configuration means.

    Attributes:
        space: the search space.
        data: the data module.
        build_task: gives a task with fresh weights, drawn from torch's global generator.
        controls: the activations to compare with.
    """

    space: SearchSpace
    data: ImageData
    build_task: Callable[[], pl.LightningModule]
    controls: list[Contestant]


def build(config: SearchConfig) -> Experiment:
    """The parts that `config` names. Raises an ActsearchError for anything in it that cannot work."""
    space = SearchSpace.load(config.space)
    controls = standard_contestants(config.compare.activations, space, config.compare.random, config.search.seed)
    if config.model.name not in models.names():  # before data may be downloaded
        raise UnknownNameError("model", config.model.name, models.names())
    options = dataclasses.asdict(config.training)
    smoothing = options.pop("label_smoothing")
    OptimSettings.of(options)
    values = dataclasses.asdict(config.data)
    data = ImageData(**{k: v for k, v in values.items() if k != "options"}, **config.data.options)
    data.setup("fit")

    def build_task() -> pl.LightningModule:
        model = models.build(config.model.name, data.facts, **config.model.options)
        return Classification(model, data.num_classes, label_smoothing=smoothing, **options)

    return Experiment(space, data, build_task, controls)
