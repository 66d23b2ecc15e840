"""Searches in spaces with slopes and coefficients: who trains them, how they resume, what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import actsearch
from actsearch.api import SearchResult
from actsearch.data import ImageData
from actsearch.genotype import Genotype
from actsearch.models import build
from actsearch.report.tensorboard import TensorBoardObserver
from actsearch.search.bilevel import OP_PARAMETER_LR
from actsearch.search.checkpoint import checkpoints
from actsearch.search.monitor import Snapshot
from actsearch.space import SearchSpace
from actsearch.tasks import Classification

SPACE = SearchSpace.from_dict(
    {
        "name": "scopes",
        "cell": {
            "u1": {"inputs": "x", "candidates": ["laaf_network", "laaf_site", "laaf_channel", "beta_mul"]},
            "u2": {"inputs": "u1", "candidates": ["tanh", "silu", "relu"]},
            "u3": {"inputs": "x", "candidates": ["bspline", "chebyshev", "identity"]},
            "b1": {"inputs": ["u2", "u3"], "candidates": ["add", "mul", "left"]},
        },
    }
)


class _Stop(Exception):
    """What a power cut would do, from within."""


def search(root: Path, stop_after: int | None = None, resume: Path | None = None, **settings: Any) -> SearchResult:
    torch.manual_seed(0)
    data = ImageData("digits", batch_size=32, limit_train=160)
    task = Classification(build("resnet8", data.facts, width=4), 10, lr=0.1)

    def observer(snapshot: Snapshot) -> None:
        if snapshot.epoch == stop_after:
            raise _Stop

    options: dict[str, Any] = {"epochs": 4, "channel_axis": 1, "alpha_lr": 0.02, "refine": {"evaluations": 6}}
    return actsearch.search(
        task,
        data,
        space=SPACE,
        run_root=root,
        name="scopes",
        resume=resume,
        observers=[TensorBoardObserver(root / "events"), observer],
        callbacks=[],
        **(options | settings),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    torch.set_num_threads(1)
    return search(tmp_path_factory.mktemp("scopes"))


def state_of(run: Path, epoch: int = -1) -> dict[str, torch.Tensor]:
    path = sorted(checkpoints(run / "checkpoints"))[epoch]
    return torch.load(path, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def test_a_search_over_all_scopes_ends_with_one_function(finished: SearchResult) -> None:
    genotype = Genotype.load(finished.run_dir / "genotype.json")
    assert genotype == finished.genotype
    assert torch.isfinite(finished.activation(torch.linspace(-5, 5, 100))).all()
    lines = (finished.run_dir / "genotypes.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        Genotype.from_dict(json.loads(line)["cells"]["network"]["genotype"])


def test_an_interrupted_search_resumes_to_the_same_bits(finished: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(_Stop):
        search(tmp_path, stop_after=2)
    (run,) = (tmp_path / "scopes").iterdir()
    resumed = search(tmp_path, resume=run)
    ours, theirs = state_of(resumed.run_dir), state_of(finished.run_dir)
    assert any("laaf_channel/a/3" in name for name in theirs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert resumed.genotype == finished.genotype


def test_slopes_and_coefficients_are_trained_with_the_weights_and_beta_with_alpha(tmp_path: Path) -> None:
    seen: dict[str, set[int]] = {}
    rates: dict[int, float] = {}

    def note(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    seen.setdefault(type(optimizer).__name__, set()).add(id(p))
                    rates[id(p)] = group["lr"]
                    assert group["weight_decay"] == 0 or p.ndim > 0

    from actsearch.search import bilevel

    made: list[bilevel.BilevelSearch] = []
    start = bilevel.BilevelSearch.on_train_start

    def on_train_start(self: bilevel.BilevelSearch) -> None:
        made.append(self)
        start(self)

    handle = register_optimizer_step_pre_hook(note)
    bilevel.BilevelSearch.on_train_start = on_train_start  # type: ignore[method-assign]
    try:
        search(tmp_path, epochs=3, refine={"enabled": False})
    finally:
        handle.remove()
        bilevel.BilevelSearch.on_train_start = start  # type: ignore[method-assign]
    (found,) = made
    cell = next(found._cells())
    levels = {"upper": {id(p) for p in found.upper_parameters}, "lower": {id(p) for p in found.lower_parameters}}
    for key, p in cell.op_parameters.items():
        level = "upper" if "beta" in key else "lower"
        assert id(p) in levels[level], key
        assert id(p) in seen["Adam"], f"{key} was not trained"
        assert rates[id(p)] == (0.02 if level == "upper" else OP_PARAMETER_LR)
    starts = {"a": 1.0}
    moved = [not torch.equal(p, torch.full_like(p, starts["a"])) for k, p in cell.op_parameters.items() if "/a" in k]
    assert moved
    assert all(moved)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_slope_recovery_drives_slopes_up_in_proportion_to_their_probability(weight: float, tmp_path: Path) -> None:
    """With a weight that outdoes the data, Adam moves every slope up at its rate."""
    result = search(tmp_path, epochs=2, shrink=False, slope_recovery=weight * 1e4, refine={"enabled": False})
    state = state_of(result.run_dir)
    slopes = torch.cat([v.flatten() for k, v in state.items() if "/a" in k and k.startswith("cells.")])
    if weight:
        assert (slopes > 1).all()
    else:
        assert (slopes < 1).any()
    assert ("slope_recovery" in result.snapshot.metrics) == (weight > 0)


def test_tensorboard_shows_slopes_and_coefficients_of_every_site(finished: SearchResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.run_dir.parents[1] / "events"), size_guidance={"scalars": 0})
    events.Reload()
    scalars, histograms = set(events.Tags()["scalars"]), set(events.Tags()["histograms"])
    sites = [site.name for site in finished.swap_report.replaced]
    assert len(sites) == 7
    for site in sites:
        assert f"op_parameters/u1/laaf_site/a/{site}" in scalars
        assert f"coefficients/u3/bspline/coefficients/{site}" in histograms
        assert f"coefficients/u1/laaf_channel/a/{site}" in histograms
    assert events.Scalars(f"op_parameters/u1/laaf_site/a/{sites[0]}")[0].step == 1


def test_a_space_with_channels_needs_their_axis(tmp_path: Path) -> None:
    with pytest.raises(actsearch.ActsearchError, match="give channel_axis"):
        search(tmp_path, channel_axis=None)
    assert not list(tmp_path.glob("scopes/*/checkpoints/*"))


def test_a_found_function_adds_its_slopes_and_coefficients_to_a_new_network() -> None:
    genotype = SPACE.genotype({"u1": "laaf_channel", "u2": "tanh", "u3": "chebyshev", "b1": "add"})
    data = ImageData("digits", batch_size=32, limit_train=160)
    model = build("resnet8", data.facts, width=4)
    before = sum(p.numel() for p in model.parameters())
    report = actsearch.swap(model, actsearch.activation.for_sites(genotype, "declared", channel_axis=1))
    model(torch.randn(2, *(1, 8, 8)))
    added = sum(p.numel() for p in model.parameters()) - before
    channels = 4 * 3 + 8 * 2 + 16 * 2
    assert added == channels + 10 * len(report.replaced)
