"""Listens to one forward pass: which activation functions run outside of every site, and which sites run?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from actsearch.swap.catalog import FUNCTIONS, GATE_FUNCTIONS, kind_of


@dataclass
class Heard:
    """What ran: the sites, and (module, function, file and line) of each activation function outside of them."""

    sites: set[int] = field(default_factory=set)  # ids of modules
    others: list[tuple[nn.Module, str, str]] = field(default_factory=list)


def listen(model: nn.Module, example: Any, sites: set[int], gates: bool) -> Heard:
    """Run `model` on `example` in evaluation mode, without a trace in random generators.

    It runs without gradients, unless a tensor of the example requires them: models of forces differentiate inside.

    example: a tensor or another single input, a tuple or list of them, or a dict of keyword arguments.
    """
    heard = Heard()
    arguments: Sequence[Any] = ()
    keywords: Mapping[str, Any] = {}
    if isinstance(example, Mapping):
        keywords = example
    else:
        arguments = example if isinstance(example, tuple | list) else (example,)
    given = (*arguments, *keywords.values())
    wanted = any(isinstance(x, torch.Tensor) and x.requires_grad for x in given)
    with (
        torch.set_grad_enabled(wanted),
        _evaluating(model),
        torch.random.fork_rng(),
        _Listener(model, heard, sites, gates),
    ):
        model(*arguments, **keywords)
    return heard


class _Listener(TorchFunctionMode):
    def __init__(self, model: nn.Module, heard: Heard, sites: set[int], gates: bool) -> None:
        super().__init__()
        self.heard, self.sites = heard, sites
        self.functions = {**FUNCTIONS, **(GATE_FUNCTIONS if gates else {})}
        self.running: list[nn.Module] = [model]
        self.handles: list[Any] = []

    def __enter__(self) -> _Listener:
        self.handles = [
            register_module_forward_pre_hook(lambda module, _: self._enter(module)),
            register_module_forward_hook(lambda *_: self._leave(), always_call=True),
        ]
        return super().__enter__()

    def _enter(self, module: nn.Module) -> None:
        self.running.append(module)
        if id(module) in self.sites:
            self.heard.sites.add(id(module))

    def _leave(self) -> None:
        self.running.pop()

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.functions and not any(id(m) in self.sites or kind_of(m) for m in self.running):
            self.heard.others.append((self.running[-1], self.functions[func], _caller()))
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """File and line of the code that called torch."""
    frame = sys._getframe(2)
    inside = (str(Path(torch.__file__).parent), __file__)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
