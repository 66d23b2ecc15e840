"""What is run: a bare function on many elements, and networks of the published sizes on random batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actsearch import models, tasks
from actsearch.bench.contestants import Contestant, Kit
from actsearch.bench.steps import Searching, Steps, bare_searching, bare_training, training
from actsearch.swap import swap
from actsearch.tasks.optim import Task

# So small that a network stays as it started: the cost of a step does not depend on the rate, but a network that
# diverges would be skipped.
LR = 1e-6


@dataclass(frozen=True)
class Elements:
    """Elements that pass through activation sites in one step: of all sites, and of the largest."""

    total: int
    largest: int


class Workload(ABC):
    """Something that contestants are put into.

    Attributes:
        name, label: for the command line, and for people.
        detail: size of the batch and of the model, in words.
    """

    name: str
    label: str
    detail: str

    @abstractmethod
    def steps(self, contestant: Contestant, kit: Kit, device: torch.device) -> Steps:
        """The steps of `contestant`, each ready to be called again and again."""

    @abstractmethod
    def elements(self, device: torch.device) -> Elements:
        """How much passes through activations."""


@dataclass(frozen=True)
class Elementwise(Workload):
    """Forward and backward of the function alone on `n` float32 elements drawn from N(0, 1)."""

    n: int = 1 << 22
    name: str = "elementwise"
    label: str = "element-wise"

    @property
    def detail(self) -> str:  # type: ignore[override]
        return f"{self.n:,} float32 elements, forward and backward, no optimiser"

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The input, which needs its gradient, and the gradient of the output."""
        generator = torch.Generator().manual_seed(0)
        x, g = (torch.randn(self.n, generator=generator).to(device) for _ in range(2))
        return x.requires_grad_(), g

    def steps(self, contestant: Contestant, kit: Kit, device: torch.device) -> Steps:
        x, g = self.tensors(device)
        if contestant.module is not None:
            return {"weight": bare_training(contestant.module(kit), x, g)}
        assert contestant.cell is not None
        return bare_searching(contestant.cell(kit), x, g)

    def elements(self, device: torch.device) -> Elements:
        return Elements(self.n, self.n)


@dataclass(frozen=True)
class Network(Workload):
    """A model with its task on one random batch, made once and kept on the device.

    Attributes:
        model, options: by name, and its own arguments.
        kind, facts: of the data, as data modules tell them.
        optim: of the task, as its configuration has it, except for the rate.
        batch_size: examples a batch; of text, windows.
    """

    name: str
    label: str
    detail: str
    model: str
    kind: str
    facts: Mapping[str, Any]
    batch_size: int
    optim: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def task(self) -> Task:
        """A fresh task, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = models.build(self.model, self.facts, **self.options)
        return tasks.build(self.kind, model, self.facts, lr=LR, schedule="constant", **self.optim)

    def batch(self, device: torch.device, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `size` examples (default: `batch_size`)."""
        size = size or self.batch_size
        generator = torch.Generator().manual_seed(0)
        if self.kind == "language_modelling":
            shape = (size, self.facts["context"])
            inputs, targets = (torch.randint(self.facts["vocab_size"], shape, generator=generator) for _ in range(2))
        else:
            side = self.facts["image_size"]
            inputs = torch.randn(size, self.facts["in_channels"], side, side, generator=generator)
            targets = torch.randint(self.facts["num_classes"], (size,), generator=generator)
        return inputs.to(device), targets.to(device)

    def searching(self, contestant: Contestant, kit: Kit, device: torch.device) -> Searching:
        """The search of a contestant that has a cell."""
        assert contestant.cell is not None
        return Searching(self.task(), contestant.cell(kit), self.batch(device), device)

    def steps(self, contestant: Contestant, kit: Kit, device: torch.device) -> Steps:
        if contestant.module is not None:
            return {"weight": training(self.task(), contestant.module(kit), self.batch(device), device)}
        searching = self.searching(contestant, kit, device)
        return {"weight": searching.weight, "alpha": searching.alpha}

    def elements(self, device: torch.device) -> Elements:
        sizes: list[int] = []
        task = self.task()
        swap(task, lambda site: _Counter(sizes))
        with torch.no_grad():
            task.to(device)(self.batch(device)[0])
        return Elements(sum(sizes), max(sizes))


class _Counter(nn.Module):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        self._sizes.append(x.numel())
        return x.relu()


def resnet20(device: torch.device) -> Network:
    """The network that the targets are set for, with the published batch of a search."""
    return Network(
        "resnet20",
        "ResNet-20",
        "batch 64, 3×32×32",
        model="resnet20",
        kind="classification",
        facts={"num_classes": 10, "in_channels": 3, "image_size": 32},
        batch_size=64,
        optim={"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    )


def vit_tiny(device: torch.device) -> Network:
    """The published ViT-tiny; a quarter of its batch on a CPU."""
    size = 128 if device.type == "cuda" else 32
    return Network(
        "vit_tiny",
        "ViT-tiny",
        f"batch {size} (published: 128), 3×32×32",
        model="vit_tiny",
        kind="classification",
        facts={"num_classes": 10, "in_channels": 3, "image_size": 32},
        batch_size=size,
        optim={"optimizer": "adam", "weight_decay": 0.0},
    )


def minigpt(device: torch.device) -> Network:
    """The published miniGPT; on a CPU with few windows, as the logits of 160 windows alone take 8 GB."""
    size = 160 if device.type == "cuda" else 4
    return Network(
        "minigpt",
        "miniGPT",
        f"batch {size} (published: 160) windows of 256 tokens, vocabulary 50,257",
        model="minigpt",
        kind="language_modelling",
        facts={"vocab_size": 50257, "context": 256},
        batch_size=size,
        optim={"optimizer": "adamw", "betas": (0.9, 0.99), "weight_decay": 0.1, "decay_1d": False},
    )


WORKLOADS: dict[str, Callable[[torch.device], Workload]] = {
    "elementwise": lambda device: Elementwise(),
    "resnet20": resnet20,
    "vit_tiny": vit_tiny,
    "minigpt": minigpt,
}

_SMALL = {"num_classes": 10, "in_channels": 1, "image_size": 8}
QUICK: dict[str, Callable[[torch.device], Workload]] = {
    "elementwise": lambda device: Elementwise(1 << 12),
    "resnet20": lambda device: Network(
        "resnet20", "ResNet-8 (quick)", "batch 8, 1×8×8", "resnet8", "classification", _SMALL, 8, {}, {"width": 4}
    ),
    "vit_tiny": lambda device: Network(
        "vit_tiny",
        "small ViT (quick)",
        "batch 8, 1×8×8",
        "vit",
        "classification",
        _SMALL,
        8,
        {"optimizer": "adam"},
        {"dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32},
    ),
    "minigpt": lambda device: Network(
        "minigpt",
        "small GPT (quick)",
        "batch 4 windows of 8 tokens",
        "gpt",
        "language_modelling",
        {"vocab_size": 32, "context": 8},
        4,
        {"optimizer": "adamw"},
        {"layers": 1, "heads": 2, "width": 16},
    ),
}
"""The same at a scale for tests: whether everything runs, not how long it takes."""
