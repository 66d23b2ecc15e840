"""Deep Potential: smooth, symmetric, the right derivatives, and trainable activations inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError
from actsearch.forcefield.deep_potential import DeepPotential, environment, switch
from actsearch.forcefield.frames import Frame, FrameBatch, batch_of
from actsearch.ops.basis_activation import BasisActivation
from actsearch.swap import swap

CUTOFF = 3.0
SMALL: dict[str, Any] = {"embedding": (4, 8), "axis": 3, "fitting": (10, 10), "smooth_from": 0.5}
REFERENCES = {1: -13.5, 8: -430.0}


@pytest.fixture(autouse=True)
def _float64() -> Any:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def molecule(seed: int = 0, waters: int = 2) -> Frame:
    """Water molecules some 3 Å apart, in no cell."""
    random = np.random.default_rng(seed)
    one = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    positions = np.concatenate([one + np.array([2.6 * k, 0.4 * k, 0.3]) for k in range(waters)])
    return Frame(np.array([8, 1, 1] * waters), positions + random.normal(0, 0.1, positions.shape))


def crystal(seed: int = 0) -> Frame:
    """Two waters in a small, oblique, periodic cell."""
    cell = np.array([[4.2, 0.0, 0.0], [0.5, 4.6, 0.0], [-0.3, 0.4, 4.4]])
    return dataclasses.replace(molecule(seed), cell=cell, pbc=np.ones(3, dtype=bool))


def small(sample: FrameBatch | None = None, **options: Any) -> DeepPotential:
    """A small network with statistics of a sample, and weights that matter."""
    sample = sample or batch_of([molecule(1), crystal(2)], CUTOFF)
    return DeepPotential((1, 8), CUTOFF, REFERENCES, sample, **{**SMALL, **options})


def energies(model: DeepPotential, frames: Sequence[Frame]) -> Tensor:
    return model(batch_of(frames, CUTOFF), forces=False).energy.detach()


def moved(frame: Frame, positions: np.ndarray, cell: np.ndarray | None = None) -> Frame:
    return dataclasses.replace(frame, positions=positions, cell=frame.cell if cell is None else cell)


def rotation(seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


BOTH = pytest.mark.parametrize("one_side", [False, True], ids=["pairs", "one_side"])
FRAMES = pytest.mark.parametrize("frame", [molecule(), crystal()], ids=["molecule", "crystal"])


# The cutoff


def test_the_switch_is_1_before_and_0_after() -> None:
    w = switch(torch.tensor([0.1, 0.5, 3.0, 9.0]), 0.5, 3.0)
    assert w.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(("end", "value"), [(0.5, 1.0), (3.0, 0.0)])
def test_the_switch_is_twice_continuously_differentiable_at_both_ends(end: float, value: float) -> None:
    for side in (-1e-7, 1e-7):
        r = torch.tensor(end + side, requires_grad=True)
        w = switch(r, 0.5, 3.0)
        (first,) = torch.autograd.grad(w, r, create_graph=True)
        (second,) = torch.autograd.grad(first, r)
        assert w.item() == pytest.approx(value, abs=1e-6)
        assert first.item() == pytest.approx(0, abs=1e-6)
        assert second.item() == pytest.approx(0, abs=1e-5)


def test_the_third_derivative_of_the_switch_jumps() -> None:
    r = torch.tensor(0.5 + 1e-9, requires_grad=True)
    derivative = switch(r, 0.5, 3.0)
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative, r, create_graph=True)
    assert derivative.item() == pytest.approx(-60 / 2.5**3, rel=1e-6)


def test_rows_are_s_and_s_times_the_direction() -> None:
    vectors = torch.tensor([[0.0, 0.3, 0.4], [1.0, 2.0, 2.0 - 1e-9]])
    rows = environment(vectors, 0.5, 3.0)
    assert torch.allclose(rows[0], torch.tensor([2.0, 0.0, 1.2, 1.6]))
    assert rows[1].abs().max() < 1e-20


@BOTH
def test_energy_forces_and_curvature_are_continuous_where_a_neighbour_comes_in(one_side: bool) -> None:
    model = small(type_one_side=one_side)

    def at(r: float) -> list[float]:
        """Energy, its derivative and its second derivative along r, of O and H."""
        frame = Frame(np.array([8, 1]), np.array([[0.0, 0, 0], [r, 0, 0]]))
        batch = batch_of([frame], CUTOFF + 1)
        x = batch.positions[1, :1].clone().requires_grad_()
        positions = torch.cat([torch.zeros(3), x, torch.zeros(2)]).view(2, 3)
        e = model.interaction(batch, batch.vectors(positions)).sum()
        (first,) = torch.autograd.grad(e, x, create_graph=True, materialize_grads=True)
        if not first.requires_grad:
            return [e.item(), first.item(), 0.0]
        return [e.item(), first.item(), torch.autograd.grad(first, x)[0].item()]

    inside, outside = at(CUTOFF - 1e-5), at(CUTOFF + 1e-5)
    assert outside[1:] == [0.0, 0.0]
    assert inside == pytest.approx(outside, abs=1e-3)
    assert inside[0] == pytest.approx(outside[0], abs=1e-12)


def test_neighbours_beyond_the_cutoff_count_for_nothing() -> None:
    model = small()
    near = model(batch_of([crystal()], CUTOFF))
    far = model(batch_of([crystal()], CUTOFF + 1.5))
    assert torch.allclose(near.energy, far.energy, rtol=1e-13)
    assert torch.allclose(near.forces, far.forces, atol=1e-11)


# Symmetry


@BOTH
@FRAMES
def test_energy_is_invariant_and_forces_turn_with_the_frame(frame: Frame, one_side: bool) -> None:
    model = small(type_one_side=one_side)
    q = rotation()
    before = model(batch_of([frame], CUTOFF), stress=bool(frame.pbc.any()))
    turned = moved(frame, frame.positions @ q.T + [1.0, -2.0, 0.5], frame.cell @ q.T)
    after = model(batch_of([turned], CUTOFF), stress=bool(frame.pbc.any()))
    turn = torch.as_tensor(q)
    assert torch.allclose(after.energy, before.energy, rtol=1e-13)
    assert torch.allclose(after.forces, before.forces @ turn.T, atol=1e-10)
    if frame.pbc.any():
        assert torch.allclose(after.stress, turn @ before.stress @ turn.T, atol=1e-11)


@BOTH
def test_energy_is_invariant_under_a_mirror_and_permutation_of_atoms(one_side: bool) -> None:
    model, frame = small(type_one_side=one_side), crystal()
    order = np.random.default_rng(3).permutation(len(frame.numbers))
    before = model(batch_of([frame], CUTOFF))
    other = dataclasses.replace(frame, numbers=frame.numbers[order], positions=frame.positions[order])
    after = model(batch_of([other], CUTOFF))
    assert torch.allclose(after.energy, before.energy, rtol=1e-13)
    assert torch.allclose(after.forces, before.forces[order], atol=1e-10)
    mirrored = moved(frame, frame.positions * [1, 1, -1], frame.cell * [1, 1, -1])
    assert torch.allclose(energies(model, [mirrored]), before.energy.detach(), rtol=1e-13)


def test_forces_sum_to_zero() -> None:
    assert small()(batch_of([crystal()], CUTOFF)).forces.sum(0).abs().max() < 1e-10


def test_a_replicated_cell_has_as_many_times_the_energy_and_the_same_forces() -> None:
    model, frame = small(), crystal()
    shifts = [a * frame.cell[0] + b * frame.cell[2] for a in range(2) for b in range(3)]
    large = Frame(
        np.tile(frame.numbers, 6),
        np.concatenate([frame.positions + shift for shift in shifts]),
        np.diag([2.0, 1.0, 3.0]) @ frame.cell,
        frame.pbc,
    )
    one, six = model(batch_of([frame], CUTOFF), stress=True), model(batch_of([large], CUTOFF), stress=True)
    assert torch.allclose(six.energy, 6 * one.energy, rtol=1e-13)
    assert torch.allclose(six.forces, one.forces.repeat(6, 1), atol=1e-10)
    assert torch.allclose(six.stress, one.stress, atol=1e-11)


def test_energies_of_fragments_far_apart_add_up() -> None:
    model, a, b = small(), molecule(0), molecule(1, waters=1)
    both = Frame(np.concatenate([a.numbers, b.numbers]), np.concatenate([a.positions, b.positions + 50]))
    together, apart = energies(model, [both]), energies(model, [a, b]).sum()
    assert together.item() == pytest.approx(apart.item(), rel=1e-13)


@BOTH
def test_frames_of_different_sizes_in_one_batch_are_as_one_by_one(one_side: bool) -> None:
    model = small(type_one_side=one_side, atomic_references=True)
    frames = [crystal(), Frame(np.array([1]), np.zeros((1, 3))), molecule(5, waters=3)]
    together = model(batch_of(frames, CUTOFF))
    alone = [model(batch_of([frame], CUTOFF)) for frame in frames]
    assert torch.allclose(together.energy, torch.cat([p.energy for p in alone]), rtol=1e-13)
    assert torch.allclose(together.forces, torch.cat([p.forces for p in alone]), atol=1e-11)


# Derivatives


@BOTH
@FRAMES
def test_forces_are_the_negative_gradient(frame: Frame, one_side: bool) -> None:
    model, h = small(type_one_side=one_side), 1e-4
    found = model(batch_of([frame], CUTOFF)).forces.detach().numpy()
    frames = []
    for atom, axis in np.ndindex(frame.positions.shape):
        for sign in (1, -1):
            positions = frame.positions.copy()
            positions[atom, axis] += sign * h
            frames.append(moved(frame, positions))
    plus, minus = energies(model, frames).numpy().reshape(-1, 2).T
    expected = -(plus - minus).reshape(found.shape) / (2 * h)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_stress_is_the_derivative_by_strain() -> None:
    model, frame, h = small(), crystal(), 1e-4
    found = model(batch_of([frame], CUTOFF), stress=True).stress[0].detach().numpy()
    expected = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[i, j] += h / 2
        strain[j, i] += h / 2
        both = [moved(frame, frame.positions @ d, frame.cell @ d) for d in (np.eye(3) + strain, np.eye(3) - strain)]
        plus, minus = energies(model, both).numpy()
        expected[i, j] = (plus - minus) / (2 * h * abs(np.linalg.det(frame.cell)))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@BOTH
def test_gradients_of_a_force_loss_are_right(one_side: bool) -> None:
    model = small(type_one_side=one_side)
    batch = batch_of([crystal(), molecule(4)], CUTOFF)
    target = torch.randn_like(batch.positions)

    def loss() -> Tensor:
        return (model(batch).forces - target).square().sum()

    weights = list(model.parameters())
    # What a head's bias adds depends on no position: it has no part in the graph.
    found = torch.autograd.grad(loss(), weights, materialize_grads=True)
    direction = [torch.randn_like(w) for w in weights]
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True))
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w += step * d
        values.append(loss().item())
    assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_a_training_step_on_energy_and_forces_moves_the_coefficients_of_every_site() -> None:
    model = small(batch_of([molecule(1), crystal(2)], CUTOFF)).float()
    swap(model, lambda site: BasisActivation("chebyshev", 8, "tanh"))
    sites = {name: m for name, m in model.named_modules() if isinstance(m, BasisActivation)}
    assert len(sites) == 4 * 2 + 2 * 2
    before = {name: m.coefficients.detach().clone() for name, m in sites.items()}
    batch = batch_of([crystal(), molecule(4)], CUTOFF).map(lambda t: t.float() if t.is_floating_point() else t)
    optimizer = torch.optim.SGD([m.coefficients for m in sites.values()], lr=1e-4)
    prediction = model(batch)
    interaction = prediction.energy - model.references[model.kinds(batch)].sum()
    (prediction.forces.square().mean() + 1e-3 * interaction.square().mean()).backward()
    optimizer.step()
    for name, m in sites.items():
        assert torch.isfinite(m.coefficients).all(), name
        assert not torch.equal(m.coefficients, before[name]), name


# Numbers


def test_float32_is_close_to_float64() -> None:
    model = small()
    batch = batch_of([crystal(), molecule()], CUTOFF)
    exact = model(batch)
    single = model.float()(batch.map(lambda t: t.float() if t.is_floating_point() else t))
    assert single.forces.dtype == torch.float32
    assert single.energy.dtype == torch.float64
    assert torch.allclose(single.energy, exact.energy, rtol=0, atol=1e-4)
    assert (single.forces - exact.forces).abs().max() < 1e-4 * exact.forces.abs().max()


def test_an_isolated_atom_has_its_reference_and_a_constant_of_its_element() -> None:
    atoms = [Frame(np.array([z]), np.full((1, 3), x)) for z in (1, 8) for x in (0.0, 1.0)]
    plain, exact = small(), small(atomic_references=True)
    exact.load_state_dict(plain.state_dict())
    assert energies(exact, atoms).tolist() == pytest.approx([-13.5, -13.5, -430, -430], rel=1e-14)
    assert plain(batch_of(atoms, CUTOFF)).forces.abs().max() == 0
    constants = energies(plain, atoms) - energies(exact, atoms)
    assert constants[0] == constants[1] != constants[2] == constants[3]
    # The constants shift energies and nothing else.
    frame = crystal()
    shift = energies(plain, [frame]) - energies(exact, [frame])
    assert shift.item() == pytest.approx((4 * constants[0] + 2 * constants[2]).item(), rel=1e-9)


def test_statistics_are_those_of_the_slots_of_the_sample() -> None:
    sample = batch_of([molecule(1), crystal(2)], CUTOFF)
    model = small(sample, sel=(20, 10))
    kinds = model.kinds(sample)
    for kind in (0, 1):
        atoms = (kinds == kind).nonzero().squeeze(1)
        slots = torch.zeros(len(atoms), 30, 4)  # padded, as DeePMD-kit has them
        for i, atom in enumerate(atoms):
            rows = environment(sample.vectors()[sample.centre == atom], 0.5, CUTOFF)
            slots[i, : len(rows)] = rows
        assert model.mean[kind].item() == pytest.approx(slots[..., 0].mean().item())
        assert model.deviation[kind, 0].item() == pytest.approx(slots[..., 0].std(correction=0).item())
        assert model.deviation[kind, 1].item() == pytest.approx(slots[..., 1:].std(correction=0).item())


def test_sel_is_from_the_sample_with_a_margin_and_is_a_constant() -> None:
    sample = batch_of([crystal(2)], CUTOFF)
    model = small(sample)
    counts = torch.bincount(sample.centre * 2 + model.kinds(sample)[sample.neighbour]).view(-1, 2).amax(0)
    assert (model.sel >= 1.1 * counts).all()
    assert (model.sel < 1.1 * counts + 4).all()
    assert (model.sel % 4 == 0).all()
    before = model.sel.clone()
    model(batch_of([molecule(3, waters=5)], CUTOFF))
    assert torch.equal(model.sel, before)


def test_an_element_that_the_sample_lacks_gets_the_default_statistics() -> None:
    model = DeepPotential((1, 6, 8), CUTOFF, None, batch_of([molecule()], CUTOFF), **SMALL)
    assert model.mean[1] == 0
    assert model.deviation[1].tolist() == [0.1, 0.1]
    assert torch.isfinite(energies(model, [Frame(np.array([6, 1]), np.array([[0.0, 0, 0], [1.1, 0, 0]]))])).all()


@BOTH
def test_a_state_loads_into_a_model_made_without_a_sample(one_side: bool) -> None:
    model = small(type_one_side=one_side)
    torch.manual_seed(1)
    other = DeepPotential((1, 8), CUTOFF, type_one_side=one_side, **SMALL)
    frames = [crystal(), molecule()]
    assert not torch.allclose(energies(other, frames), energies(model, frames))
    other.load_state_dict(model.state_dict())
    assert torch.equal(energies(other, frames), energies(model, frames))


def test_weights_start_as_in_deepmd_kit() -> None:
    model = DeepPotential((1, 8), 6.0, embedding=(25, 50, 100), fitting=(240, 240, 240))
    layer = model.fitting["O"].fc1
    assert layer.weight.shape == (240, 1600)
    assert layer.weight.std().item() == pytest.approx((240 + 1600) ** -0.5, rel=0.01)
    assert layer.bias.std().item() == pytest.approx(1, rel=0.2)
    assert model.fitting["O"].step1 is None
    assert model.fitting["O"].step2.mean().item() == pytest.approx(0.1, abs=0.001)
    assert model.embedding["O-H"].step2 is None


# Sites and settings


def test_every_activation_is_a_site_with_a_telling_name() -> None:
    model = small()
    report = swap(model, nn.SiLU)
    layers = ("act1", "act2")
    expected = [f"embedding.{a}-{b}.{act}" for a in "HO" for b in "HO" for act in layers]
    expected += [f"fitting.{a}.{act}" for a in "HO" for act in layers]
    assert [site.name for site in report.replaced] == expected
    assert report.skipped == []


def test_sites_of_a_one_sided_model_are_named_by_the_neighbour() -> None:
    model = small(type_one_side=True)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Tanh)]
    assert names == [f"{part}.{z}.{act}" for part in ("embedding", "fitting") for z in "HO" for act in ("act1", "act2")]


def test_one_sided_networks_do_not_see_the_centre() -> None:
    assert len(small().embedding) == 4
    assert list(small(type_one_side=True).embedding) == ["H", "O"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"smooth_from": 3.0}, "smooth_from"),
        ({"axis": 9}, "axis"),
        ({"embedding": ()}, "at least one layer"),
        ({"fitting": (0,)}, "at least one unit"),
        ({"sel": (4,)}, "each of 2 elements"),
        ({"sel": (0, 0)}, "each of 2 elements"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        small(**options)
