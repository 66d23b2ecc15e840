"""Force fields as calculators of ase, and molecular dynamics with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actsearch.errors import DataError, NonFiniteError, SettingsError
from actsearch.forcefield.calculator import batch_like, calculator
from actsearch.forcefield.dynamics import (
    UnstableError,
    constant_energy,
    drift,
    freedom,
    radial_distribution,
    temperature,
    thermalised,
)
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField, sum_by_frame
from actsearch.simulating import Simulation, read_structure, simulate

ase = pytest.importorskip("ase")
pytest.importorskip("vesin")


class Soft(ForceField):
    """Pairs that repel each other and end smoothly at the cutoff; after `dies_below` Å it knows no answer."""

    def __init__(self, cutoff: float = 4.0, strength: float = 5.0, dies_below: float = 0.0) -> None:
        super().__init__((1, 8, 18), cutoff, {8: -3.0})
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))
        self.dies_below = dies_below

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        r = vectors.norm(dim=1)
        pairs = 0.5 * self.strength * torch.exp(-r) * (1 - (r / self.cutoff) ** 2).clamp(min=0) ** 4
        pairs = torch.where(r < self.dies_below, torch.nan, pairs)
        return sum_by_frame(pairs.new_zeros(len(batch.frame)).index_add(0, batch.centre, pairs), batch)


class Spring(Soft):
    """A harmonic bond of 1 Å."""

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        pairs = 0.25 * self.strength * (vectors.norm(dim=1) - 1) ** 2
        return sum_by_frame(pairs.new_zeros(len(batch.frame)).index_add(0, batch.centre, pairs), batch)


def crystal(n: int = 3) -> Any:
    atoms = ase.Atoms("OH", [[0, 0, 0], [1.4, 1.5, 1.3]], cell=[[3, 0, 0], [0.2, 3, 0], [0, 0.1, 3.2]], pbc=True)
    return atoms.repeat(n)


def dimer(stretched: float = 0.0) -> Any:
    return ase.Atoms("OH", [[0, 0, 0], [1 + stretched, 0, 0]])


def molecule() -> Any:
    return ase.Atoms("OH2O", [[0, 0, 0], [1, 0, 0], [0, 1.1, 0.2], [1.2, 0.3, 1.0]])


# --- the calculator ----------------------------------------------------------------------------------------------


def test_a_calculator_gives_what_the_model_gives() -> None:
    model, atoms = Soft(), crystal(2)
    atoms.rattle(0.1, seed=1)
    expected = model(batch_like(model, atoms), stress=True)
    atoms.calc = calculator(model.train())
    assert not model.training
    assert atoms.get_potential_energy() == expected.energy.item()
    assert atoms.get_potential_energy(force_consistent=True) == expected.energy.item()
    np.testing.assert_array_equal(atoms.get_forces(), expected.forces.numpy(force=True))
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0].numpy(force=True), atol=1e-15)


def test_a_calculator_agrees_with_the_numerical_derivatives_of_ase() -> None:
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = crystal(1)
    atoms.rattle(0.1, seed=2)
    atoms.calc = calculator(Soft())
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), rtol=1e-5, atol=1e-7)
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(atoms.get_stress()[3:]).max() > 1e-3
    np.testing.assert_allclose(atoms.get_stress(), numerical, rtol=1e-5, atol=1e-8)


def test_a_calculator_has_the_dtype_of_its_model() -> None:
    atoms = crystal(1)
    for dtype in (torch.float32, torch.float64):
        assert batch_like(Soft().to(dtype), atoms).positions.dtype == dtype
    atoms.positions[1, 0] = 1.4 + 1e-9  # nothing in float32
    assert batch_like(Soft(), atoms).positions[1, 0].item() == 1.4 + 1e-9
    atoms.calc = calculator(Soft().float())
    exact = Soft()(batch_like(Soft(), atoms)).energy.item()
    assert atoms.get_potential_energy() == pytest.approx(exact, rel=1e-6)
    assert atoms.get_potential_energy() != exact


def test_what_is_not_finite_is_an_error() -> None:
    atoms = dimer()
    atoms.calc = calculator(Soft(dies_below=2.0))
    with pytest.raises(NonFiniteError, match="1 of 1 numbers of the energy"):
        atoms.get_potential_energy()


def test_unknown_elements_and_missing_cells_are_errors() -> None:
    atoms = ase.Atoms("OC", [[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = calculator(Soft())
    with pytest.raises(SettingsError, match=r"not \[6\]"):
        atoms.get_forces()
    lone = dimer()
    lone.calc = calculator(Soft())
    with pytest.raises(NotImplementedError):
        lone.get_stress()


# --- conservation ------------------------------------------------------------------------------------------------


def test_a_drift_is_the_slope_of_the_line_and_its_error_that_of_blocks() -> None:
    times = np.linspace(0, 2, 401)
    straight = drift(times, -3 + 0.005 * times)
    assert straight.slope == pytest.approx(5.0)
    assert straight.error == pytest.approx(0.0, abs=1e-9)
    assert straight.fluctuation == pytest.approx(0.0, abs=1e-9)
    wave = drift(times, 0.001 * np.sin(2 * math.pi * 40 * times))
    assert wave.fluctuation == pytest.approx(1 / math.sqrt(2), rel=0.01)
    assert abs(wave.slope) < 0.05
    with pytest.raises(SettingsError, match="at least 30 steps"):
        drift(times[:29], times[:29])


def test_the_error_of_a_drift_is_honest_for_correlated_noise() -> None:
    generator, times, ratios = np.random.default_rng(0), np.linspace(0, 1, 1000), []
    for _ in range(200):
        noise = np.convolve(generator.normal(size=1009), np.ones(10) / 10, mode="valid")
        found = drift(times, 0.002 * times + 0.001 * noise)
        ratios.append((found.slope - 2.0) / found.error)
    # Student's t of 8 degrees of freedom has a standard deviation of 1.15.
    assert 0.95 < np.std(ratios) < 1.4


def test_the_energy_of_a_spring_fluctuates_as_the_square_of_the_time_step_and_does_not_drift() -> None:
    calc, start = calculator(Spring(strength=20.0)), dimer(0.1)
    found = {}
    for step in (0.5, 1.0, 2.0):
        run = constant_energy(start, calc, step, 0.2)
        found[step] = drift(run.times, run.total)
        assert abs(found[step].slope) < 4 * found[step].error + 1e-6
        assert len(run.times) == round(200 / step) + 1
    assert found[1.0].fluctuation / found[0.5].fluctuation == pytest.approx(4, rel=0.05)
    assert found[2.0].fluctuation / found[1.0].fluctuation == pytest.approx(4, rel=0.1)
    np.testing.assert_array_equal(start.positions, dimer(0.1).positions)


def test_a_spring_swings_with_its_frequency() -> None:
    model = Spring(strength=20.0)
    run = constant_energy(dimer(0.1), calculator(model), 0.1, 0.05)
    from ase import units

    mass = np.prod(dimer().get_masses()) / dimer().get_masses().sum()
    omega = math.sqrt(20.0 / mass) * 1000 * units.fs  # 1/ps
    kinetic = 0.5 * 20.0 * 0.1**2 * np.sin(omega * run.times) ** 2
    np.testing.assert_allclose(run.temperature, 2 * kinetic / units.kB, atol=0.005 * run.temperature.max())


def test_a_periodic_system_keeps_its_energy_and_its_momentum() -> None:
    calc = calculator(Soft())
    start = thermalised(crystal(2), calc, 300.0, 0.0, 0.5, np.random.default_rng(0))
    runs = [constant_energy(start, calc, step, 0.1, n_frames=10) for step in (0.5, 2.0)]
    fluctuations = [drift(run.times, run.total).fluctuation for run in runs]
    assert fluctuations[1] > 8 * fluctuations[0]
    assert fluctuations[0] < 0.1
    assert max(run.centre_speed for run in runs) < 1e-9
    assert [len(run.frames) for run in runs] == [11, 11]
    assert runs[0].frames[-1].get_potential_energy() + runs[0].frames[-1].get_kinetic_energy() == pytest.approx(
        runs[0].total[-1] * len(start)
    )


# --- temperature -------------------------------------------------------------------------------------------------


def test_velocities_have_the_temperature_and_the_whole_is_at_rest() -> None:
    calc, rng = calculator(Soft()), np.random.default_rng(3)
    periodic = [temperature(thermalised(crystal(3), calc, 400.0, 0.0, 1.0, rng)) for _ in range(40)]
    assert np.mean(periodic) == pytest.approx(400.0, rel=0.03)
    lone = [thermalised(molecule(), calc, 400.0, 0.0, 1.0, rng) for _ in range(600)]
    assert np.mean([temperature(atoms) for atoms in lone]) == pytest.approx(400.0, rel=0.1)
    for atoms in lone[:5]:
        np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-12)
        np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-12)
    assert (freedom(lone[0]), freedom(dimer()), freedom(crystal(1))) == (6, 1, 3)


def test_a_thermostat_brings_a_cold_crystal_to_its_temperature() -> None:
    calc = calculator(Soft())
    start = thermalised(crystal(2), calc, 500.0, 0.3, 1.0, np.random.default_rng(0))
    assert not start.constraints
    np.testing.assert_allclose(start.get_momenta().sum(0), 0, atol=1e-12)
    assert temperature(start) == pytest.approx(500.0, rel=0.45)  # 5 standard deviations of 45 degrees of freedom
    assert np.abs(start.positions - crystal(2).positions).max() > 0.05


def test_equal_seeds_give_equal_starts() -> None:
    calc = calculator(Soft())
    first, again, other = (
        thermalised(crystal(1), calc, 300.0, 0.01, 1.0, np.random.default_rng(seed)).get_momenta() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    with pytest.raises(DataError, match="one atom alone"):
        thermalised(ase.Atoms("O"), calc, 300.0, 0.0, 1.0, np.random.default_rng(0))


# --- g(r) --------------------------------------------------------------------------------------------------------


def test_g_of_an_ideal_gas_is_one_in_any_cell() -> None:
    cell = np.array([[9.0, 0, 0], [3.0, 8.5, 0], [1.0, -2.0, 9.5]])
    generator = np.random.default_rng(0)
    frames = [ase.Atoms("O20H40", generator.uniform(size=(60, 3)) @ cell, cell=cell, pbc=True) for _ in range(150)]
    found = radial_distribution(frames, width=0.5)
    assert list(found.pairs) == ["O-O", "O-H", "H-H"]
    height = min(np.linalg.det(cell) / np.linalg.norm(np.cross(cell[i], cell[i - 1])) for i in range(3))
    assert found.r[-1] + 0.25 <= height / 2 < found.r[-1] + 0.75
    for g in found.pairs.values():
        np.testing.assert_allclose(g[3:], 1, atol=0.1)
    shells = np.diff((found.r[:, None] + [-0.25, 0.25]) ** 3, axis=1)[:, 0]
    assert found.pairs["O-O"] @ shells / shells.sum() == pytest.approx(1, abs=0.03)


def test_g_of_a_lattice_counts_its_neighbours() -> None:
    n, a = 6, 2.0
    lattice = ase.Atoms("Ar", cell=[a, a, a], pbc=True).repeat(n)
    found = radial_distribution([lattice, lattice], width=0.1)
    g = found.pairs["Ar-Ar"]
    shells = 4 / 3 * math.pi * ((found.r + 0.05) ** 3 - (found.r - 0.05) ** 3)
    counts = g * shells * (n**3 - 1) / (n * a) ** 3
    for distance, expected in ((a, 6), (a * math.sqrt(2), 12), (a * math.sqrt(3), 8), (2 * a, 6)):
        near = abs(found.r - distance) < 0.11
        assert counts[near].sum() == pytest.approx(expected)
    assert counts.sum() == pytest.approx(6 + 12 + 8 + 6 + 24 + 24 + 12, abs=1e-9)


def test_g_needs_a_periodic_cell() -> None:
    with pytest.raises(DataError, match="periodic"):
        radial_distribution([molecule()])


# --- failures ----------------------------------------------------------------------------------------------------


def test_what_explodes_stops() -> None:
    calc = calculator(Spring(strength=2000.0))
    with pytest.raises(UnstableError, match="total energy moved by") as caught:
        constant_energy(dimer(0.1), calc, 5.0, 1.0)
    assert caught.value.time < 1.0
    with pytest.raises(UnstableError, match="too fast for the thermostat"):
        thermalised(dimer(0.3), calc, 300.0, 1.0, 5.0, np.random.default_rng(0))


def test_nan_stops_and_the_frame_is_saved(tmp_path: Path) -> None:
    atoms = ase.Atoms("OHH", [[0, 0, 0], [2.0, 0, 0], [0, 2.2, 0]])
    model = Spring(strength=1.0, dies_below=0.0)
    broken = Soft(strength=-20.0, dies_below=1.0)  # they attract each other until it fails
    settings = Simulation(time_steps=(0.5,), time=0.5)
    with pytest.raises(NonFiniteError, match=r"broken: .* NaN or infinite after .* ps; its last frame is in") as caught:
        simulate({"whole": model, "broken": broken}, atoms, settings, tmp_path)
    assert "\n" not in str(caught.value)
    failed = read_structure(str(tmp_path / "broken" / "failed.extxyz"))
    assert failed.get_all_distances()[np.triu_indices(3, 1)].min() < 1.0
    assert list(json.loads((tmp_path / "md.json").read_text())["models"]) == ["whole"]


# --- the whole ---------------------------------------------------------------------------------------------------


def test_a_simulation_writes_all_numbers(tmp_path: Path) -> None:
    settings = Simulation(time_steps=(2.0, 1.0), steps=40, equilibrate=0.01, supercell=(2, 2, 2), seed=4)
    for directory in (tmp_path / "a", tmp_path / "b"):
        done = simulate({"soft": Soft()}, crystal(1), settings, directory)
    first, again = (json.loads((tmp_path / name / "md.json").read_text()) for name in "ab")
    runs, repeated = first["models"]["soft"]["runs"], again["models"]["soft"]["runs"]
    assert [(run["time_step"], run["steps"]) for run in runs] == [(1.0, 80), (2.0, 40)]
    for run, same in zip(runs, repeated, strict=True):
        assert {**run, "seconds": 0} == {**same, "seconds": 0}
    assert runs[0]["series"]["total"][0] == runs[1]["series"]["total"][0]
    assert runs[0]["drift"] == done["soft"].drifts[0].slope
    assert first["structure"] == {"formula": "H8O8", "atoms": 16, "pbc": [True] * 3}
    assert set(first["models"]["soft"]["g"]) == {"r", "O-O", "O-H", "H-H"}
    assert (tmp_path / "a" / "md.png").read_bytes()[:4] == b"\x89PNG"
    from ase.io import read

    trajectory = read(tmp_path / "a" / "trajectory.extxyz", index=":")
    assert len(trajectory) == 81
    assert trajectory[3].get_forces().shape == (16, 3)


def test_several_models_are_in_one_figure_and_folders_of_their_own(tmp_path: Path) -> None:
    settings = Simulation(time_steps=(1.0,), steps=30)
    simulate({"a": Spring(), "b": Spring(strength=8.0)}, dimer(0.05), settings, tmp_path)
    found = json.loads((tmp_path / "md.json").read_text())
    assert list(found["models"]) == ["a", "b"]
    assert found["models"]["a"]["g"] is None
    assert found["models"]["a"]["runs"][0]["drift"] != found["models"]["b"]["runs"][0]["drift"]
    assert (tmp_path / "b" / "trajectory.extxyz").is_file()


def test_float64_is_to_be_had(tmp_path: Path) -> None:
    settings = Simulation(time_steps=(1.0,), steps=30, double=True)
    model = Spring().float()
    simulate({"a": model}, dimer(0.05), settings, tmp_path)
    assert model.strength.dtype == torch.float64


@pytest.mark.parametrize("options", [
    {"time_steps": ()}, {"time_steps": (0.0,)}, {"time_steps": (1.0, 1.0)}, {"time": 1.0, "steps": 5}, {"time": -1.0},
    {"temperature": 0.0}, {"equilibrate": -1.0}, {"supercell": (1, 1)}, {"supercell": (0, 1, 1)}, {"seed": -1},
    {"steps": 29},
])  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Simulation(**options)


def test_a_structure_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a file nor one of the data sets"):
        read_structure("nothing.xyz")
    with pytest.raises(DataError, match="holds no frames of atoms"):
        read_structure("digits")
    (tmp_path / "bad.xyz").write_text("two\nlines\n")
    with pytest.raises(DataError, match="ase cannot read"):
        read_structure(str(tmp_path / "bad.xyz"))
