"""Contestants: the activations that are retrained, by name, file, or class, and how each site gets its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch.nn.modules.activation as torch_activations
from torch import Tensor, nn

from actsearch import zoo
from actsearch.activation import Activation, Parameters, for_sites, second_moment_gain, trained_parameters
from actsearch.compare.adapted import OWN, SOURCES, factory, is_adapted
from actsearch.errors import GenotypeError, SettingsError, UnknownNameError, unknown_name
from actsearch.genotype import Genotype
from actsearch.ops import registry
from actsearch.ops.clip import Clip
from actsearch.seeds import mix_seed
from actsearch.space import SearchSpace
from actsearch.swap import Site
from actsearch.swap.smoothness import smoothness_of

DISCOVERED, ADAPTED = "discovered", "adapted"
REFERENCES = (DISCOVERED, ADAPTED)
"""The kinds that every contestant of another kind is compared with."""
Kind = Literal["discovered", "adapted", "standard", "random", "control"]
Gain = Literal["none", "activation", "weights"]

# Not element-wise, or (Threshold) without a value for its arguments.
_LEFT_OUT = {"Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU", "MultiheadAttention", "Threshold"}
TORCH_NAMES: tuple[str, ...] = tuple(sorted(set(torch_activations.__all__) - _LEFT_OUT))


@dataclass(frozen=True)
class Contestant:
    """An activation that takes part in a comparison.

    Attributes:
        name: in tables; unlike every other's.
        make: gives a site its module, as `swap` wants it. It is copied before each retraining, so that what it shares
            between sites is not shared between retrainings; for several processes it must be picklable.
        formula: in words or symbols.
        genotype: where it has one.
        kind: discovered, adapted (the model's own activations with trained slopes or bases), standard, random (drawn
            from the same space), or another control.
        weights: what the initial weights of the task are multiplied by, relative to those for ReLU.
        identity: tells its results on disk from those of another function of the same name; default: the formula.
        shared: what happens where one instance serves several sites; see `swap`.
        origin: plain data of which `from_origin` makes it again; empty if that cannot be.
    """

    name: str
    make: Callable[[Site], nn.Module]
    formula: str
    genotype: Genotype | None = None
    kind: Kind = "standard"
    weights: float = 1.0
    identity: str = ""
    shared: Literal["keep", "split"] = "keep"
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(unknown_name("kind of contestant", str(self.kind), get_args(Kind)))
        if not self.identity:
            object.__setattr__(self, "identity", self.formula)


@dataclass(eq=False)
class _OfGenotype:
    """What `for_sites` gives, in a form that can be copied and sent to another process."""

    genotype: Genotype
    parameters: Parameters
    channel_axis: int | None
    compiled: bool = False
    lr_factor: float = 1.0
    shared: dict[str, nn.Module | nn.Parameter] = field(default_factory=dict)

    def __call__(self, site: Site) -> nn.Module:
        make = for_sites(self.genotype, self.parameters, self.channel_axis, self.compiled, self.lr_factor, self.shared)
        return make(site)


class _Scaled(nn.Module):
    """A constant times a module."""

    def __init__(self, module: nn.Module, scale: float) -> None:
        super().__init__()
        self.module, self.scale = module, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.module(x)

    @property
    def smoothness(self) -> float | None:
        return smoothness_of(self.module)

    def extra_repr(self) -> str:
        return f"times {self.scale:g}"


@dataclass(frozen=True)
class _OfClass:
    """A new instance of a class of torch.nn, by name, for every site."""

    name: str
    scale: float = 1.0

    def __call__(self, site: Site) -> nn.Module:
        module: nn.Module = getattr(nn, self.name)()
        return module if self.scale == 1 else _Scaled(module, self.scale)


def of_genotype(
    genotype: Genotype,
    name: str,
    kind: Kind = "discovered",
    *,
    parameters: Parameters = "frozen",
    channel_axis: int | None = None,
    gain: Gain = "none",
    compiled: bool = False,
    lr_factor: float = 1.0,
) -> Contestant:
    """A genotype as a contestant; see `contestant` for the options and the errors."""
    _check_gain(gain)
    for_sites(genotype, parameters, channel_axis)  # complains about its options before anything is trained
    factor = 1.0
    if gain == "activation":
        genotype = Activation(genotype).rescaled().genotype
    elif gain == "weights":
        factor = _factor(Activation(genotype), genotype.formula)
    clip = genotype.clip
    facts = {k: v for k, v in json.loads(genotype.to_json()).items() if k not in ("space", "provenance")}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    if parameters == "declared" and not trained_parameters(genotype):
        parameters = "frozen"  # the same, by its older name
    scope = parameters if parameters != "channel" else f"channel (axis {channel_axis})"
    identity = f"{genotype.formula} | {clip.kind} clip {clip.limit:g} | parameters {scope} | gain {gain} | {digest}"
    identity += f" | at {lr_factor:g} times the rate" if parameters != "frozen" and lr_factor != 1 else ""
    identity += " | compiled" if compiled else ""
    make = _OfGenotype(genotype, parameters, channel_axis, compiled, lr_factor)
    # The gain is in the genotype by now, or was for the first weights only.
    origin: dict[str, Any] = {"genotype": genotype.to_json(), "parameters": parameters, "channel_axis": channel_axis}
    origin |= {"compiled": compiled, "lr_factor": lr_factor}
    return Contestant(name, make, genotype.formula, genotype, kind, factor, identity, origin=origin)


def contestant(
    source: str | Path | Genotype,
    name: str | None = None,
    kind: Kind | None = None,
    *,
    parameters: Parameters = "frozen",
    channel_axis: int | None = None,
    gain: Gain = "none",
    compiled: bool = False,
    lr_factor: float = 1.0,
) -> Contestant:
    """The activation that `source` means.

    Args:
        source: a unary operation (`relu`, unclipped), a class of torch.nn (`Hardswish`; element-wise ones only), a
            genotype file, a run directory, `zoo:NAME`, or a Genotype. `own`: the model's own activations stay.
            `taafs:BASIS[:K][:residual]` and `laaf:SCOPE[:N]`: they are where trained activations start, each site's
            own; see `actsearch.compare.adapted.factory`.
        name: in tables; default: the operation, the class, the zoo's name, the folder or file, or the source itself.
        kind: default: discovered for files, runs and genotypes, control for the zoo, adapted for taafs and laaf, and
            standard for the others.
        parameters, channel_axis: who owns the parameters of a genotype; see `for_sites`. Classes of torch.nn keep
            their own. laaf:channel needs channel_axis too.
        gain: `activation` multiplies the function by its gain, so that it preserves the second moment under N(0, 1);
            `weights` multiplies the initial weights by the gain over ReLU's √2 instead; `none` leaves both, and so do
            `own`, taafs and laaf, which start where the model was designed to.
        compiled, lr_factor: run a genotype by fused kernels, and train parameters at that multiple of the learning
            rate; see Activation.

    Raises UnknownNameError with near matches, GenotypeError, or SettingsError.
    """
    options: Any = {"parameters": parameters, "channel_axis": channel_axis, "gain": gain, "compiled": compiled}
    options["lr_factor"] = lr_factor
    if isinstance(source, Genotype):
        return of_genotype(source, name or DISCOVERED, kind or "discovered", **options)
    text = str(source)
    if text in TORCH_NAMES:
        return _of_class(text, name or text, kind or "standard", gain)
    if is_adapted(text):
        return _of_own(text, name or text, kind, channel_axis, lr_factor)
    default: Kind
    if text.startswith("zoo:"):
        genotype = zoo.load(text)
        own, default = text.removeprefix("zoo:"), "control"
    elif text in _unary():
        genotype, own, default = Genotype.of_op(text, Clip("none")), text, "standard"
    elif text.endswith(".json") or os.sep in text or Path(text).exists():
        (genotype, own), default = _from_file(Path(text)), "discovered"
    else:
        raise UnknownNameError("activation", text, [*_unary(), *TORCH_NAMES, *SOURCES])
    return of_genotype(genotype, name or own, kind or default, **options)


def standard_contestants(
    names: Sequence[str | Path],
    space: SearchSpace | None = None,
    random: int = 0,
    seed: int = 0,
    *,
    parameters: Parameters = "frozen",
    channel_axis: int | None = None,
    gain: Gain = "none",
    compiled: bool = False,
    lr_factor: float = 1.0,
) -> list[Contestant]:
    """The controls: what `names` mean to `contestant`, and `random` functions of `space`, drawn by `seed`.

    A random function that no gain can rescale, such as a constant 0, is passed over where one is asked for.
    Raises what `contestant` raises, and SettingsError if there is no space to draw from, or none of its functions fits.
    """
    options: Any = {"parameters": parameters, "channel_axis": channel_axis, "gain": gain, "compiled": compiled}
    options["lr_factor"] = lr_factor
    controls = [contestant(name, **options) for name in names]
    # A file among the controls is one, whoever found it.
    controls = [dataclasses.replace(c, kind="control") if c.kind == DISCOVERED else c for c in controls]
    if space is None:
        if random:
            raise SettingsError("random controls need the search space that they are drawn from")
        return controls
    drawn = 0
    for k in range(100 + 10 * random):
        if drawn == random:
            return controls
        genotype, label = space.random(mix_seed(seed, 7_919, k)), f"random {drawn + 1}"
        try:
            controls.append(of_genotype(genotype, label, "random", **options))
        except GenotypeError:  # it has no gain
            continue
        drawn += 1
    raise SettingsError(f"space {space.name} has too few functions that can be rescaled; use gain none")


def _of_class(name: str, label: str, kind: Kind, gain: Gain) -> Contestant:
    _check_gain(gain)
    # In evaluation mode, where RReLU is a function.
    module = _OfClass(name)(Site("", "")).eval()
    scale = factor = 1.0
    if gain == "activation":
        scale = math.sqrt(2) * _factor(module, name)
    elif gain == "weights":
        factor = _factor(module, name)
    formula = repr(module) if scale == 1 else f"{scale:.6g} * {module!r}"
    identity = f"torch.nn.{formula} | gain {gain}"
    origin = {"class": name, "scale": scale}
    return Contestant(label, _OfClass(name, scale), formula, None, kind, factor, identity, origin=origin)


def _of_own(source: str, label: str, kind: Kind | None, channel_axis: int | None, lr_factor: float) -> Contestant:
    make = factory(source, channel_axis, lr_factor)
    if source == OWN:
        return Contestant(label, make, make.formula, kind=kind or "standard", origin={"own": source})
    return Contestant(
        label,
        make,
        make.formula,
        kind=kind or "adapted",
        identity=make.formula + (f" | at {lr_factor:g} times the rate" if lr_factor != 1 else ""),
        shared="split",  # one function for each layer, although a library may call one module in all of them
        origin={"own": source, "channel_axis": channel_axis, "lr_factor": lr_factor},
    )


def from_origin(name: str, origin: Mapping[str, Any]) -> Contestant:
    """A contestant by its `origin`. Raises KeyError for something else, and what `contestant` raises."""
    options: Any = {k: v for k, v in origin.items() if k not in ("genotype", "class", "scale", "own")}
    if "genotype" in origin:
        return of_genotype(Genotype.from_json(origin["genotype"]), name, **options)
    if "own" in origin:
        return contestant(origin["own"], name, **options)
    label, scale = origin["class"], origin["scale"]
    if label not in TORCH_NAMES:
        raise UnknownNameError("class of torch.nn", str(label), TORCH_NAMES)
    return Contestant(name, _OfClass(label, scale), label, origin=origin)


def _factor(module: nn.Module, name: str) -> float:
    """What weights drawn for ReLU must be multiplied by to suit `module`."""
    module = module.double()  # the parameters of PReLU
    factor = second_moment_gain(module) / math.sqrt(2)
    if not (math.isfinite(factor) and factor > 0):
        raise GenotypeError(f"{name} has no gain: its second moment under N(0, 1) is zero or not finite")
    return factor


def _check_gain(gain: Gain) -> None:
    if gain not in get_args(Gain):
        raise SettingsError(unknown_name("gain", str(gain), get_args(Gain)))


def _unary() -> list[str]:
    return [spec.id for spec in registry.of_arity(1)]


def _from_file(path: Path) -> tuple[Genotype, str]:
    """The genotype of a file or a run directory, and what to call it. Raises GenotypeError."""
    if path.is_dir():
        several = sorted(p.name for p in path.glob("genotype.*.json"))
        if several and not (path / "genotype.json").is_file():
            raise GenotypeError(f"{path} holds {len(several)} functions; name one of them: {', '.join(several)}")
        path = path / "genotype.json"
    own = path.resolve().parent.name if path.stem == "genotype" else path.stem
    return Genotype.load(path), own
