"""Finds every activation site of a model, and why some of them are to be left alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.fx
from torch import nn
from torch.nn.modules.loss import _Loss
from torch.nn.utils.parametrize import ParametrizationList

from actsearch.swap.calls import UNKNOWN, Analysis, Call, is_loss
from actsearch.swap.catalog import FUNCTIONS, function_name, is_linear, kind_of, name_by_attribute
from actsearch.swap.held import Step, held, path_name
from actsearch.swap.report import Site
from actsearch.swap.rewrite import base_of, recipe_of

Shared = Literal["keep", "split"]
Recognise = Callable[[nn.Module], bool]

_SCRIPTED = re.compile(rf"aten::({'|'.join(sorted(set(FUNCTIONS.values())))})_?\(")


@dataclass
class Owner:
    """A module that holds or calls activations."""

    name: str
    module: nn.Module
    analysis: Analysis
    reason: str | None  # why nothing in it is to be replaced
    names: set[str] = field(default_factory=set)  # given to new submodules

    def free(self, name: str) -> str:
        """A name for a submodule that the module does not have yet."""
        while name in self.names or hasattr(self.module, name):
            name += "_"
        self.names.add(name)
        return name


@dataclass
class Found:
    """A site, and where it is: at a place that `owner` holds, or a call in the code of `owner`."""

    site: Site
    owner: Owner
    key: Any  # equal where one instance stands at several places that are to stay one
    is_gate: bool
    reason: str | None = None
    attribute: str = ""
    steps: tuple[Step, ...] = ()
    call: Call | None = None
    uses: list[Call] = field(default_factory=list)  # where the owner's code calls what it holds here


def find(model: nn.Module, shared: Shared = "keep", recognise: Recognise = lambda module: False) -> list[Found]:
    """The sites of `model`, owner by owner in the order of `named_modules`."""
    owners = _owners(model, recognise)
    found = []
    for owner in owners:
        found += _held_by(owner, shared, recognise)
        found += _called_by(owner)
    return found


def _owners(model: nn.Module, recognise: Recognise) -> list[Owner]:
    owners: list[Owner] = []
    closed: list[tuple[str, str | None]] = []
    for name, module in model.named_modules():
        inside = next((reason for prefix, reason in closed if name.startswith(prefix)), "")
        if inside is None:
            continue
        if name and (kind_of(module) or recognise(module)):
            closed.append((f"{name}.", None))  # what an activation is made of is no site
            continue
        reason = inside or _reason_against(module, is_root=not name)
        if isinstance(module, torch.jit.ScriptModule):
            closed.append((f"{name}." if name else "", None))
        elif reason and not inside:
            closed.append((f"{name}." if name else "", reason))
        held_at = {path_name(attribute, steps) for attribute, steps, _ in held(module, recognise)}
        analysis = Analysis(module, base_of(module), held_at)
        if not isinstance(module, torch.jit.ScriptModule):
            analysis.start()
        owners.append(Owner(name, module, analysis, reason or None))
    of = {id(owner.module): owner for owner in owners}
    again = True
    while again:  # methods that are called from other modules, such as `self.encoder.encode(x)`
        again = False
        for owner in owners:
            while owner.analysis.others:
                again = True
                module, method = owner.analysis.others.pop()
                if id(module) in of:
                    of[id(module)].analysis.method(method)
    return owners


def _reason_against(module: nn.Module, is_root: bool) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted by torch.jit; swap before scripting"
    if isinstance(module, ParametrizationList):
        return "it shapes a weight, as a parametrisation"
    if is_root:  # a LightningModule may be named after its loss
        return None
    of_torchmetrics = any(c.__module__.partition(".")[0] == "torchmetrics" for c in type(module).__mro__)
    if of_torchmetrics or isinstance(module, _Loss) or type(module).__name__.lower().endswith(("loss", "criterion")):
        return "part of a loss or metric"
    return None


def _held_by(owner: Owner, shared: Shared, recognise: Recognise) -> list[Found]:
    found = []
    for attribute, steps, value in held(owner.module, recognise):
        path = path_name(attribute, steps)
        is_module = isinstance(value, nn.Module)
        # One instance at several places is one site.
        key: Any = id(value) if is_module else (id(owner.module), attribute, steps)
        if shared == "split" and not steps:
            key = (id(owner.module), attribute)
        uses = [call for call in owner.analysis.calls if call.held == path]
        call = None if is_module else _agreed(uses)
        site = Site(_dotted(owner, path), _describe(value), "module" if is_module else "function", value, call)
        reason = owner.reason or ("part of a loss or metric" if is_loss(attribute) else None)
        reason = reason or ("linear: there is no activation" if is_linear(value) else None)
        first = Found(site, owner, key, kind_of(value) == "gate", reason, attribute, steps, uses=uses)
        found.append(first)
        if shared == "split" and not steps:
            for number, use in enumerate([use for use in uses if use.is_called]):
                if number:
                    first.uses.remove(use)
                if number and use.key not in recipe_of(owner.module).edits:
                    use.child = owner.free(f"{attribute}_{number + 1}")
                    again = Site(_dotted(owner, use.child), site.original, site.kind, value, use)
                    key = (id(owner.module), use.key)
                    found.append(Found(again, owner, key, first.is_gate, owner.reason, call=use))
    if isinstance(owner.module, nn.RNNBase | nn.RNNCellBase):
        site = Site(owner.name, type(owner.module).__name__)
        found.append(Found(site, owner, None, False, "its activations are inside torch's kernel"))
    if isinstance(owner.module, torch.jit.ScriptModule) and _SCRIPTED.search(str(_graph(owner.module))):
        site = Site(owner.name, f"scripted {owner.module.original_name}")
        found.append(Found(site, owner, None, False, owner.reason))
    return found


def _agreed(uses: list[Call]) -> Call | None:
    """The further arguments with which a function is called: those of all its calls, or not known."""
    for use in uses[1:]:
        if (use.arguments, use.keywords) != (uses[0].arguments, uses[0].keywords):
            return replace(use, arguments=(UNKNOWN,))
    return uses[0] if uses else None


def _called_by(owner: Owner) -> list[Found]:
    found = []
    numbers: Counter[str] = Counter()
    edits = recipe_of(owner.module).edits
    for call in owner.analysis.calls:
        if call.held is not None:
            continue
        numbers[call.child] += 1
        if call.key in edits:  # an earlier swap put a submodule there
            continue
        name = owner.free(f"{call.child}_{numbers[call.child]}")
        call.child = name
        site = Site(_dotted(owner, name), call.text, "call", call.function, call)
        key = (id(owner.module), call.key)
        reason = owner.reason or call.reason
        if isinstance(owner.module, torch.fx.GraphModule):  # its copies are made anew from the graph
            reason = reason or "in a traced graph; swap before tracing"
        found.append(Found(site, owner, key, call.is_gate, reason, call=call))
    for method, reason in owner.analysis.unreadable:
        found.append(Found(Site(_dotted(owner, method), f"code of {method}", "call"), owner, None, False, reason))
    return found


def _graph(module: torch.jit.ScriptModule) -> object:
    return getattr(module, "inlined_graph", "")


def _dotted(owner: Owner, name: str) -> str:
    return f"{owner.name}.{name}" if owner.name else name


def _describe(value: Any) -> str:
    if (name := name_by_attribute(value)) is not None:
        return f"{type(value).__name__}({name!r})"
    return repr(value) if isinstance(value, nn.Module) else f"function {function_name(value)}"
