"""A model of deepmd-kit (PyTorch) as a DeepPotential with the same weights: same energy, other neighbour lists."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from actsearch.errors import MissingPackageError, SettingsError
from actsearch.forcefield.deep_potential import DeepPotential, Network


def from_deepmd(model: Any) -> DeepPotential:
    """Convert an energy model of `deepmd.pt.model.model.get_model` with the descriptor `se_e2_a`.

    Activations become modules of our own kind where they are tanh, and copies of deepmd-kit's otherwise, also of what
    was put there by a swap. Biases of the energy become the references. All of it gets the descriptor's precision.

    Raises SettingsError for other descriptors and for what DeepPotential has not: excluded pairs, frame or atomic
    parameters, `env_protection`, compression, `resnet_dt` of the descriptor, statistics that differ between slots of
    one centre or between directions.
    """
    try:
        from ase.data import atomic_numbers
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "the numbers of the elements") from None
    descriptor = getattr(model.atomic_model.descriptor, "sea", None)
    fitting = model.atomic_model.fitting_net
    if descriptor is None:
        raise SettingsError(f"from_deepmd converts se_e2_a models, not {type(model.atomic_model.descriptor).__name__}")
    _refuse(descriptor, fitting)
    hidden = fitting.filter_layers.networks[0].layers[:-1]
    elements = [atomic_numbers[symbol] for symbol in model.get_type_map()]
    bias = (fitting.bias_atom_e[:, 0] + model.atomic_model.out_bias[0, :, 0]).tolist()
    converted = DeepPotential(
        elements,
        descriptor.rcut,
        dict(zip(elements, bias, strict=True)),
        smooth_from=descriptor.rcut_smth,
        embedding=descriptor.neuron,
        axis=descriptor.axis_neuron,
        fitting=[layer.num_out for layer in hidden],
        sel=descriptor.sel,
        type_one_side=descriptor.type_one_side,
        resnet_dt=fitting.resnet_dt,
    ).to(descriptor.mean.dtype)
    converted.mean.copy_(descriptor.mean[:, 0, 0])
    converted.deviation.copy_(descriptor.stddev[:, 0, :2])
    known, theirs = len(elements), list(descriptor.filter_layers.networks)
    if not descriptor.type_one_side:  # theirs go by neighbour first, ours by centre
        theirs = [theirs[neighbour * known + centre] for centre in range(known) for neighbour in range(known)]
    for ours, layers in zip(converted.embedding.values(), theirs, strict=True):
        _fill(ours, list(layers.layers))
    for ours, layers in zip(converted.fitting.values(), fitting.filter_layers.networks, strict=True):
        _fill(ours, list(layers.layers))
    return converted


def _refuse(descriptor: Any, fitting: Any) -> None:
    lacking = {
        "excluded pairs of types": bool(descriptor.exclude_types) or bool(fitting.exclude_types),
        "frame or atomic parameters": bool(fitting.numb_fparam or fitting.numb_aparam),
        "env_protection": descriptor.env_protection != 0,
        "compression": descriptor.compress,
        "resnet_dt of the descriptor": descriptor.resnet_dt,
        "remove_vaccum_contribution": fitting.remove_vaccum_contribution is not None,
        "one fitting network for all types": fitting.mixed_types,
        "statistics by slot or direction": not _isotropic(descriptor.mean, descriptor.stddev),
    }
    if found := [what for what, is_there in lacking.items() if is_there]:
        raise SettingsError(f"from_deepmd cannot convert {', '.join(found)}: DeepPotential has nothing like it")


def _isotropic(mean: Tensor, deviation: Tensor) -> bool:
    every_slot = all(bool((x == x[:, :1]).all()) for x in (mean, deviation))
    return every_slot and not mean[..., 1:].any() and bool((deviation[..., 1:] == deviation[..., 1:2]).all())


@torch.no_grad()
def _fill(ours: nn.Module, layers: list[Any]) -> None:
    assert isinstance(ours, Network)
    for i in range(1, ours.depth + 1):
        layer = layers[i - 1]
        _fill_linear(getattr(ours, f"fc{i}"), layer)
        step = getattr(ours, f"step{i}")
        if step is not None:
            step.copy_(layer.idt)
        if getattr(layer.activate, "activation", None) != "tanh":
            setattr(ours, f"act{i}", copy.deepcopy(layer.activate))
    if ours.head is not None:
        _fill_linear(ours.head, layers[-1])


def _fill_linear(ours: nn.Linear, layer: Any) -> None:
    ours.weight.copy_(layer.matrix.T)
    ours.bias.copy_(layer.bias)
