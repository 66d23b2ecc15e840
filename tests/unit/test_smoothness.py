"""Smoothness: what is known of activations, by their derivatives, and what a force field refuses."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from actsearch import api, models
from actsearch.activation import Activation
from actsearch.cell.mixed import MixedCell
from actsearch.compare import (
    TORCH_NAMES,
    Budget,
    Retrainer,
    check_smoothness,
    compare,
    contestant,
    load_model,
    of_genotype,
    save_model,
)
from actsearch.errors import SmoothnessError, SwapError
from actsearch.forcefield.frames import Frame, FrameBatch, batch_of
from actsearch.forcefield.potential import ForceField
from actsearch.genotype import Genotype
from actsearch.ops.adaptive_slope import AdaptiveSlope
from actsearch.ops.basis_activation import BasisActivation
from actsearch.ops.clip import Clip
from actsearch.ops.slopes import adapt
from actsearch.space import SearchSpace
from actsearch.swap import swap
from actsearch.swap.catalog import Function
from actsearch.swap.smoothness import least_smoothness, smoothness_of

CPU = {"accelerator": "cpu"}


class Pairs(ForceField):
    """A pair potential: an MLP of the distance."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__([29], 4.0)
        self.net = nn.Sequential(nn.Linear(1, 4), activation or nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        pairs = self.net(vectors.norm(dim=1, keepdim=True))[:, 0]
        return pairs.new_zeros(len(batch)).index_add(0, batch.frame[batch.centre], pairs)


class Task(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        raise AssertionError("trained")

    def test_step(self, batch: Any, batch_idx: int = 0) -> None:
        raise AssertionError("tested")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# -- what is known -------------------------------------------------------------------------------------------------

KINKS = (-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0)


def jumps(function: nn.Module, order: int) -> bool:
    """Whether the derivative of that order differs on the two sides of a point where formulas change."""
    for at in KINKS:
        sides = []
        for step in (-1e-7, 1e-7):
            x = torch.tensor(at + step, dtype=torch.float64, requires_grad=True)
            y = function(x.reshape(1)).sum()
            for _ in range(order):
                (y,) = torch.autograd.grad(y, x, create_graph=True, materialize_grads=True)
                if not y.requires_grad:
                    y = y + 0 * x
            sides.append(float(y.detach()))
        if abs(sides[1] - sides[0]) > 1e-4:
            return True
    return False


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_classes_of_torch_are_as_smooth_as_their_derivatives_say(name: str) -> None:
    module = getattr(nn, name)().eval().double()
    k = smoothness_of(module)
    assert k is not None
    measured = next((order - 1 for order in range(3) if jumps(module, order)), math.inf)
    assert measured == k or (k == math.inf and measured >= 2)


def test_elu_is_once_differentiable_for_alpha_1_only() -> None:
    assert [smoothness_of(nn.ELU(alpha)) for alpha in (1.0, 0.5)] == [1, 0]
    assert [smoothness_of(nn.CELU(alpha)) for alpha in (1.0, 0.1)] == [1, 1]
    assert jumps(nn.ELU(0.5).double(), 1)
    assert not jumps(nn.CELU(0.1).double(), 1)


@pytest.mark.parametrize(
    ("function", "k"),
    [
        pytest.param(F.relu, 0, id="relu"),
        pytest.param(torch.relu_, 0, id="relu_"),
        pytest.param(torch.Tensor.tanh, math.inf, id="Tensor.tanh"),
        pytest.param(F.logsigmoid, math.inf, id="logsigmoid"),
        pytest.param(F.elu, 1, id="elu"),
        pytest.param(functools.partial(F.elu, alpha=2.0), 0, id="partial of elu, alpha=2"),
        pytest.param(functools.partial(F.gelu, approximate="tanh"), math.inf, id="partial of gelu"),
        pytest.param(torch.celu_, 1, id="celu_"),
        pytest.param(Function(F.elu, (2.0,)), 0, id="Function of elu, alpha=2"),
        pytest.param(Function(F.leaky_relu, (0.2,)), 0, id="Function of leaky_relu"),
        pytest.param(Function(F.silu), math.inf, id="Function of silu"),
        pytest.param(lambda x: x.relu(), None, id="lambda"),
    ],
)
def test_functions_are_known_by_name(function: object, k: float | None) -> None:
    assert smoothness_of(function) == k


def test_a_class_of_another_library_is_not_known_by_its_name() -> None:
    class ReLU(nn.Module):
        pass

    assert smoothness_of(ReLU()) is None
    ReLU.smoothness = 3  # type: ignore[attr-defined]  # but it can tell
    assert smoothness_of(ReLU()) == 3


def test_genotypes_bases_and_slopes_have_the_smoothness_of_their_parts() -> None:
    assert smoothness_of(Activation(Genotype.of_op("elu", Clip("none")))) == 1
    assert smoothness_of(Activation(Genotype.of_op("square", Clip("hard")))) == 0
    assert smoothness_of(AdaptiveSlope(nn.CELU())) == 1
    assert smoothness_of(AdaptiveSlope(AdaptiveSlope(F.silu))) == math.inf
    assert smoothness_of(BasisActivation("bspline")) == 2
    assert smoothness_of(BasisActivation("chebyshev", initial=nn.ReLU())) == math.inf
    assert smoothness_of(BasisActivation("chebyshev", initial=nn.ReLU(), residual=True)) == 0
    assert smoothness_of(contestant("CELU", gain="activation").make(None)) == 1  # type: ignore[arg-type]


def test_a_mixed_cell_is_as_smooth_as_its_roughest_survivor() -> None:
    cell = MixedCell({"cell": {"u1": {"inputs": "x", "candidates": ["relu", "tanh"]}}, "clip": {"kind": "none"}})
    site = cell.add_site("a")
    assert smoothness_of(site) == 0
    cell.drop("u1", 0)
    assert smoothness_of(site) == math.inf
    for name in ("smooth_c2", "full_c2"):
        least = smoothness_of(MixedCell(name).add_site("a"))
        assert least is not None
        assert least >= 2


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_force_field_refuses_what_is_less_than_twice_differentiable() -> None:
    for new, said in (
        (nn.ReLU, r"ReLU\(\) is C\^0"),
        (nn.CELU, r"CELU\(alpha=1\.0\) is C\^1"),
        (lambda site: Function(F.relu), "relu.* is C"),
        (nn.Hardshrink, "not continuous"),
        (Genotype.of_op("elu", Clip("none")), r"C\^1"),
        (lambda site: AdaptiveSlope(nn.ReLU()), r"C\^0"),
        (lambda site: BasisActivation(initial=nn.ELU(), residual=True), r"C\^1"),
    ):
        for model in (Pairs(), Task(Pairs())):
            before = str(model)
            with pytest.raises(SmoothnessError, match=said) as error:
                swap(model, new)
            assert str(model) == before
            assert all(part in str(error.value) for part in ("Pairs needs C^2", "derivatives of the energy", "force"))
            assert "\n" not in str(error.value)
            assert isinstance(error.value, SwapError)
            assert len(swap(model, new, force=True).replaced) == 2


@pytest.mark.parametrize(
    "new", [nn.SiLU, nn.Mish, Genotype.of_op("tanh"), lambda site: BasisActivation("bspline", initial=site.default())]
)
def test_what_is_smooth_enough_is_taken(new: Any) -> None:
    assert len(swap(Pairs(), new).replaced) == 2


def test_what_is_not_known_is_taken() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert len(swap(Pairs(), Unknown).replaced) == 2


def test_models_that_ask_nothing_take_anything() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    assert least_smoothness(model) < 0
    assert least_smoothness(nn.Sequential(model, Pairs())) == 2
    swap(model, nn.Hardshrink)


def test_what_a_library_chose_itself_stays_and_can_be_adapted() -> None:
    for source in ("own", "laaf:site", "laaf:network", "taafs:bspline", "taafs:rbf:residual"):
        model = Pairs(nn.CELU(0.1, inplace=True))
        found = contestant(source)
        assert len(swap(model, copy.deepcopy(found.make), shared=found.shared).replaced) == 2
    model = Pairs(nn.CELU(0.1))
    assert len(adapt(model).replaced) == 2
    with pytest.raises(SmoothnessError):  # nowhere else
        swap(Pairs(nn.CELU(0.1)), lambda site: nn.CELU(0.1))
    with pytest.raises(SmoothnessError):  # nor another of its class
        swap(Pairs(nn.CELU(0.1)), lambda site: nn.CELU(1.0))


# -- in a force field ----------------------------------------------------------------------------------------------


def frames() -> FrameBatch:
    pytest.importorskip("vesin")
    positions = np.array([[0.0, 0, 0], [1.9, 0, 0], [0.3, 2.1, 0.2]])
    return batch_of([Frame(np.array([29, 29, 29]), positions)], 4.0)


@pytest.mark.parametrize(
    "source", ["taafs:chebyshev", "taafs:bspline", "taafs:rbf:residual", "laaf:site", "laaf:channel"]
)
def test_training_on_forces_moves_what_is_adapted(source: str) -> None:
    torch.manual_seed(0)
    model = Pairs(nn.CELU(0.5))
    found = contestant(source, channel_axis=-1)
    batch = frames()
    swap(model, copy.deepcopy(found.make), shared=found.shared)
    forces = model(batch).forces
    assert forces is not None
    forces.square().sum().backward()
    trained = [p for name, p in model.named_parameters() if name.endswith((".a", ".coefficients"))]
    assert len(trained) == 2
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)


def test_a_force_field_is_saved_without_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(
        elements: tuple[int, ...], cutoff: float, references: dict[int, float], sample: FrameBatch | None = None
    ) -> Pairs:
        model = Pairs(nn.CELU(0.5))
        model.register_buffer("scale", torch.tensor(1.0 if sample is None else 7.0))
        return model

    monkeypatch.setitem(models._BUILDERS, "pairs", pairs)
    monkeypatch.setitem(models._FACTS, "frames", ("elements", "cutoff", "references", "sample"))
    facts = {
        "elements": (np.int64(29),),
        "cutoff": np.float64(4.0),
        "references": {np.int64(29): np.float32(-1.5)},
        "sample": frames(),
    }
    model = models.build("pairs", facts)
    found = contestant("laaf:channel", channel_axis=-1)
    swap(model, copy.deepcopy(found.make), shared=found.shared)
    before = model(frames())
    path = save_model(tmp_path / "m.pt", model, {"model": "pairs", "options": {}, "facts": facts}, found)
    loaded = load_model(path)
    assert float(loaded.scale) == 7.0
    after = loaded(frames())
    assert torch.equal(after.energy, before.energy)
    assert torch.equal(after.forces, before.forces)


# -- comparisons and searches --------------------------------------------------------------------------------------


class Data:
    """Batches that nothing should be trained on."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(8, 1)), 4)

    test_dataloader = train_dataloader


def task() -> Task:
    return Task(Pairs())


def test_a_comparison_refuses_before_anything_is_trained(tmp_path: Path) -> None:
    several = [contestant("tanh", "discovered", "discovered"), contestant("silu"), contestant("relu")]
    with pytest.raises(SmoothnessError, match=r"contestant relu: .*C\^0.*set compare\.activations.*compare\.force"):
        compare(task, Data(), several, seeds=[0], budget=Budget(1), directory=tmp_path, trainer=CPU)
    with pytest.raises(AssertionError, match="trained"):
        compare(
            task, Data(), several[2:], seeds=[0], budget=Budget(1), directory=tmp_path / "f", trainer=CPU, force=True
        )
    with pytest.raises(SmoothnessError):
        Retrainer(task, Data(), Budget(1), CPU)(several[2], 0)


def test_looking_at_contestants_changes_no_random_numbers() -> None:
    state = torch.get_rng_state()
    check_smoothness(task, [contestant("tanh"), contestant("laaf:channel", channel_axis=-1)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("space", "settings", "said"),
    [
        ("grafs", {"warm": "tanh"}, r"space grafs \(use smooth_c2 or full_c2\), by its .* is .*search\.force"),
        ("smooth_c2", {"warm": "relu"}, r"warm start with relu is not C\^2.*search\.warm"),
    ],
)
def test_a_search_is_refused_before_it_has_a_directory(
    space: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    searched = task()
    with pytest.raises(SmoothnessError, match=said):
        api.search(searched, Data().train_dataloader(), space=space, run_root=tmp_path, **settings)
    assert not list(tmp_path.iterdir())
    assert isinstance(searched.model.net[1], nn.Tanh)


@pytest.mark.parametrize(
    ("space", "settings"),
    [("smooth_c2", {"warm": "tanh"}), ("smooth_c2", {"warm_epochs": 0}), ("grafs", {"force": True})],
)
def test_a_search_that_is_smooth_enough_or_forced_begins(space: str, settings: dict[str, Any], tmp_path: Path) -> None:
    loader = Data().train_dataloader()
    with pytest.raises(AssertionError, match="trained"):
        api.search(task(), loader, space=space, run_root=tmp_path, callbacks=[], observers=[], trainer=CPU, **settings)
    assert len(list(tmp_path.glob("*/*/space.yaml"))) == 1


def test_random_functions_of_a_smooth_space_fit_a_force_field() -> None:
    space = SearchSpace.load("smooth_c2")
    check_smoothness(task, [of_genotype(space.random(seed), f"random {seed}", "random") for seed in range(5)])
    with pytest.raises(SmoothnessError, match=r"random 1: .*draw random ones from space smooth_c2"):
        check_smoothness(task, [of_genotype(Genotype.of_op("relu"), "random 1", "random")])
