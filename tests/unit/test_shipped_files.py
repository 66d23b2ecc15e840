"""Every YAML file that travels with the package can be read and means something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actsearch import data, options
from actsearch.build import TaskBuilder, build
from actsearch.config import DataConfig, SearchConfig, TrainingConfig, TransferConfig
from actsearch.data import ImageData
from actsearch.data.pde import Burgers
from actsearch.space import SearchSpace
from actsearch.tasks import Classification, OptimSettings
from actsearch.tasks.build import OWN
from actsearch.transfer import controls
from actsearch.tune import Plan
from actsearch.tuning import Work

ROOT = Path(__file__).parent.parent.parent
FILES = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("search_spaces/*.yaml")])


SIDES = {"digits": 8, "fashion_mnist": 28}


def _facts(name: str, kind: str) -> dict[str, Any]:
    """What data says of itself, without reading or downloading it."""
    if kind == "language_modelling":
        return {"vocab_size": 100, "context": 32}
    if kind == "pinn":
        return {"domain": ((-1.0, 1.0), (0.0, 1.0)), "problem": Burgers()}
    if kind == "force_field":
        return {"elements": (1, 6, 8), "cutoff": 6.0, "references": {1: -13.6}, "sample": None}
    side = SIDES.get(name, 32)
    return {"num_classes": 10, "in_channels": 3, "image_size": side, "in_features": 3 * side**2}


def _config(*arguments: str, cls: type = SearchConfig) -> Any:
    parser = options.make_parser("")
    options.add_config(parser, cls)
    config, _ = options.read_config(parser, arguments, cls)
    return config


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_file_is_valid(path: Path) -> None:
    if path.parent.name == "search_spaces":
        assert SearchSpace.load(path).size > 1
        return
    if path.parent.name == "tune":
        plan = Plan.load(path)
        assert plan.trials >= 10
        assert Work(plan, path.stem).check()
        return
    config = _config("--config", str(path), cls=SearchConfig if path.parent.name == "search" else TransferConfig)
    assert controls(config.compare, SearchSpace.load(config.space or "grafs"))
    values = vars(config.data)
    kind = data.build(**{k: v for k, v in values.items() if k != "options"}, **values["options"]).kind
    builder = TaskBuilder(
        kind, _facts(config.data.name, kind), config.model.name, config.model.options, vars(config.training)
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in builder().parameters()) > 500
    if path.parent.name == "transfer":
        assert config.compare.epochs


@pytest.mark.parametrize("name", ["fashion_mnist_lenet", "cifar10_jpeg_resnet8", "resnet20_cifar10"])
def test_named_searches_are_long_enough_to_mean_something(name: str) -> None:
    config = _config("--config", name)
    assert config.search.epochs >= 10
    assert config.data.limit_train is None or config.data.limit_train >= 10_000


def test_training_config_mirrors_the_settings_of_the_optimiser() -> None:
    values = dict(vars(TrainingConfig()))
    of_tasks = {name: default for defaults in OWN.values() for name, default in defaults.items()}
    assert {k: values.pop(k) for k in of_tasks} == of_tasks
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()} == vars(OptimSettings())


def test_data_config_mirrors_the_data_module() -> None:
    data = ImageData()
    for name, value in vars(DataConfig()).items():
        if name != "root":
            assert getattr(data, name) == value


def test_default_config_builds_an_experiment() -> None:
    experiment = build(_config())
    assert experiment.data.title.startswith("digits")
    assert isinstance(experiment.build_task(), Classification)
