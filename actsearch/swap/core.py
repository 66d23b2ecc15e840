"""swap and unswap: what `find` found is selected, given its new module, and put in; or put back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from actsearch.activation import Activation
from actsearch.errors import SmoothnessError, SwapError
from actsearch.genotype import Genotype
from actsearch.swap.audit import listen
from actsearch.swap.calls import Analysis
from actsearch.swap.catalog import kind_of
from actsearch.swap.find import Found, Owner, Shared, find
from actsearch.swap.held import held_names, path_name, put
from actsearch.swap.report import Site, SwapReport
from actsearch.swap.rewrite import Recipe, apply, base_of, recipe_of
from actsearch.swap.smoothness import refusal

Factory = Callable[[Site], nn.Module]
New = nn.Module | type[nn.Module] | Genotype | Factory
Pattern = str | type | Callable[[Site], bool]
"""A shell pattern of sites' dotted names, a class that stands there, or a predicate of the site."""


def swap(
    model: nn.Module,
    activation: New | Mapping[str, New],
    *,
    include: Pattern | Iterable[Pattern] = "*",
    exclude: Pattern | Iterable[Pattern] = (),
    types: type[nn.Module] | Callable[[nn.Module], bool] | Iterable[type[nn.Module]] = (),
    gates: bool = False,
    shared: Shared = "keep",
    example: Any = None,
    force: bool = False,
) -> SwapReport:
    """Replace the activations of `model`, in place.

    Found are: modules of the known activation types and library classes named like one; functions such as `F.silu`, and
    partials of them, in attributes; both also inside lists, tuples, dicts, dataclasses and namespaces; and calls in the
    modules' own code (`F.relu(x)`, `x.tanh()`, `ACT[self.kind](x)`, `F.relu_(x)`), in `forward`, the methods that it
    calls, and their helper functions and lambdas. A call gets a submodule of its own, with the site's name; its module
    becomes an instance of a class derived from its class, and nothing is intercepted when it runs.

    Softmax is no activation. Losses, metrics, calls in `training_step` and its like (where losses are computed), weight
    parametrisations and scripted modules are left alone and listed.

    Args:
        model: any module.
        activation: a Genotype (every site gets an Activation of its own), a module (every site gets this one), a class
            of modules (every site gets an instance), a factory from the Site to its new module, or a mapping from
            patterns of names to any of these, of which the first that fits is taken.
        include, exclude: shell patterns of the sites' dotted names, classes that stand there, or predicates of a Site.
        types: further classes of modules that are activations, or a predicate of a module.
        gates: also replace sigmoids and hard sigmoids, which usually multiply something.
        shared: "keep": one instance at several places, or called several times, is one site and gets one new module;
            "split": each place and each call in the owner's code gets its own.
        example: an input (tensor, tuple of arguments, dict of keyword arguments) on which the model is run once in
            evaluation mode. It finds activations that the code does not show, and sites that do not run. Gradients are
            on if one of the tensors requires them, as a model needs that computes forces.
        force: put in activations that are known to be less smooth than the model needs; see below.

    An in-place activation becomes out of place, except where its result is thrown away (a statement `F.relu_(x)`):
    there it is written back. Other modules with `inplace=True` are set to False, as they may overwrite what the new
    function saved for its gradient; of a `y += x` after a site torch itself says in backward if it does.

    A module says by an attribute `least_smoothness`, a whole number k, that activations in the model must be C^k, as
    force fields do: forces are derivatives of the energy. What is known to be less smooth is then refused, unless it
    stands there already; see `actsearch.swap.smoothness.smoothness_of`.

    Returns a SwapReport, which `unswap` takes.

    Raises SwapError if nothing was replaced, or if the factory gives something else than a module, and SmoothnessError,
    a SwapError, for what is not smooth enough; the model is then untouched.
    """
    _check(model, shared)
    recognise = _recogniser(types)
    report = SwapReport()
    chosen: list[Found] = []
    for found in find(model, shared, recognise):
        reason = _reason(found, _several(include), _several(exclude), gates, activation)
        if reason is None:
            chosen.append(found)
        else:
            report.skipped.append((found.site, reason))
    if example is not None:
        _audit(model, chosen, report, example, gates)
    if not chosen:
        raise SwapError(_nothing(model, report))
    made: dict[Any, nn.Module] = {}
    for found in chosen:
        if found.key not in made:
            made[found.key] = _make(activation, found.site)
    reason = None if force else refusal(model, [(found.site, made[found.key]) for found in chosen])
    if reason:
        raise SmoothnessError(f"{reason}; force=True puts it in all the same")
    report.replaced = [found.site for found in chosen]
    _install(model, chosen, made, report)
    return report


def unswap(model: nn.Module, report: SwapReport) -> None:
    """Put back what `swap` replaced in `model`, or in a copy of it. Several swaps are taken back last first."""
    for kind, owner_name, *what in reversed(report.undo):
        owner = model.get_submodule(owner_name)
        if kind == "place":
            put(owner, what[0], (), what[1])
        elif kind == "child":
            owner._modules.pop(what[0], None)
        elif kind == "attribute":
            name, value = what
            owner._modules.pop(name, None)
            vars(owner)[name] = value
        elif kind == "recipe":
            apply(owner, what[0], _analysis(owner, what[0]))
        else:
            setattr(owner, *what)


def _check(model: nn.Module, shared: str) -> None:
    if shared not in ("keep", "split"):
        raise SwapError(f"shared must be 'keep' or 'split', not {shared!r}")
    if kind_of(model):
        raise SwapError(
            f"no activation was replaced in {type(model).__name__}: it is itself an activation; use the new one instead"
        )


def _nothing(model: nn.Module, report: SwapReport) -> str:
    kind = getattr(model, "original_name", type(model).__name__)
    if not report.skipped:
        return f"no activation was replaced in {kind}: none was found; give an example input to look for hidden calls"
    site, reason = report.skipped[0]
    return (
        f"no activation was replaced in {kind}; {len(report.skipped)} site(s) were left alone, such as "
        f"{site.name or 'the model'} ({reason}): check include, exclude and gates"
    )


def _several(patterns: Pattern | Iterable[Pattern]) -> tuple[Pattern, ...]:
    return (patterns,) if isinstance(patterns, str | type) or callable(patterns) else tuple(patterns)


def _fits(site: Site, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        return site.name == pattern or fnmatch(site.name, pattern)
    return isinstance(site.value, pattern) if isinstance(pattern, type) else bool(pattern(site))


def _recogniser(
    types: type[nn.Module] | Callable[[nn.Module], bool] | Iterable[type[nn.Module]],
) -> Callable[[nn.Module], bool]:
    if isinstance(types, type):
        return lambda module: isinstance(module, types)
    if callable(types):
        return types
    several = tuple(types)
    return lambda module: isinstance(module, several)


def _reason(
    found: Found, include: tuple[Pattern, ...], exclude: tuple[Pattern, ...], gates: bool, activation: object
) -> str | None:
    site = found.site
    if found.reason:
        return found.reason
    if not any(_fits(site, pattern) for pattern in include):
        return "not included"
    if any(_fits(site, pattern) for pattern in exclude):
        return "excluded"
    if found.is_gate and not gates:
        return "a gate"
    if isinstance(activation, Mapping) and not any(_fits(site, pattern) for pattern in activation):
        return "no pattern of the mapping fits"
    return None


def _make(activation: New | Mapping[str, New], site: Site) -> nn.Module:
    if isinstance(activation, Mapping):
        return _make(next(new for pattern, new in activation.items() if _fits(site, pattern)), site)
    if isinstance(activation, Genotype):
        return Activation(activation)
    if isinstance(activation, nn.Module):
        return activation
    # A class is no factory: nn.ReLU(site) would be an in-place ReLU.
    made = activation() if isinstance(activation, type) else activation(site)
    if not isinstance(made, nn.Module):
        raise SwapError(f"the factory made {type(made).__name__} for site {site.name!r}; it must make an nn.Module")
    return made


def _install(model: nn.Module, chosen: list[Found], made: Mapping[Any, nn.Module], report: SwapReport) -> None:
    """Change the model, and note in `report` how to change it back; on any error it is changed back at once."""
    registered = {id(module) for module in model.modules()}
    try:
        for owner in {id(f.owner): f.owner for f in chosen}.values():
            _change(owner, [f for f in chosen if f.owner is owner], made, report, registered)
        _out_of_place(model, report)
        for name, module, attribute, off in _fused_switches(model, {f.owner.module for f in chosen}):
            old = getattr(module, attribute)
            setattr(module, attribute, off)
            report.undo.append(("set", name, attribute, old))
    except BaseException:
        unswap(model, report)
        raise


def _change(
    owner: Owner, chosen: list[Found], made: Mapping[Any, nn.Module], report: SwapReport, registered: set[int]
) -> None:
    module, undo = owner.module, report.undo
    old = recipe_of(module)
    edits, sites, names = dict(old.edits), set(old.sites), dict(old.registered)
    for found in chosen:
        new = made[found.key]
        if found.call is not None:
            child = found.call.child
            module._modules[child] = new
            undo.append(("child", owner.name, child))
            edits[found.call.key] = ("call", child)
            place = child
        else:
            place = path_name(found.attribute, found.steps)
            if not found.steps and found.attribute not in module._modules:
                undo.append(("attribute", owner.name, found.attribute, vars(module).pop(found.attribute)))
                module._modules[found.attribute] = new
            else:
                undo.append(("place", owner.name, found.attribute, put(module, found.attribute, found.steps, new)))
            if place in names:
                undo.append(("place", owner.name, names[place], put(module, names[place], (), new)))
            elif found.steps and id(found.site.value) not in registered:
                # Its parameters are the model's, although it stands in a plain container.
                names[place] = owner.free(re.sub(r"\W+", "_", place).strip("_"))
                module._modules[names[place]] = new
                undo.append(("child", owner.name, names[place]))
            for use in found.uses:
                others = use.is_called and (use.arguments or use.keywords)
                if (others or use.discarded) and use.key not in edits:
                    edits[use.key] = ("use", "")
        if kind_of(new) is None:
            sites.add(place)
    recipe = Recipe(tuple(owner.analysis.methods) if edits else (), edits, frozenset(sites), names)
    if recipe == old:
        return
    undo.append(("recipe", owner.name, old))
    apply(module, recipe, owner.analysis)


def _analysis(module: nn.Module, recipe: Recipe) -> Analysis:
    analysis = Analysis(module, base_of(module), held_names(module))
    for method in recipe.methods:
        analysis.method(method)
    return analysis


def _out_of_place(model: nn.Module, report: SwapReport) -> None:
    for name, module in model.named_modules():
        if getattr(module, "inplace", False) is True and not isinstance(module, torch.jit.ScriptModule):
            module.inplace = False
            report.undo.append(("set", name, "inplace", True))
            report.out_of_place.append(name)


def _fused_switches(model: nn.Module, owners: set[nn.Module]) -> Iterator[tuple[str, nn.Module, str, object]]:
    """What makes torch's transformers evaluate by a fused kernel that computes ReLU or GELU, whatever stands there:
    dotted name, module, attribute, and the value that turns it off."""
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer) and module in owners:
            yield name, module, "activation_relu_or_gelu", 0
        if isinstance(module, nn.TransformerEncoder) and any(layer in owners for layer in module.layers):
            yield name, module, "use_nested_tensor", False


def _audit(model: nn.Module, chosen: list[Found], report: SwapReport, example: Any, gates: bool) -> None:
    """Run the example with what stood there as modules: what is then called elsewhere was not found."""
    stand_ins: dict[Any, nn.Module] = {}
    for found in chosen:
        if found.key not in stand_ins:
            stand_ins[found.key] = nn.Tanh()
            with suppress(SwapError):
                stand_ins[found.key] = found.site.default()
    trial = SwapReport()
    if chosen:
        _install(model, chosen, stand_ins, trial)
    try:
        heard = listen(model, example, {id(module) for module in stand_ins.values()}, gates)
    finally:
        unswap(model, trial)
    report.unused = [f.site.name for f in chosen if id(stand_ins[f.key]) not in heard.sites]
    names = {id(module): name for name, module in model.named_modules()}
    listed = {(site.name.rpartition(".")[0], site.function) for site, _ in report.skipped}
    for module, function, where in dict.fromkeys(heard.others):
        owner = names.get(id(module), "")
        if (owner, function) in listed:  # left alone on purpose
            continue
        site = Site(f"{owner}.{function}" if owner else function, f"{function} at {where}", "call")
        report.skipped.append((site, "called where swap cannot see it; make it a submodule"))
