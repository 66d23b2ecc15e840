"""A step that only the device can refuse changes nothing, whatever the optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from actsearch.search.gate import Gate, prefer_fused


class Counting(torch.optim.SGD):
    """Not torch's own: what it counts cannot be put back."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        super().step()


optim = torch.optim
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "fused momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.1, weight_decay=1e-2),
    "amsgrad": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, foreach=True),
    "fused adam": lambda p: optim.Adam(p, lr=0.1, fused=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.1),
    "fused adamw": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True, fused=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.1),
    "radam": lambda p: optim.RAdam(p, lr=0.1),
    "adamax": lambda p: optim.Adamax(p, lr=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.1),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "rprop": lambda p: optim.Rprop(p, lr=0.1),
    "asgd": lambda p: optim.ASGD(p, lr=0.1),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1),
    "own": Counting,
}


class Stepper:
    """An optimiser of two parameters behind a gate."""

    def __init__(self, make: Callable[[Any], Optimizer]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), ())]
        self.optimizer = make(self.parameters)
        if isinstance(self.optimizer, optim.LBFGS):  # it wants a closure, as Lightning's wrapper gives one
            step = self.optimizer.step
            self.optimizer.step = lambda: step(lambda: torch.zeros(()))  # type: ignore[assignment, method-assign]
        self.gate = Gate(self.optimizer)

    def step(self, k: int, finite: bool) -> None:
        generator = torch.Generator().manual_seed(k)
        for p in self.parameters:
            p.grad = torch.randn(p.shape, generator=generator)
            if not finite:
                p.grad.fill_(torch.nan if k % 2 else torch.inf)
        self.gate.step(torch.tensor(finite))

    def state(self) -> list[Any]:
        entries = self.optimizer.state_dict()["state"]
        values = [value for key in sorted(entries) for _, value in sorted(entries[key].items())]
        return copy.deepcopy([*self.parameters, *values, getattr(self.optimizer, "count", None)])


def same(first: Any, second: Any) -> bool:
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_refused_step_changes_nothing(name: str) -> None:
    """The first too, of which there is nothing to put back."""
    gated, plain = Stepper(OPTIMIZERS[name]), Stepper(OPTIMIZERS[name])
    for k, finite in enumerate([False, True, False, True, False, False, True]):
        before = gated.state()
        gated.step(k, finite)
        if finite:
            assert not same(gated.state(), before)
            plain.step(k, True)
        assert same(gated.state(), plain.state())


def test_a_parameter_that_joins_later_is_not_started_by_a_refused_step() -> None:
    stepper = Stepper(OPTIMIZERS["momentum"])
    late = nn.Parameter(torch.ones(2))
    stepper.optimizer.add_param_group({"params": [late]})
    stepper.step(0, True)
    late.grad = torch.full((2,), torch.nan)
    stepper.step(1, False)
    late.grad = torch.ones(2)
    stepper.step(2, True)
    assert late.isfinite().all()
    assert late not in stepper.optimizer.state or torch.equal(
        stepper.optimizer.state[late]["momentum_buffer"], 1 + 1e-2 * torch.ones(2)
    )


class Unknown:
    """A flag of which only the device knows: reading it is an error."""

    def __init__(self, flag: Tensor) -> None:
        self.flag = flag

    def __bool__(self) -> bool:
        raise AssertionError("the host waited for the device")

    def logical_not(self) -> Tensor:
        return self.flag.logical_not()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*(a.flag if isinstance(a, Unknown) else a for a in args), **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("sgd", False),
        ("momentum", False),
        ("fused momentum", False),
        ("adam", False),
        ("fused adam", False),
        ("own", True),
        ("lbfgs", True),
    ],
)
def test_who_waits_for_the_flag(name: str, waits: bool) -> None:
    stepper = Stepper(OPTIMIZERS[name])
    stepper.step(0, True)
    for p in stepper.parameters:
        p.grad = torch.ones_like(p)
    flag: Any = Unknown(torch.tensor(True))
    if waits:
        with pytest.raises(AssertionError, match="waited"):
            stepper.gate.step(flag)
    else:
        before = stepper.state()
        stepper.gate.step(flag)
        assert not same(stepper.state(), before)


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_a_cpu_keeps_the_implementation_that_torch_chooses(name: str) -> None:
    optimizer = Stepper(OPTIMIZERS[name]).optimizer
    prefer_fused(optimizer)
    assert all(group["fused"] is None for group in optimizer.param_groups)
