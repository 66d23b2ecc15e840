"""The force fields: symmetries, derivatives, activation sites, and agreement with the libraries."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import actsearch
from actsearch import models
from actsearch.errors import MissingPackageError, SettingsError, UnknownNameError
from actsearch.forcefield.frames import Frame, FrameBatch, batch_of
from actsearch.forcefield.painn import force_scale
from actsearch.forcefield.potential import ForceField
from actsearch.ops.basis_activation import BasisActivation
from actsearch.ops.slopes import adapt

pytest.importorskip("torchani", reason="needs actsearch[forcefield]")
pytest.importorskip("chgnet", reason="needs actsearch[forcefield]")

H, C, O, MO = 1, 6, 8, 42  # noqa: E741
CUTOFF = 4.0


@dataclass(frozen=True)
class Case:
    """A force field by name, small; what stands at its sites, and the package that it needs."""

    name: str
    options: dict[str, Any]
    initial: str | nn.Module
    sites: tuple[str, ...]
    gates: tuple[str, ...] = ()
    package: str = ""

    def __str__(self) -> str:
        return self.name

    def build(self, elements: tuple[int, ...] = (H, C, O, MO), sample: FrameBatch | None = None, **options: Any) -> Any:
        facts = {"elements": elements, "cutoff": CUTOFF, "references": {elements[0]: -2.5}, "sample": sample}
        model = models.build(self.name, facts, **{**self.options, **options})
        assert isinstance(model, ForceField)
        return model


def _gated(layer: str) -> tuple[str, ...]:
    return (f"{layer}.activation", f"{layer}.mlp_core.layers.1", f"{layer}.mlp_gate.layers.1")


CASES = [
    Case(
        "painn",
        {"features": 8, "layers": 2, "radial": 5},
        "silu",
        ("message1.act", "update1.act", "message2.act", "update2.act", "readout.act"),
    ),
    Case(
        "ani2",
        {"hidden": (6, 5)},
        nn.CELU(0.1),
        tuple(f"networks.atomics.{symbol}.layers.act{i}" for symbol in ("H", "C", "O", "Mo") for i in (1, 2)),
        package="torchani",
    ),
    Case(
        "chgnet",
        {"features": 6, "layers": 3, "radial": 5, "angular": 5},
        "silu",
        (
            *(name for i in range(3) for name in _gated(f"network.atom_conv_layers.{i}.twoBody_atom")),
            *(name for i in range(2) for name in _gated(f"network.bond_conv_layers.{i}.twoBody_bond")),
            "network.angle_layers.0.twoBody_bond.activation",
            *(f"network.mlp.layers.{i}" for i in (1, 3, 5)),
        ),
        gates=(
            *(f"network.atom_conv_layers.{i}.twoBody_atom.sigmoid" for i in range(3)),
            *(f"network.bond_conv_layers.{i}.twoBody_bond.sigmoid" for i in range(2)),
            "network.angle_layers.0.twoBody_bond.sigmoid",
        ),
        package="chgnet",
    ),
]
FORCE_FIELDS = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def molecule() -> Frame:
    """Ethanol, a little out of shape, so that no bond is at its minimum."""
    positions = np.array(
        [
            [1.20, -0.26, 0.03], [-0.02, 0.58, -0.04], [-1.13, -0.27, 0.05], [-1.97, 0.17, -0.03], [0.00, 1.12, 0.91],
            [-0.05, 1.26, -0.89], [2.09, 0.35, -0.06], [1.22, -0.98, 0.85], [1.25, -0.80, -0.95],
        ]
    )  # fmt: skip
    return Frame(np.array([C, C, O, H, H, H, H, H, H]), positions)


def water() -> Frame:
    return Frame(np.array([H, O, H]), np.array([[0.96, 0.05, 0.0], [0.0, 0.0, 0.1], [-0.2, 0.9, 0.15]]))


def crystal(atoms: int = 2) -> Frame:
    """A skewed cell of molybdenum and oxygen, smaller than the cutoff: atoms are neighbours of their own images."""
    cell = np.array([[3.1, 0.1, 0.0], [0.2, 3.2, -0.1], [0.0, 0.3, 3.0]])
    inside = np.array([[0.02, 0.01, -0.03], [0.47, 0.52, 0.55]])[:atoms]
    return Frame(np.array([MO, O])[:atoms], inside @ cell, cell, np.ones(3, dtype=bool))


def perfect() -> Frame:
    """A cubic lattice, where symmetry makes forces, and feature vectors, 0."""
    return Frame(np.array([MO]), np.zeros((1, 3)), 2.9 * np.eye(3), np.ones(3, dtype=bool))


def lonely() -> Frame:
    """Two atoms with no neighbour."""
    return Frame(np.array([O, H]), np.array([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))


def stretched() -> Frame:
    """Neighbours, but none within 3 Å: CHGNet makes no angle of them."""
    return Frame(np.array([O, H, C]), np.array([[0.0, 0.0, 0.0], [3.5, 0.0, 0.0], [0.0, 3.6, 0.0]]))


ALL = (molecule, water, crystal, perfect, lonely, stretched)


def batch(*frames: Frame, cutoff: float = CUTOFF) -> FrameBatch:
    return batch_of(frames, cutoff)


def turned(frame: Frame, turn: np.ndarray) -> Frame:
    return dataclasses.replace(frame, positions=frame.positions @ turn.T, cell=frame.cell @ turn.T)


def rotation(seed: int = 0) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance)


# --- symmetries --------------------------------------------------------------------------------------------------


@FORCE_FIELDS
@pytest.mark.parametrize("frame", [molecule(), crystal()], ids=["molecule", "crystal"])
@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["rotation", "rotation and mirror"])
def test_energy_is_invariant_and_forces_and_stress_turn_along(case, frame, mirror):
    model, turn = case.build(), rotation() * mirror
    periodic = bool(frame.pbc.any())
    before = model(batch(frame), stress=periodic)
    after = model(batch(turned(frame, turn)), stress=periodic)
    matrix = torch.as_tensor(turn)
    close(after.energy, before.energy)
    close(after.forces, before.forces @ matrix.T)
    if periodic:
        close(after.stress, matrix @ before.stress @ matrix.T)
    assert before.forces.abs().max() > 1e-3


@FORCE_FIELDS
@pytest.mark.parametrize("frame", [molecule(), crystal()], ids=["molecule", "crystal"])
def test_energy_and_forces_are_invariant_under_translation(case, frame):
    model = case.build()
    moved = dataclasses.replace(frame, positions=frame.positions + np.array([7.1, -3.3, 0.4]))
    before, after = model(batch(frame)), model(batch(moved))
    close(after.energy, before.energy)
    close(after.forces, before.forces)


@FORCE_FIELDS
def test_an_atom_may_stand_in_any_cell(case):
    model, frame = case.build(), crystal()
    moved = dataclasses.replace(
        frame, positions=frame.positions + np.array([[2.0, -1.0, 0.0], [0.0, 3.0, 1.0]]) @ frame.cell
    )
    close(model(batch(moved)).energy, model(batch(frame)).energy)
    close(model(batch(moved)).forces, model(batch(frame)).forces)


@FORCE_FIELDS
@pytest.mark.parametrize("frame", [molecule(), crystal()], ids=["molecule", "crystal"])
def test_the_order_of_atoms_does_not_matter(case, frame):
    model = case.build()
    order = np.random.default_rng(1).permutation(len(frame.numbers))[::-1].copy()
    shuffled = dataclasses.replace(frame, numbers=frame.numbers[order], positions=frame.positions[order])
    before, after = model(batch(frame)), model(batch(shuffled))
    close(after.energy, before.energy)
    close(after.forces, before.forces[order])


@FORCE_FIELDS
def test_a_repeated_cell_has_as_many_times_the_energy(case):
    model, frame = case.build(), crystal()
    shift = np.array([[0, 0, 0], [0, 1, 0]]) @ frame.cell
    double = Frame(
        np.tile(frame.numbers, 2),
        (frame.positions[None] + shift[:, None]).reshape(-1, 3),
        frame.cell * np.array([[1], [2], [1]]),
        frame.pbc,
    )
    one, two = model(batch(frame), stress=True), model(batch(double), stress=True)
    close(two.energy, 2 * one.energy)
    close(two.forces, one.forces.repeat(2, 1))
    close(two.stress, one.stress)


# --- derivatives -------------------------------------------------------------------------------------------------


def energy(model: ForceField, frame: Frame) -> float:
    return model(batch(frame), forces=False).energy.item()


@FORCE_FIELDS
@pytest.mark.parametrize("frame", [molecule(), crystal(), stretched()], ids=["molecule", "crystal", "stretched"])
def test_forces_are_the_negative_gradient(case, frame):
    model = case.build()
    forces = model(batch(frame)).forces
    step, found = 1e-4, np.zeros_like(frame.positions)
    for i, k in np.ndindex(*frame.positions.shape):
        moved = [frame.positions.copy() for _ in range(2)]
        moved[0][i, k] += step
        moved[1][i, k] -= step
        high, low = (energy(model, dataclasses.replace(frame, positions=x)) for x in moved)
        found[i, k] = (low - high) / (2 * step)
    assert np.abs(found - forces.numpy(force=True)).max() < 1e-4 * np.abs(found).max()


@FORCE_FIELDS
def test_stress_is_the_derivative_by_strain(case):
    model, frame = case.build(), crystal()
    stress = model(batch(frame), stress=True).stress[0]
    step, found = 1e-4, np.zeros((3, 3))
    for i, k in np.ndindex(3, 3):
        values = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, k] += sign * step / 2
            strain[k, i] += sign * step / 2
            by = np.eye(3) + strain
            values.append(
                energy(model, dataclasses.replace(frame, positions=frame.positions @ by, cell=frame.cell @ by))
            )
        found[i, k] = (values[0] - values[1]) / (2 * step) / np.linalg.det(frame.cell)
    assert np.abs(found - stress.numpy(force=True)).max() < 1e-4 * np.abs(found).max()
    close(stress, stress.T)


@FORCE_FIELDS
@pytest.mark.parametrize("frame", [make() for make in ALL], ids=[make.__name__ for make in ALL])
def test_first_and_second_derivatives_are_finite_everywhere(case, frame):
    model = case.build()
    out = model(batch(frame), stress=bool(frame.pbc.any()))
    loss = out.energy.sum() + out.forces.square().sum() + (out.stress.square().sum() if frame.pbc.any() else 0)
    loss.backward()
    assert out.forces.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@FORCE_FIELDS
def test_an_atom_that_comes_within_reach_changes_nothing_at_first(case):
    model = case.build()
    near, far = (Frame(np.array([O, H]), np.array([[0.0, 0.0, 0.0], [CUTOFF + d, 0.0, 0.0]])) for d in (-1e-5, 1e-5))
    close(energy(model, near), energy(model, far), 1e-8)
    close(model(batch(near)).forces, model(batch(far)).forces, 1e-4)


@FORCE_FIELDS
def test_neighbours_beyond_the_cutoff_change_nothing(case):
    model = case.build()
    for frame in (molecule(), crystal()):
        short, long = model(batch(frame)), model(batch(frame, cutoff=CUTOFF + 2.5))
        close(long.energy, short.energy)
        close(long.forces, short.forces)


# --- batches and elements ----------------------------------------------------------------------------------------


@FORCE_FIELDS
def test_a_batch_is_the_same_as_its_frames_one_by_one(case):
    model, frames = case.build(), [make() for make in ALL]
    together = model(batch(*frames))
    alone = [model(batch(frame)) for frame in frames]
    close(together.energy, torch.cat([p.energy for p in alone]))
    close(together.forces, torch.cat([p.forces for p in alone]))


@FORCE_FIELDS
def test_elements_may_come_in_any_order(case):
    model = case.build((MO, O, H, C))
    p = model(batch(molecule(), crystal()))
    assert model.elements == (MO, O, H, C)
    assert p.energy.isfinite().all()
    assert model.references.tolist() == [-2.5, 0, 0, 0]
    alone = Frame(np.array([MO]), np.zeros((1, 3)))
    other = Frame(np.array([H]), np.zeros((1, 3)))
    assert model(batch(alone)).energy != model(batch(other)).energy


@FORCE_FIELDS
def test_references_are_added_for_each_atom(case):
    model = case.build((O, H, C, MO))
    plain = model(batch(water(), molecule()), forces=False).energy
    model.references.zero_()
    close(plain, model(batch(water(), molecule()), forces=False).energy - 2.5)


@FORCE_FIELDS
def test_unknown_elements_and_short_cutoffs_are_refused(case):
    model = case.build((H, O))
    with pytest.raises(SettingsError, match=r"knows elements \[1, 8\], not \[6\]"):
        model.check(batch(molecule()))
    with pytest.raises(SettingsError, match=r"up to 3 Å, the force field needs 4 Å"):
        model.check(batch(water(), cutoff=3.0))
    model.check(batch(water()))
    with pytest.raises(SettingsError, match="different atomic numbers"):
        case.build((8, 8))


@FORCE_FIELDS
def test_float32_agrees_with_float64(case):
    model = case.build()
    exact = model(batch(molecule(), crystal()))
    torch.set_default_dtype(torch.float32)
    rough = model.float()(batch(molecule(), crystal()))
    assert rough.forces.dtype == torch.float32
    assert rough.energy.dtype == torch.float64
    close(rough.energy, exact.energy, 1e-5)
    close(rough.forces.double(), exact.forces, 1e-4)


# --- activation sites --------------------------------------------------------------------------------------------


@FORCE_FIELDS
def test_swap_replaces_exactly_the_activation_sites_and_leaves_gates(case):
    model = case.build()
    report = actsearch.swap(model, nn.Tanh, example=(batch(molecule(), crystal()),))
    assert sorted(site.name for site in report.replaced) == sorted(case.sites)
    assert sorted(site.name for site, reason in report.skipped) == sorted(case.gates)
    assert {reason for _, reason in report.skipped} <= {"a gate"}
    assert not report.unused
    assert all(isinstance(model.get_submodule(name), nn.Tanh) for name in case.sites)
    assert all(isinstance(model.get_submodule(name), nn.Sigmoid) for name in case.gates)
    assert len({id(model.get_submodule(name)) for name in case.sites}) == len(case.sites)


@FORCE_FIELDS
def test_every_site_acts_on_the_energy(case):
    model, frames = case.build(), batch(molecule(), crystal())
    before = model(frames, forces=False).energy
    for name in case.sites:
        changed = copy.deepcopy(model)
        changed.set_submodule(name, nn.Tanh())
        assert (changed(frames, forces=False).energy != before).any(), name


def train(model: ForceField) -> None:
    """One step on energy and forces of frames in which every element occurs."""
    frames = batch(molecule(), crystal())
    model(frames)  # what has its size of the first batch gets it now
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    out = model(frames)
    loss = (out.energy - 1).square().mean() + (out.forces - 0.1).square().mean()
    loss.backward()
    assert loss.isfinite()
    optimizer.step()


@FORCE_FIELDS
def test_a_step_on_energy_and_forces_moves_the_coefficients_at_every_site(case):
    model = case.build()
    actsearch.swap(model, lambda site: BasisActivation("chebyshev", initial=case.initial).double())
    before = {name: model.get_submodule(name).coefficients.detach().clone() for name in case.sites}
    train(model)
    for name, start in before.items():
        now = model.get_submodule(name).coefficients
        assert now.isfinite().all()
        assert (now != start).any(), name


@FORCE_FIELDS
@pytest.mark.parametrize("scope", ["site", "channel"])
def test_a_step_on_energy_and_forces_moves_the_slopes_at_every_site(case, scope):
    model, frames = case.build(), batch(molecule(), crystal())
    before = model(frames).energy
    options = {"channel_axis": -1, "example": (frames,)} if scope == "channel" else {}
    report = adapt(model, scope, **options)
    assert sorted(site.name for site in report.replaced) == sorted(case.sites)
    close(model(frames).energy, before)
    train(model)
    for name in case.sites:
        slopes = model.get_submodule(name).a
        assert slopes.isfinite().all()
        assert (slopes != 1).any(), name


# --- building ----------------------------------------------------------------------------------------------------


@FORCE_FIELDS
def test_state_goes_into_a_model_built_without_a_sample(case):
    frames = batch(dataclasses.replace(molecule(), forces=np.full((9, 3), 2.0)), crystal())
    model, other = case.build(sample=frames), case.build(sample=None)
    other.load_state_dict(model.state_dict())
    close(other(frames).energy, model(frames).energy, 0)


@pytest.mark.parametrize("case", [case for case in CASES if case.package], ids=str)
def test_a_missing_library_is_named_with_its_extra(case, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == case.package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, case.package, None)
    with pytest.raises(MissingPackageError, match=rf"needs {case.package}: pip install 'actsearch\[forcefield\]'"):
        case.build()


def test_the_models_are_listed_without_their_libraries():
    code = (
        "import sys, actsearch.models; "
        "sys.exit(any(name in sys.modules for name in ('torchani', 'chgnet', 'ase', 'pymatgen', 'vesin')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("painn", {"features": 1}, "at least 2 features"),
        ("painn", {"layers": 0}, "1 layer"),
        ("ani2", {"hidden": ()}, "at least one unit"),
        ("ani2", {"hidden": (4, 0)}, "at least one unit"),
        ("ani2", {"angular_cutoff": 4.0}, "below the radial cutoff, 4 Å, not 4 Å"),
        ("chgnet", {"angular": 4}, "odd number"),
        ("chgnet", {"layers": 0}, "at least 1"),
        ("chgnet", {"bond_cutoff": 0.0}, "above 0, not 0"),
        ("chgnet", {"pretrained": "0.3.0"}, "needs a cutoff of 6 Å, not 4 Å: set the data's cutoff"),
        ("chgnet", {"pretrained": "0.3.0", "layers": 2}, "sizes of its own: leave out features"),
    ],
)
def test_settings_out_of_range_are_refused(name, options, match):
    facts = {"elements": (1, 8), "cutoff": CUTOFF, "references": {}, "sample": None}
    with pytest.raises(SettingsError, match=match):
        models.build(name, facts, **options)


def test_unknown_names_are_refused():
    facts = {"elements": (1, 8), "cutoff": 6.0, "references": {}, "sample": None}
    with pytest.raises(UnknownNameError, match="activation of ANI 'relu'"):
        models.build("ani2", facts, activation="relu")
    with pytest.raises(UnknownNameError, match=r"pretrained CHGNet '0.1.0'"):
        models.build("chgnet", facts, pretrained="0.1.0")
    with pytest.raises(SettingsError, match="elements up to 94, not 95"):
        models.build("chgnet", {**facts, "elements": (95,)})


# --- PaiNN -------------------------------------------------------------------------------------------------------


def test_painn_scales_its_energies_by_the_root_mean_square_of_known_forces():
    known = dataclasses.replace(molecule(), forces=np.tile([3.0, 0.0, 4.0], (9, 1)))
    frames = batch(known, water())
    assert force_scale(frames) == pytest.approx((25 / 3) ** 0.5)
    assert force_scale(batch(water())) == 1
    assert force_scale(batch(dataclasses.replace(water(), forces=np.zeros((3, 3))))) == 1
    torch.manual_seed(0)
    scaled = CASES[0].build(sample=frames)
    torch.manual_seed(0)
    plain = CASES[0].build()
    close(scaled(frames).forces, (25 / 3) ** 0.5 * plain(frames).forces)


@pytest.mark.parametrize(("smooth", "order"), [(False, 2), (True, 4)])
def test_the_envelope_of_painn_vanishes_at_the_cutoff_with_its_published_order(smooth, order):
    model = CASES[0].build(smooth_cutoff=smooth)
    distances = CUTOFF - torch.tensor([0.2, 0.1])
    _, envelope = model.basis(distances)
    assert torch.log2(envelope[0] / envelope[1]).item() == pytest.approx(order, abs=0.02)


def test_the_radial_basis_of_painn_is_that_of_the_paper_and_finite_at_zero():
    basis = CASES[0].build().basis
    r = torch.tensor([1.3], requires_grad=True)
    n = torch.arange(1, 6)
    functions, envelope = basis(r)
    close(functions[0], torch.sin(n * torch.pi * r / CUTOFF) / r)
    close(envelope[0], 0.5 * (torch.cos(torch.pi * r / CUTOFF) + 1))
    zero = torch.zeros(1, requires_grad=True)
    at_zero, _ = basis(zero)
    close(at_zero[0], n * torch.pi / CUTOFF)
    assert torch.autograd.grad(at_zero.sum(), zero)[0].item() == 0


# --- the libraries' own numbers ----------------------------------------------------------------------------------


def library_ani(symbols: tuple[str, ...], model: Any = None) -> Any:
    """torchani's own model, with the weights of ours where it is given."""
    from torchani.arch import simple_ani

    theirs = simple_ani(
        symbols, lot="wb97x-631gd", cutoff_fn="cosine", radial_start=0.8, angular_start=0.8, radial_cutoff=5.1,
        container_ctor="like_2x", activation="celu", bias=True, repulsion=False, self_energies="zero",
    ).double()  # fmt: skip
    for symbol, ours in model.networks.atomics.items():
        network = theirs.neural_networks.atomics[symbol]
        for i, layer in enumerate([*network.layers, network.final_layer], start=1):
            name = f"layers.fc{i}" if i <= len(network.layers) else "final_layer"
            layer.load_state_dict(ours.get_submodule(name).state_dict())
    return theirs


@pytest.fixture
def ani_pair() -> tuple[ForceField, Any]:
    facts = {"elements": (C, H, O), "cutoff": 5.1, "references": {}, "sample": None}
    ours = models.build("ani2", facts).double()
    return ours, library_ani(("C", "H", "O"), ours)


@pytest.mark.parametrize("frame", [molecule(), water()], ids=["ethanol", "water"])
def test_ani_has_the_energy_and_forces_of_torchani(ani_pair, frame):
    ours, theirs = ani_pair
    found = ours(batch(frame, cutoff=5.5))
    positions = torch.tensor(frame.positions[None], requires_grad=True)
    expected = theirs((torch.tensor(frame.numbers[None]), positions)).energies
    forces = -torch.autograd.grad(expected.sum(), positions)[0][0]
    close(found.energy / expected, torch.ones(1), 1e-6)
    close(found.forces, forces, 1e-8)


def test_ani_has_the_energy_and_forces_of_torchani_in_a_cell(ani_pair):
    ours, theirs = ani_pair
    cell = np.array([[10.7, 0.0, 0.0], [0.5, 10.9, 0.0], [0.0, -0.4, 10.5]])
    frame = dataclasses.replace(molecule(), cell=cell, pbc=np.ones(3, dtype=bool))
    frame = dataclasses.replace(frame, positions=frame.positions - np.array([1.0, 0.5, 0.2]))
    other = dataclasses.replace(frame, numbers=frame.numbers[::-1].copy(), positions=frame.positions[::-1] + 5.2)
    both = dataclasses.replace(
        frame,
        numbers=np.concatenate([frame.numbers, other.numbers]),
        positions=np.concatenate([frame.positions, other.positions]),
    )
    found = ours(batch(both, cutoff=5.1))
    positions = torch.tensor(both.positions[None], requires_grad=True)
    expected = theirs(
        (torch.tensor(both.numbers[None]), positions), torch.tensor(cell), torch.ones(3, dtype=torch.bool)
    ).energies
    forces = -torch.autograd.grad(expected.sum(), positions)[0][0]
    close(found.energy / expected, torch.ones(1), 1e-6)
    close(found.forces, forces, 1e-8)


@pytest.mark.parametrize(("shared", "instances"), [("keep", 1), ("split", 3)])
def test_swap_finds_the_activation_that_torchanis_own_model_shares(ani_pair, shared, instances):
    _, theirs = ani_pair
    report = actsearch.swap(theirs, nn.Tanh, shared=shared)
    names = [f"potentials.nnp.neural_networks.atomics.{symbol}.activation" for symbol in ("C", "H", "O")]
    assert sorted(site.name for site in report.replaced) == names[: len(report.replaced)]
    assert all(isinstance(theirs.get_submodule(name), nn.Tanh) for name in names)
    assert len({id(theirs.get_submodule(name)) for name in names}) == instances


def test_ani_offers_the_activations_of_its_library():
    celu, gelu = CASES[1].build(), CASES[1].build(activation="gelu")
    assert {repr(celu.get_submodule(name)) for name in CASES[1].sites} == {"CELU(alpha=0.1)"}
    assert all(isinstance(gelu.get_submodule(name), nn.GELU) for name in CASES[1].sites)
    facts = {"elements": (H, MO), "cutoff": 5.1, "references": {}, "sample": None}
    published = models.build("ani2", facts).networks.atomics
    assert [layer.out_features for layer in published["H"].layers[::2]] == [256, 192, 160]
    assert [layer.out_features for layer in published["Mo"].layers[::2]] == [160, 128, 96]


def quiet(function: Any, *arguments: Any) -> Any:
    """chgnet turns tensors that require gradients into numbers, of which torch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def library_chgnet(network: Any, frame: Frame) -> tuple[float, Tensor, Tensor]:
    """Energy eV, forces eV/Å and stress eV/Å³ by the library's own converter and forward pass."""
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(frame.cell), frame.numbers, frame.positions, coords_are_cartesian=True)
    out = quiet(partial(network.predict_structure, task="efs"), structure)
    to_ev = 1 / 160.21766208
    return float(out["e"]) * len(frame.numbers), torch.tensor(out["f"]), torch.tensor(out["s"]) * to_ev


@pytest.fixture(scope="module")
def pretrained() -> Any:
    from chgnet.model.model import CHGNet

    return CHGNet.load(use_device="cpu", verbose=False)


def oxide() -> Frame:
    """MnO-like rock salt with a lithium, disordered."""
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    positions = corners * 2.2 + np.random.default_rng(0).normal(0, 0.1, (8, 3))
    cell = 4.4 * np.eye(3) + np.random.default_rng(1).normal(0, 0.1, (3, 3))
    return Frame(np.array([25, 25, 3, 25, 8, 8, 8, 8]), positions, cell, np.ones(3, dtype=bool))


@pytest.mark.parametrize("frame", [oxide(), crystal(), crystal(1)], ids=["oxide", "small cell", "one atom"])
def test_pretrained_chgnet_has_the_numbers_of_its_library(pretrained, frame):
    torch.set_default_dtype(torch.float32)
    facts = {"elements": (3, 8, 25, 42), "cutoff": 6.0, "references": {3: 99.0}, "sample": None}
    ours = models.build("chgnet", facts, pretrained="0.3.0")
    found = ours(batch(frame, cutoff=6.0), stress=True)
    energy, forces, stress = library_chgnet(pretrained, frame)
    close(found.energy.item(), energy, 1e-5)
    close(found.forces.detach(), forces, 1e-4)
    close(found.stress[0].detach(), stress, 1e-5)


def test_pretrained_chgnet_takes_references_where_its_composition_model_is_switched_off():
    torch.set_default_dtype(torch.float32)
    facts = {"elements": (3, 8, 25), "cutoff": 6.5, "references": {3: 99.0}, "sample": None}
    full = models.build("chgnet", facts, pretrained="0.3.0")
    bare = models.build("chgnet", facts, pretrained="0.3.0", composition=False)
    assert full.cutoff == 6
    assert full.references.tolist() == pytest.approx([-2.83, -8.3861, -8.9843])
    assert bare.references.tolist() == [99, 0, 0]
    frames = batch(oxide(), cutoff=6.5)
    atoms = -2.83 - 4 * 8.3861 - 3 * 8.9843
    close(full(frames).energy - atoms, bare(frames).energy - 99, 1e-4)


def test_a_new_chgnet_may_take_the_energies_of_atoms_of_its_library():
    assert CASES[2].build(composition=True).references.tolist() == pytest.approx([-3.4431, -8.2354, -8.3861, -9.9539])


def test_a_new_chgnet_has_the_numbers_of_its_library():
    from chgnet.model.model import CHGNet

    torch.set_default_dtype(torch.float32)
    case = CASES[2]
    ours = case.build(pretrained=None, layers=4)
    theirs = quiet(
        partial(
            CHGNet, atom_fea_dim=6, bond_fea_dim=6, angle_fea_dim=6, composition_model=None, num_radial=5,
            num_angular=5, n_conv=4, atom_conv_hidden_dim=6, bond_conv_hidden_dim=6, mlp_hidden_dims=(6, 6, 6),
            atom_graph_cutoff=CUTOFF, bond_graph_cutoff=3.0,
        )
    )  # fmt: skip
    missing = theirs.load_state_dict(ours.network.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("angle_layers.2.") for name in missing.missing_keys)
    ours.references.zero_()
    energy, forces, stress = library_chgnet(theirs, crystal())
    found = ours(batch(crystal()), stress=True)
    close(found.energy.item(), energy, 1e-5)
    close(found.forces.detach(), forces, 1e-5)
    close(found.stress[0].detach(), stress, 1e-5)
