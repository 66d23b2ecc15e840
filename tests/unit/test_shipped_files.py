"""Every YAML file that travels with the package can be read and means something."""

from __future__ import annotations

from pathlib import Path

import pytest

from actsearch import models, options
from actsearch.build import build
from actsearch.compare import standard_contestants
from actsearch.config import DataConfig, SearchConfig, TrainingConfig
from actsearch.data import ImageData
from actsearch.data.registry import names as data_names
from actsearch.space import SearchSpace
from actsearch.tasks import Classification, OptimSettings

ROOT = Path(__file__).parent.parent.parent
FILES = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("search_spaces/*.yaml")])


def _config(*arguments: str) -> SearchConfig:
    parser = options.make_parser("")
    options.add_config(parser)
    return options.read_config(parser, arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_file_is_valid(path: Path) -> None:
    if path.parent.name == "search_spaces":
        assert SearchSpace.load(path).size > 1
        return
    config = _config("--config", str(path))
    space = SearchSpace.load(config.space)
    standard_contestants(config.compare.activations, space, config.compare.random)
    assert config.data.name in data_names()
    facts = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    model = models.build(config.model.name, **facts, **config.model.options)
    settings = {k: v for k, v in vars(config.training).items() if k != "label_smoothing"}
    Classification(model, 10, label_smoothing=config.training.label_smoothing, **settings)


@pytest.mark.parametrize("name", ["fashion_mnist_lenet", "cifar10_jpeg_resnet8", "resnet20_cifar10"])
def test_named_searches_are_long_enough_to_mean_something(name: str) -> None:
    config = _config("--config", name)
    assert config.search.epochs >= 10
    assert config.data.limit_train is None or config.data.limit_train >= 10_000


def test_training_config_mirrors_the_settings_of_the_optimiser() -> None:
    mirrored = {k: v for k, v in vars(TrainingConfig()).items() if k != "label_smoothing"}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in mirrored.items()} == vars(OptimSettings())


def test_data_config_mirrors_the_data_module() -> None:
    data = ImageData()
    for name, value in vars(DataConfig()).items():
        if name != "root":
            assert getattr(data, name) == value


def test_default_config_builds_an_experiment() -> None:
    experiment = build(_config())
    assert experiment.data.title.startswith("digits")
    assert {"relu", "gelu", "silu", "random 1"} <= {control.name for control in experiment.controls}
    assert isinstance(experiment.build_task(), Classification)
