"""Planted functions: distances, and promise 5 of the design, that a planted activation is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import actsearch
from actsearch.ops.formula import FormulaError
from actsearch.search.baselines import random_search
from actsearch.tasks.planted import TEACHERS, Planted


@pytest.mark.parametrize("teacher", [*TEACHERS, "x*tanh(x)"])
def test_a_function_is_at_no_distance_from_itself_and_the_teacher_explains_its_data(teacher: str) -> None:
    planted = Planted(teacher, examples=64)
    assert planted.distance(planted.function) < 1e-12
    assert planted.distance(lambda z: planted.function(z) * 1.1) == pytest.approx(0.1)
    model = planted.student(teacher_weights=True).model
    model.act = torch.nn.Module()
    model.act.forward = planted.function
    x, y = planted.data.tensors
    assert (model(x) - y).abs().max() < 1e-5
    assert not any(p.requires_grad for p in model.parameters())


def test_affine_maps_of_input_and_output_are_no_distance() -> None:
    planted = Planted("silu")
    assert planted.distance(lambda z: 3 * planted.function(0.5 * z + 0.3) - 1) > 0.1
    assert planted.affine_distance(lambda z: 3 * planted.function(0.5 * z + 0.3) - 1) < 1e-3
    assert planted.affine_distance(lambda z: torch.zeros_like(z)) > 0.3


def test_the_first_layer_hands_over_a_standard_normal() -> None:
    planted = Planted("tanh", examples=4096)
    x, _ = planted.data.tensors
    z = planted.student(teacher_weights=True).model.first(x)
    assert z.mean().abs() < 0.02
    assert z.std() == pytest.approx(1, abs=0.02)


def test_a_teacher_is_parsed_never_evaluated() -> None:
    with pytest.raises(FormulaError):
        Planted("__import__('os').system('true')")


def test_random_search_keeps_the_best_and_stops_by_time() -> None:
    space = actsearch.SearchSpace.load("tiny")
    scores = []

    def score(genotype: actsearch.Genotype) -> float:
        scores.append(len(scores) if "tanh" in genotype.formula else float("nan"))
        return scores[-1]

    found = random_search(space, score, seconds=0.2, seed=1)
    assert found.tried == len(scores)
    assert found.loss == min(s for s in scores if s == s)
    assert "tanh" in found.genotype.formula


def found_distance(teacher: str, space: str, tmp_path: Path, seed: int = 0, **settings: object) -> float:
    planted = Planted(teacher, examples=1024, seed=seed)
    result = actsearch.search(
        planted.student(teacher_weights=True),
        planted.loader(64),
        space=space,
        run_root=tmp_path,
        seed=seed,
        observers=[],
        callbacks=[],
        alpha_lr=0.05,
        warm_epochs=0,
        trainer={"accelerator": "cpu"},
        **settings,
    )
    return planted.distance(result.activation)


@pytest.mark.parametrize("teacher", ["tanh", "softplus", "relu(x) * tanh(x)"])
def test_a_planted_activation_is_found_in_the_tiny_space(teacher: str, tmp_path: Path) -> None:
    """By the bilevel search alone: no local search after it."""
    assert found_distance(teacher, "tiny", tmp_path, epochs=15, refine={"enabled": False}) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["silu", "tanh"])
def test_a_planted_activation_is_found_among_22_million(teacher: str, tmp_path: Path) -> None:
    assert found_distance(teacher, "grafs", tmp_path, epochs=20) < 0.05
