"""What actsearch says of a real model of deepmd-kit: `make test-deepmd` builds it in an environment of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError
from actsearch.forcefield.deep_potential import DeepPotential
from actsearch.forcefield.frames import Frame, FrameBatch, batch_of
from actsearch.forcefield.from_deepmd import from_deepmd
from actsearch.swap import swap, unswap

pytest.importorskip("deepmd", reason="deepmd-kit is not installed: run make test-deepmd")
deepmd_model = pytest.importorskip("deepmd.pt.model.model", reason="deepmd-kit was built without PyTorch")

CUTOFF = 4.0
LAYERS = 2  # of each network here, without the fitting networks' linear output


@pytest.fixture(autouse=True)
def _float64() -> Any:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def theirs(one_side: bool = False, activation: str = "tanh", resnet_dt: bool = True) -> Any:
    """An energy model of deepmd-kit for O and H, with biases that differ."""
    model = deepmd_model.get_model(
        {
            "type_map": ["O", "H"],
            "descriptor": {
                "type": "se_e2_a",
                "sel": [24, 40],
                "rcut": CUTOFF,
                "rcut_smth": 0.5,
                "neuron": [6, 12],
                "axis_neuron": 4,
                "type_one_side": one_side,
                "activation_function": activation,
                "seed": 1,
            },
            "fitting_net": {"neuron": [16, 16], "resnet_dt": resnet_dt, "activation_function": activation, "seed": 2},
        }
    )
    model.atomic_model.out_bias[0, :, 0] = torch.tensor([-432.1, -14.7])
    model.atomic_model.fitting_net.bias_atom_e[:, 0] = torch.tensor([0.3, -0.2])
    return model.eval()


def with_statistics(model: Any, seed: int = 0) -> Any:
    """The model with random means and deviations, and weights unlike those of the start."""
    descriptor = model.atomic_model.descriptor.sea
    random = torch.Generator().manual_seed(seed)
    descriptor.mean[..., 0] = 0.05 + 0.1 * torch.rand(2, 1, generator=random)
    descriptor.stddev[..., 0] = 0.1 + 0.2 * torch.rand(2, 1, generator=random)
    descriptor.stddev[..., 1:] = (0.1 + 0.2 * torch.rand(2, 1, generator=random))[..., None]
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=random)
    return model


@pytest.fixture
def water(data_root: Path) -> list[Frame]:
    """Two frames of 64 periodic water molecules."""
    folder = data_root / "forcefield" / "water_dpmd" / "data_0"
    if not folder.is_dir():
        pytest.skip("no water_dpmd among the development data")
    numbers = np.where(np.loadtxt(folder / "type.raw", dtype=int) == 0, 8, 1)
    positions = np.load(folder / "set.000" / "coord.npy").reshape(-1, 192, 3).astype(float)
    cells = np.load(folder / "set.000" / "box.npy").reshape(-1, 3, 3).astype(float)
    return [Frame(numbers, positions[i], cells[i], np.ones(3, dtype=bool)) for i in (0, 40)]


def cluster() -> Frame:
    """Three waters in no cell."""
    one = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    positions = np.concatenate([one + np.array([2.7 * k, 0.4 * k, 0.9 * (k % 2)]) for k in range(3)])
    return Frame(np.array([8, 1, 1] * 3), positions + np.random.default_rng(0).normal(0, 0.05, positions.shape))


def evaluate(model: Any, frame: Frame) -> tuple[Tensor, Tensor]:
    """Energy and forces by deepmd-kit's own forward, with its own neighbours."""
    types = torch.as_tensor(np.where(frame.numbers == 8, 0, 1))[None]
    box = torch.as_tensor(frame.cell).reshape(1, 9) if frame.pbc.any() else None
    found = model(torch.as_tensor(frame.positions)[None].requires_grad_(), types, box=box)
    return found["energy"].flatten(), found["force"][0]


def assert_same(model: Any, frame: Frame) -> None:
    ours = from_deepmd(model)(batch_of([frame], CUTOFF))
    energy, forces = evaluate(model, frame)
    assert ours.energy.item() == pytest.approx(energy.item(), rel=1e-9)
    # Of the interaction too: the references are most of the energy.
    assert ours.energy.item() == pytest.approx(energy.item(), abs=1e-9)
    off = (ours.forces - forces).abs().max()
    assert off < 1e-7
    assert off < 1e-8 * forces.abs().max()


BOTH = pytest.mark.parametrize("one_side", [False, True], ids=["pairs", "one_side"])


# The same weights are the same potential


@BOTH
@pytest.mark.parametrize("resnet_dt", [False, True])
def test_the_same_weights_give_the_same_energy_and_forces_of_a_cluster(one_side: bool, resnet_dt: bool) -> None:
    model = theirs(one_side, resnet_dt=resnet_dt)
    assert_same(model, cluster())
    assert_same(with_statistics(model), cluster())


@BOTH
def test_the_same_weights_give_the_same_energy_and_forces_of_water(one_side: bool, water: list[Frame]) -> None:
    model = theirs(one_side)
    assert_same(model, water[0])
    for frame in water:
        assert_same(with_statistics(model), frame)


@pytest.mark.parametrize("activation", ["gelu", "silu", "softplus", "silut:3.0"])
def test_other_activations_of_deepmd_kit_are_converted_too(activation: str) -> None:
    assert_same(with_statistics(theirs(activation=activation)), cluster())


def test_what_a_swap_put_in_is_converted_too() -> None:
    model = with_statistics(theirs())
    swap(model, nn.Mish)
    assert_same(model, cluster())


@BOTH
def test_statistics_of_a_sample_are_those_of_deepmd_kit(one_side: bool, water: list[Frame]) -> None:
    model = theirs(one_side)
    system = {
        "coord": torch.as_tensor(np.stack([frame.positions for frame in water])),
        "atype": torch.as_tensor(np.where(water[0].numbers == 8, 0, 1)).expand(2, -1).contiguous(),
        "box": torch.as_tensor(np.stack([frame.cell.reshape(9) for frame in water])),
        "natoms": torch.tensor([[192, 192, 64, 128]] * 2),
    }
    descriptor = model.atomic_model.descriptor
    descriptor.compute_input_stats([system])
    sample: FrameBatch = batch_of(water, CUTOFF)
    ours = DeepPotential((8, 1), CUTOFF, None, sample, sel=(24, 40), type_one_side=one_side)
    assert torch.allclose(ours.mean, descriptor.sea.mean[:, 0, 0], rtol=1e-9)
    assert torch.allclose(ours.deviation, descriptor.sea.stddev[:, 0, :2], rtol=1e-9)
    assert_same(model, water[0])


def test_weights_start_with_the_same_spread() -> None:
    def spread(model: nn.Module) -> dict[tuple[int, ...], float]:
        sizes: dict[tuple[int, ...], list[Tensor]] = {}
        for p in model.parameters():
            if p.ndim == 2 and p.numel() > 1000:
                sizes.setdefault(tuple(sorted(p.shape)), []).append(p.flatten())
        return {size: float(torch.cat(parts).detach().std()) for size, parts in sizes.items()}

    config = {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e2_a",
            "sel": [10, 10],
            "rcut": CUTOFF,
            "rcut_smth": 0.5,
            "neuron": [25, 50, 100],
            "axis_neuron": 16,
            "type_one_side": False,
        },
        "fitting_net": {"neuron": [240, 240, 240]},
    }
    assert spread(DeepPotential((8, 1), CUTOFF)) == pytest.approx(spread(deepmd_model.get_model(config)), rel=0.05)


@pytest.mark.parametrize(
    ("descriptor", "fitting", "says"),
    [
        ({"exclude_types": [[0, 1]]}, {}, "excluded pairs"),
        ({"env_protection": 0.1}, {}, "env_protection"),
        ({"resnet_dt": True}, {}, "resnet_dt"),
        ({}, {"numb_fparam": 1}, "parameters"),
        ({"type": "se_e2_r"}, {}, "se_e2_a"),
    ],
)
def test_what_deep_potential_has_not_is_refused(descriptor: dict[str, Any], fitting: dict[str, Any], says: str) -> None:
    config = {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e2_a",
            "sel": [8, 8],
            "rcut": CUTOFF,
            "rcut_smth": 0.5,
            "neuron": [4, 8],
            **({} if descriptor.get("type") else {"axis_neuron": 2}),
            **descriptor,
        },
        "fitting_net": {"neuron": [8, 8], **fitting},
    }
    with pytest.raises(SettingsError, match=says):
        from_deepmd(deepmd_model.get_model(config))


# Sites of a real model


def sites(one_side: bool) -> tuple[list[str], list[str]]:
    """Names of the non-linear activations, and of the fitting networks' linear output layers'."""
    networks = 2 if one_side else 4
    embedding = "atomic_model.descriptor.sea.filter_layers.networks"
    fitting = "atomic_model.fitting_net.filter_layers.networks"
    kept = [f"{embedding}.{n}.layers.{j}.activate" for n in range(networks) for j in range(LAYERS)]
    kept += [f"{fitting}.{n}.layers.{j}.activate" for n in range(2) for j in range(LAYERS)]
    return kept, [f"{fitting}.{n}.layers.{LAYERS}.activate" for n in range(2)]


@BOTH
def test_swap_replaces_exactly_the_activations_that_are_not_linear(one_side: bool) -> None:
    report = swap(theirs(one_side), nn.SiLU)
    replaced, linear = sites(one_side)
    assert [site.name for site in report.replaced] == replaced
    assert {site.function for site in report.replaced} == {"tanh"}
    assert [site.name for site, _ in report.skipped] == linear
    assert {reason for _, reason in report.skipped} == {"linear: there is no activation"}


def test_an_audit_of_a_forward_pass_finds_no_activation_that_was_missed() -> None:
    model, frame = theirs(), cluster()
    example = {
        "coord": torch.as_tensor(frame.positions)[None].requires_grad_(),
        "atype": torch.as_tensor(np.where(frame.numbers == 8, 0, 1))[None],
    }
    report = swap(model, nn.SiLU, example=example)
    assert report.unused == []
    assert [site.name for site, _ in report.skipped] == sites(False)[1]


def test_sigmoids_of_deepmd_kit_are_gates() -> None:
    report = swap(theirs(activation="sigmoid"), nn.SiLU, gates=True)
    assert [site.name for site in report.replaced] == sites(False)[0]


def test_an_unswapped_model_is_as_it_was() -> None:
    model = with_statistics(theirs())
    before = evaluate(model, cluster())
    report = swap(model, nn.SiLU)
    assert evaluate(model, cluster())[0] != before[0]
    unswap(model, report)
    after = evaluate(model, cluster())
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_a_swapped_model_keeps_its_symmetry_and_forces_are_the_negative_gradient() -> None:
    from actsearch.ops.basis_activation import BasisActivation

    model, frame, h = with_statistics(theirs()), cluster(), 1e-4
    swap(model, lambda site: BasisActivation("chebyshev", 12, "tanh").double())
    energy, forces = evaluate(model, frame)
    assert energy.dtype == forces.dtype == torch.float64
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = evaluate(model, Frame(frame.numbers, frame.positions @ q.T + 1.0))
    assert turned[0].item() == pytest.approx(energy.item(), abs=1e-9)
    assert torch.allclose(turned[1], forces @ torch.as_tensor(q.T), atol=1e-9)
    for atom, axis in [(0, 0), (4, 1), (8, 2)]:
        values = []
        for sign in (1, -1):
            positions = frame.positions.copy()
            positions[atom, axis] += sign * h
            values.append(evaluate(model, Frame(frame.numbers, positions))[0].item())
        assert forces[atom, axis].item() == pytest.approx((values[1] - values[0]) / (2 * h), rel=1e-4, abs=1e-6)


def test_a_converted_model_is_a_deep_potential_with_sites_of_its_own() -> None:
    model = from_deepmd(theirs())
    assert isinstance(model, DeepPotential)
    assert next(model.parameters()).dtype == torch.float64
    names = [site.name for site in swap(model, nn.SiLU).replaced]
    assert names[:3] == ["embedding.O-O.act1", "embedding.O-O.act2", "embedding.O-H.act1"]
    assert names[-1] == "fitting.H.act2"
