"""Is a planted activation found? A teacher network with a known function makes the data, a student searches for it.

    python scripts/planted.py                                   # the five teachers, 3 seeds, both settings: 30 minutes
    python scripts/planted.py --teacher "x*tanh(x)" --seeds 1   # any formula; it is parsed, never evaluated

(a) The student has the teacher's weights and searches for α alone. (b) It learns its own weights too; they can hide an
affine map of input and output, so the distance is the least over such maps. Beside each stands random search in the
same space for the same time. Every result is added to OUT/planted.jsonl; what is there is not run again.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import actsearch._torchvision

import torch
from jsonargparse import auto_cli

import actsearch.search
from actsearch.activation import Activation
from actsearch.config import TrainerConfig
from actsearch.errors import ActsearchError
from actsearch.files import append_line
from actsearch.genotype import Genotype
from actsearch.process import prepare
from actsearch.search.baselines import random_search
from actsearch.search.split import split
from actsearch.seeds import seed_all
from actsearch.space import SearchSpace
from actsearch.tasks.planted import TEACHERS, Planted

# The published cell with all published candidates and the older ones, sin among them. ReLU² of N(0, 1) passes 25 once
# in three million; clipped at the published 10 it would be at a distance of 0.060 from itself.
CLIP = 25.0
SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"epochs": 12, "alpha_lr": 0.05, "warm_epochs": 0, "refine": {"evaluations": 1500, "restarts": 4}},
    "b": {"epochs": 25, "alpha_lr": 0.05, "warm_epochs": 1, "refine": {"evaluations": 300}},
}
RANDOM_EPOCHS = 5  # what a random function of (b) is trained for, before the next one


def run(teacher: str, setting: str, seed: int, clip: float = CLIP) -> dict[str, Any]:
    """One search and its random baseline; plain data."""
    seed_all(seed)
    planted = Planted(teacher, seed=seed)
    published = SearchSpace.load("literature").to_dict()
    space = SearchSpace.load(
        {**published, "name": f"literature, clip {clip:g}", "clip": {"kind": "hard", "limit": clip}}
    )
    distance = planted.distance if setting == "a" else planted.affine_distance
    snapshots: list[Any] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        result = actsearch.search(
            planted.student(teacher_weights=setting == "a"),
            planted.loader(),
            space=space,
            run_root=root,
            name="planted",
            seed=seed,
            observers=[snapshots.append],
            callbacks=[],
            **SETTINGS[setting],
        )
    seconds = time.perf_counter() - started
    before = snapshots[-1].cells["network"].genotype
    score = _score_with_teacher_weights(planted, seed) if setting == "a" else _score_after_training(planted, seed)
    baseline = random_search(space, score, seconds=seconds, seed=seed)
    return {
        "teacher": teacher,
        "formula": planted.formula,
        "setting": setting,
        "seed": seed,
        "found": result.formula,
        "distance": distance(result.activation),
        "before_refine": before.formula,
        "distance_before_refine": distance(Activation(before)),
        "seconds": seconds,
        "random_found": baseline.genotype.formula,
        "random_distance": distance(Activation(baseline.genotype)),
        "random_tried": baseline.tried,
    }


def _parts(planted: Planted, seed: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The data that trains weights and the data that ranks functions: the split of the search."""
    weights, arch = split(len(planted.data), 0.25, seed)
    return planted.data[weights], planted.data[arch]


def _score_with_teacher_weights(planted: Planted, seed: int) -> Callable[[Genotype], float]:
    model = planted.student(teacher_weights=True).model
    _, (x, y) = _parts(planted, seed)
    pre_activations = model.first(x)

    @torch.no_grad()
    def score(genotype: Genotype) -> float:
        return float((model.second(Activation(genotype)(pre_activations)) - y).square().mean())

    return score


def _score_after_training(planted: Planted, seed: int, batch_size: int = 128) -> Callable[[Genotype], float]:
    (x, y), (x_rank, y_rank) = _parts(planted, seed)

    def score(genotype: Genotype) -> float:
        torch.manual_seed(seed)
        model = planted.network(Activation(genotype))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(RANDOM_EPOCHS):
            for batch in torch.randperm(len(x)).split(batch_size):
                loss = (model(x[batch]) - y[batch]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            return float((model(x_rank) - y_rank).square().mean())

    return score


def _table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| teacher | setting | found, median | found, each seed | before refine | random search | seconds, most |",
        "| --- | --- | ---: | --- | --- | --- | ---: |",
    ]
    for key in dict.fromkeys((r["teacher"], r["setting"]) for r in records):
        rows = [r for r in records if (r["teacher"], r["setting"]) == key]

        def each(name: str, rows: list[dict[str, Any]] = rows) -> str:
            return " ".join(f"{r[name]:.3f}" for r in rows)

        median = statistics.median(r["distance"] for r in rows)
        lines.append(
            f"| {key[0]} | {key[1]} | {median:.3f} | {each('distance')} | {each('distance_before_refine')} "
            f"| {each('random_distance')} | {max(r['seconds'] for r in rows):.0f} |"
        )
    return "\n".join(lines)


def planted(
    teacher: str | None = None,
    seeds: int = 3,
    setting: Literal["a", "b", "both"] = "both",
    clip: float = CLIP,
    out: str = "runs/planted",
) -> None:
    """Search for planted functions and print the table.

    Args:
        teacher: silu, relu2, tanh, sin, softplus, or a formula in x; default: these five.
        seeds: number of seeds.
        setting: a, the student has the teacher's weights; b, it learns its own.
        clip: limit of the space's hard clip; the published one is 10.
        out: folder of planted.jsonl; one for every clip.
    """
    prepare(TrainerConfig())
    path = Path(out) / "planted.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.is_file() else []
    known = {(r["teacher"], r["setting"], r["seed"]): r for r in map(json.loads, lines)}
    records = []
    for which in ("a", "b") if setting == "both" else (setting,):
        for name in [teacher] if teacher else list(TEACHERS):
            for seed in range(seeds):
                record = known.get((name, which, seed))
                if record is None:
                    record = run(name, which, seed, clip)
                    append_line(path, json.dumps(record))
                print(
                    f"{name} ({which}), seed {seed}: {record['found']}  distance {record['distance']:.3f} in "
                    f"{record['seconds']:.0f} s; random search {record['random_distance']:.3f} "
                    f"({record['random_tried']} tried)",
                    flush=True,
                )
                records.append(record)
    print("\n" + _table(records))


if __name__ == "__main__":
    try:
        auto_cli(planted, as_positional=False)
    except ActsearchError as error:
        print(f"planted.py: {error}", file=sys.stderr)
        sys.exit(2)
