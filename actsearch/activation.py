"""Activation: a genotype as an nn.Module, the thing that a user carries away."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from actsearch import zoo
from actsearch.errors import GenotypeError, SettingsError, unknown_name
from actsearch.export.onnx import to_onnx
from actsearch.export.source import to_source
from actsearch.genotype import Choice, Genotype
from actsearch.ops.fused import fused
from actsearch.ops.graph import evaluate
from actsearch.ops.guard import HALF
from actsearch.ops.spec import OpParameter, Value, registry


class Activation(nn.Module):
    """The element-wise function of a genotype.

    `forward` takes a tensor of any shape and returns one of the same shape and dtype. Half precision is computed in
    float32 and rounded once. It runs the same operations, with the same clip and the same parameter values, as the cell
    that was searched.

    Args:
        genotype: the function.
        trainable: make its operations' parameters (β, γ, slopes, coefficients) trainable, or those of the given names
            (`slot_name`); by default they are constants (buffers). They are spared from weight decay (`undecayed`).
        channels, channel_axis: one value of each parameter a channel, and the axis of the input that holds the
            channels: 1 for images (B, C, H, W) and features (B, C), -1 for tokens (B, T, C). `LazyActivation` takes
            the number from its first input.
        by_channel: names of the parameters for which that holds, if not all.
        lr_factor: trainable parameters are trained at this multiple of the learning rate (`lr_factors`; see
            `actsearch.tasks.parameter_groups`).
        compiled: run as one kernel forwards and one backwards, which save only the input, where there can be some
            (see `actsearch.ops.fused.fused`). Faster; equal to the default up to rounding, not to the bit.

    A parameter has shape () or, of a vector, (n,); by channel (C,) or (n, C).

    Raises SettingsError if only one of channels and channel_axis is given.
    """

    def __init__(
        self,
        genotype: Genotype,
        trainable: bool | Collection[str] = False,
        *,
        channels: int | None = None,
        channel_axis: int | None = None,
        by_channel: Collection[str] | None = None,
        lr_factor: float = 1.0,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if (channels is None) != (channel_axis is None) or (channels is not None and channels < 1):
            raise SettingsError("parameters by channel need channels (at least 1) and channel_axis")
        self._genotype = genotype
        self.channel_axis = channel_axis
        self.compiled = compiled
        self._ops = {name: genotype.slots[name].op for name in genotype.order}
        self._inputs = {name: genotype.slots[name].inputs for name in genotype.order}
        self._start: dict[str, Value] = {
            f"{slot}_{name}": value
            for slot in genotype.order
            for name, value in genotype.slots[slot].parameters.items()
        }
        every = tuple(self._start)
        wanted = (every if trainable else ()) if isinstance(trainable, bool) else trainable
        self.undecayed = tuple(name for name in every if name in wanted)
        self.lr_factors = {} if lr_factor == 1 else dict.fromkeys(self.undecayed, lr_factor)
        self._by_channel = frozenset(every if by_channel is None else by_channel)
        for name, value in self._start.items():
            tensor = _start(value, channels if name in self._by_channel else None)
            if name in self.undecayed:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    @property
    def trainable(self) -> bool:
        """Whether it has parameters that are trained."""
        return bool(self.undecayed)

    def forward(self, x: Tensor) -> Tensor:
        g = self._genotype
        if self.compiled and not torch.compiler.is_compiling() and self._alike:
            return fused(x, g.order, self._ops, self._inputs, self._parameter, g.clip, g.scale, self.channel_axis)
        if x.dtype in HALF:
            return self.forward(x.float()).to(x.dtype)
        parameter = self._parameter
        if self.channel_axis is not None:
            shape = [1] * x.ndim
            shape[self.channel_axis] = -1
            parameter = lambda *key: self._along(shape, *key)  # noqa: E731
        y = evaluate(x, g.order, self._ops, self._inputs, parameter, g.clip)
        return y if g.scale == 1 else g.scale * y

    @property
    def _alike(self) -> bool:
        """Whether its parameters are all by channel or none of them is, as a kernel wants them."""
        return len(self._by_channel) == len(self._start) or self.channel_axis is None

    def _parameter(self, slot: str, op: str, name: str) -> Tensor:
        found = getattr(self, f"{slot}_{name}")
        assert isinstance(found, Tensor)
        return found

    def _along(self, shape: list[int], slot: str, op: str, name: str) -> Tensor:
        """A parameter in a shape that broadcasts with the input's, which is `shape` along the channels."""
        found = self._parameter(slot, op, name)
        if f"{slot}_{name}" not in self._by_channel:
            return found
        return found.view(*found.shape[:-1], *shape)

    def adaptive_slopes(self) -> list[Tensor]:
        """The trained slopes, which the slope-recovery term counts; each of shape () or (C,)."""
        return [
            self._parameter(slot, op, p.name)
            for slot, op in self._ops.items()
            for p in registry[op].parameters
            if p.is_slope and f"{slot}_{p.name}" in self.undecayed
        ]

    @property
    def genotype(self) -> Genotype:
        """The genotype, with the present values of trained parameters.

        Raises GenotypeError if they differ from channel to channel: that is no longer one function.
        """
        if not self.trainable:
            return self._genotype
        slots = {
            name: Choice(c.op, c.inputs, {p: self._value(f"{name}_{p}") for p in c.parameters})
            if name in self._genotype.order
            else c
            for name, c in self._genotype.slots.items()
        }
        return dataclasses.replace(self._genotype, slots=slots)

    def _value(self, name: str) -> Value:
        parameter = getattr(self, name)
        if isinstance(parameter, UninitializedParameter):
            return self._start[name]
        value = parameter.detach()
        if self.channel_axis is not None and name in self._by_channel:
            if not bool((value == value[..., :1]).all()):
                raise GenotypeError(f"parameter {name} differs from channel to channel; keep the state_dict instead")
            value = value[..., 0]
        return tuple(value.tolist()) if value.ndim else float(value)

    def rescaled(self) -> Activation:
        """The same function times its `gain`, with constants: it preserves the second moment under N(0, 1).

        Raises GenotypeError if no constant does, as for the zero function.
        """
        genotype, gain = self.genotype, self.gain
        if not (math.isfinite(gain) and gain > 0):
            raise GenotypeError(f"{self.formula} cannot be rescaled: its second moment under N(0, 1) is {gain**-2:g}")
        return Activation(dataclasses.replace(genotype, scale=genotype.scale * gain), compiled=self.compiled)

    @property
    def smoothness(self) -> float:
        """k such that the function is C^k, as far as its operations and its clip tell (a lower bound)."""
        return self._genotype.smoothness

    @property
    def formula(self) -> str:
        """The canonical formula of the genotype."""
        return self.genotype.formula

    def to_latex(self) -> str:
        """The formula in LaTeX, without the clip."""
        return self.genotype.to_latex()

    @property
    def gain(self) -> float:
        """By this factor the function preserves the second moment under N(0, 1): see `second_moment_gain`."""
        return second_moment_gain(self)

    def to_source(self, name: str | None = None, trainable: bool = False) -> str:
        """A Python file with the function, which needs torch alone; see `actsearch.export.source.to_source`."""
        return to_source(self.genotype, name, trainable)

    def to_onnx(self, path: Path | str, rank: int = 2) -> Path:
        """Write the function as an ONNX model, for float32 tensors of `rank` dimensions of any size.

        Raises MissingPackageError without the extra `onnx`, RunError if the file cannot be written.
        """
        return to_onnx(Activation(self.genotype), path, rank)

    def save(self, path: Path | str) -> Path:
        """Write the genotype as JSON; `actsearch.load` reads it. Raises RunError."""
        return self.genotype.save(path)

    def extra_repr(self) -> str:
        try:
            genotype, note = self.genotype, ""
        except GenotypeError:
            genotype, note = self._genotype, ", parameters by channel"
        clip = genotype.clip
        return genotype.formula + note + ("" if clip.kind == "none" else f", {clip.kind} clip at {clip.limit:g}")


class LazyActivation(LazyModuleMixin, Activation):
    """An Activation with trainable parameters, one value a channel; their number is that of its first input.

    After that input it is an Activation. As with torch's other lazy modules, run one batch before an optimiser is made.

    Args:
        genotype: the function.
        channel_axis: the axis of the input that holds the channels; see Activation.
        trainable, by_channel, lr_factor, compiled: see Activation; by default all parameters are both.
        start: values of parameters by name, one a channel, or of a vector as in `Choice.at_sites`; they are taken if
            the channels are as many. Default: those of the genotype, in all channels.
    """

    cls_to_become = Activation

    def __init__(
        self,
        genotype: Genotype,
        channel_axis: int,
        compiled: bool = False,
        *,
        trainable: bool | Collection[str] = True,
        by_channel: Collection[str] | None = None,
        lr_factor: float = 1.0,
        start: Mapping[str, Value] | None = None,
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
            super().__init__(genotype, trainable, by_channel=by_channel, lr_factor=lr_factor, compiled=compiled)
        self.channel_axis = self._axis = channel_axis
        self._start_by_channel = dict(start or {})
        for name in self._by_channel:
            setattr(self, name, UninitializedParameter())

    def initialize_parameters(self, x: Tensor) -> None:
        """Give every channel of `x` its parameters; called by the first forward pass."""
        channels = x.shape[self._axis]
        for name in self._by_channel:
            parameter = getattr(self, name)
            if isinstance(parameter, UninitializedParameter):
                value = _start(self._start[name], channels)
                given = self._start_by_channel.get(name)
                if isinstance(given, tuple) and len(given) == value.numel():
                    value = torch.tensor(given, dtype=torch.float32).view_as(value)
                with torch.no_grad():
                    parameter.materialize(value.shape, dtype=torch.float32)
                    parameter.copy_(value)


def _start(value: Value, channels: int | None) -> Tensor:
    """A parameter's first value: (), (n,), (C,) or (n, C), float32."""
    tensor = torch.tensor(value, dtype=torch.float32)
    return tensor if channels is None else tensor[..., None].repeat(*[1] * tensor.ndim, channels)


Parameters = Literal["frozen", "declared", "network", "site", "channel"]


def for_sites(
    genotype: Genotype,
    parameters: Parameters = "frozen",
    channel_axis: int | None = None,
    compiled: bool = False,
    lr_factor: float = 1.0,
    shared: dict[str, Any] | None = None,
) -> Callable[[Any], Activation]:
    """What `swap` calls for each site, by who owns the operations' parameters (β, γ, slopes, coefficients).

    frozen: they are constants. network: one trainable set for all sites (one module at every site). site: one a site.
    channel: one a channel of every site, along `channel_axis`. declared: as each operation says: slopes and
    coefficients are trained, by their own scopes, and β and γ are constants. compiled, lr_factor: see Activation.
    shared: where what sites share is kept; default: with the function that is returned.
    Values that the genotype has for a site of the same name are where that site starts.
    Raises SettingsError for another word, or without the axis.
    """
    if parameters not in get_args(Parameters):
        raise SettingsError(unknown_name("scope of parameters", str(parameters), get_args(Parameters)))
    shared = {} if shared is None else shared
    if parameters == "declared":
        return _declared(genotype, channel_axis, compiled, lr_factor, shared)
    if parameters == "channel":
        axis = _given(channel_axis)
        return lambda site: LazyActivation(genotype.at_site(_name(site)), axis, compiled, lr_factor=lr_factor)
    if parameters == "network":
        if "module" not in shared:
            shared["module"] = Activation(genotype, trainable=True, lr_factor=lr_factor, compiled=compiled)
        return lambda site: shared["module"]
    return lambda site: Activation(
        genotype.at_site(_name(site)), parameters == "site", lr_factor=lr_factor, compiled=compiled
    )


def trained_parameters(genotype: Genotype) -> dict[str, OpParameter]:
    """The slopes and coefficients of a genotype, by `slot_name`: what is trained with the weights as published."""
    of_slot = {slot: registry[genotype.slots[slot].op].parameters for slot in genotype.order}
    return {f"{slot}_{p.name}": p for slot, ps in of_slot.items() for p in ps if p.trained_with == "weights"}


def _declared(
    genotype: Genotype, channel_axis: int | None, compiled: bool, lr_factor: float, shared: dict[str, Any]
) -> Callable[[Any], Activation]:
    trained = trained_parameters(genotype)
    by_channel = [name for name, p in trained.items() if p.scope == "channel"]

    def make(site: Any) -> Activation:
        here = genotype.at_site(_name(site))
        if by_channel:
            start = {
                f"{slot}_{name}": value
                for slot in genotype.order
                for name, value in genotype.slots[slot].at_sites.get(_name(site), {}).items()
            }
            made: Activation = LazyActivation(
                here,
                _given(channel_axis),
                compiled,
                trainable=trained,
                by_channel=by_channel,
                lr_factor=lr_factor,
                start=start,
            )
        else:
            made = Activation(here, trained, lr_factor=lr_factor, compiled=compiled)
        for name, p in trained.items():
            if p.scope == "network":
                setattr(made, name, shared.setdefault(name, getattr(made, name)))
        return made

    if by_channel:
        _given(channel_axis)
    return make


def _given(channel_axis: int | None) -> int:
    if channel_axis is None:
        raise SettingsError("parameters by channel need channel_axis: 1 for images, -1 for tokens")
    return channel_axis


def _name(site: Any) -> str:
    return str(getattr(site, "name", ""))


def second_moment_gain(function: Callable[[Tensor], Tensor]) -> float:
    """1 / sqrt(E[f(z)²]) for z ~ N(0, 1), on 8,001 points in [-8, 8] in float64; infinite for the zero function.

    A module is evaluated on its own device.
    """
    tensors = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
    z = np.linspace(-8, 8, 8001)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        values = function(torch.from_numpy(z).to(tensors[0].device if tensors else "cpu")).double().cpu().numpy()
    moment = float(np.trapezoid(values**2 * density, z))
    return 1 / math.sqrt(moment) if moment > 0 else math.inf


def load(source: Path | str) -> Activation:
    """The activation of a genotype file, of a run directory that holds one, or of the zoo (`zoo:mish`).

    Raises GenotypeError, or UnknownNameError for what the zoo does not have.
    """
    if str(source).startswith(zoo.PREFIX):
        return Activation(zoo.load(str(source)))
    path = Path(source)
    return Activation(Genotype.load(path / "genotype.json" if path.is_dir() else path))
