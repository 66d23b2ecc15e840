"""Between a genotype and the parameters of an Optuna trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from actsearch.errors import GenotypeError
from actsearch.genotype import Genotype
from actsearch.ops.spec import OpParameter, registry
from actsearch.space import SearchSpace

SPREAD = 2.0  # standard deviations of a parameter's starting distribution, to either side of its mean


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """What a trial chooses: under the name of each slot its candidate, and under `slot.op.name` a scalar parameter.

    Only parameters that α trains as published (β and γ), and that do not all start at one value, are chosen, within
    SPREAD standard deviations of the mean. Slopes and coefficients start at their means and are trained in each trial.
    All are chosen in every trial, also for candidates that are not: so a genetic sampler can inherit them. The clip is
    the space's.
    """
    found: dict[str, BaseDistribution] = {slot.name: CategoricalDistribution(slot.candidates) for slot in space.slots}
    for name, parameter in _chosen(space):
        assert not isinstance(parameter.mean, tuple)
        reach = SPREAD * parameter.std
        found[name] = FloatDistribution(parameter.mean - reach, parameter.mean + reach)
    return found


def to_genotype(space: SearchSpace, params: Mapping[str, Any]) -> Genotype:
    """The genotype that a trial's parameters mean. Raises GenotypeError if a slot has none, SpaceError for others."""
    for slot in space.slots:
        if slot.name not in params:
            raise GenotypeError(f"the trial chooses nothing for slot {slot.name!r} of space {space.name}")
    ops = {slot.name: str(params[slot.name]) for slot in space.slots}
    values = {
        (slot, p.name): params[name]
        for slot, op in ops.items()
        for p in registry[op].parameters
        if (name := f"{slot}.{op}.{p.name}") in params
    }
    return space.genotype(ops, values)


def to_params(space: SearchSpace, genotype: Genotype) -> dict[str, Any]:
    """The parameters that `to_genotype` turns into `genotype`; those of candidates that it lacks are at their means.

    Slopes and coefficients, which no trial chooses, are left out. Raises GenotypeError if it is not of the space.
    """
    params: dict[str, Any] = {}
    for slot in space.slots:
        choice = genotype.slots.get(slot.name)
        if choice is None or choice.op not in slot.candidates or choice.inputs != slot.inputs:
            raise GenotypeError(f"{genotype.formula} is no function of space {space.name}: see slot {slot.name!r}")
        params[slot.name] = choice.op
    for name, parameter in _chosen(space):
        slot_name, op, own = name.split(".")
        choice = genotype.slots[slot_name]
        params[name] = choice.parameters[own] if choice.op == op else parameter.mean
    return params


def _chosen(space: SearchSpace) -> list[tuple[str, OpParameter]]:
    return [
        (f"{slot.name}.{op}.{p.name}", p)
        for slot in space.slots
        for op in slot.candidates
        for p in registry[op].parameters
        if p.trained_with == "alpha" and not p.shape and p.std > 0
    ]
