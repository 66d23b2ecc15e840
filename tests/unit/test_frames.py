"""Readers of frames: what they give of files with known numbers, and whether energy, forces and stress agree."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from actsearch.data.frames import least_squares, read_system, read_xyz
from actsearch.data.frames.ani import ani1
from actsearch.data.frames.copper import copper
from actsearch.data.frames.deepmd import deepmd, water
from actsearch.data.frames.dynamics import GAP, langevin_frames, parted
from actsearch.data.frames.ethanol import ethanol
from actsearch.data.frames.mlearn import mlearn
from actsearch.data.frames.rmd17 import rmd17
from actsearch.data.frames.source import FrameSource, divide
from actsearch.data.frames.xyz import xyz
from actsearch.errors import DataError, MissingPackageError, SettingsError, UnknownNameError
from actsearch.forcefield.frames import Frame
from actsearch.forcefield.neighbours import neighbours

RNG = np.random.default_rng(0)
KCAL = 0.0433641  # eV, to six digits: not from the library that the readers use
HARTREE = 27.21139
KBAR = 1 / 1602.1766  # eV/Å³


@pytest.fixture(scope="session")
def real(data_root: Path) -> Path:
    if not (data_root / "forcefield").is_dir():
        pytest.skip("no force fields among the development data")
    return data_root


def strained_copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array @ np.array([[1.03, 0.01, 0], [0.01, 0.98, 0.015], [0, 0.015, 1.01]]), True)
    atoms.positions += np.random.default_rng(1).normal(0, 0.05, (4, 3))
    atoms.calc = EMT()
    return atoms


# --- DeePMD ------------------------------------------------------------------------------------------------------


def write_system(folder: Path, sets: Sequence[int] = (2,), start: int = 0) -> None:
    """Frames of O, H, H whose first coordinate is start + 100 · set + frame."""
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n")
    (folder / "type_map.raw").write_text("O\nH\n")
    for k, n in enumerate(sets):
        part = folder / f"set.{k:03d}"
        part.mkdir()
        coord = np.zeros((n, 9), dtype=np.float32)
        coord[:, 0] = start + 100 * k + np.arange(n)
        np.save(part / "coord.npy", coord)
        np.save(part / "box.npy", np.tile(10 * np.eye(3, dtype=np.float32).ravel(), (n, 1)))
        np.save(part / "energy.npy", np.arange(n, dtype=np.float32) - 468)
        np.save(part / "force.npy", np.tile(np.arange(9, dtype=np.float32), (n, 1)))


def test_a_deepmd_system_is_read_in_the_order_of_its_sets(tmp_path: Path) -> None:
    write_system(tmp_path / "a", sets=(2, 3))
    frames = read_system(tmp_path / "a")
    assert [frame.positions[0, 0] for frame in frames] == [0, 1, 100, 101, 102]
    assert [frame.energy for frame in frames] == [-468, -467, -468, -467, -466]
    first = frames[0]
    assert first.numbers.tolist() == [8, 1, 1]
    assert first.forces is not None
    assert first.forces.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert first.cell.tolist() == (10 * np.eye(3)).tolist()
    assert first.pbc.all()
    assert first.stress is None


def test_the_stress_of_a_deepmd_virial_is_that_of_ase(tmp_path: Path) -> None:
    atoms = strained_copper()

    def energy(strain: np.ndarray) -> float:
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        moved.calc = EMT()
        return float(moved.get_potential_energy())

    virial = np.zeros((3, 3))  # -∂E/∂ε, as DeePMD-kit defines it, by central differences
    for i in range(3):
        for j in range(3):
            step = np.zeros((3, 3))
            step[i, j] = 1e-4
            virial[i, j] = -(energy(step) - energy(-step)) / 2e-4
    part = tmp_path / "set.000"
    part.mkdir()
    (tmp_path / "type.raw").write_text("0 0 0 0")
    (tmp_path / "type_map.raw").write_text("Cu")
    np.save(part / "coord.npy", atoms.positions.reshape(1, -1))
    np.save(part / "box.npy", atoms.cell.array.reshape(1, 9))
    np.save(part / "virial.npy", virial.reshape(1, 9))
    (frame,) = read_system(tmp_path)
    assert frame.stress is not None
    np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-6)
    assert np.abs(frame.stress).max() > 1e-3
    assert frame.forces is None
    assert np.isnan(frame.energy)


def test_a_deepmd_system_without_cell_says_so_in_a_file(tmp_path: Path) -> None:
    write_system(tmp_path / "a")
    (tmp_path / "a/set.000/box.npy").unlink()
    with pytest.raises(DataError, match="nopbc"):
        read_system(tmp_path / "a")
    (tmp_path / "a/nopbc").touch()
    assert not read_system(tmp_path / "a")[0].pbc.any()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a: (a / "type_map.raw").unlink(), "needs type.raw, type_map.raw"),
        (lambda a: (a / "type_map.raw").write_text("O"), "from 0 to 0"),
        (lambda a: (a / "type_map.raw").write_text("O D2"), "not D2"),
        (lambda a: (a / "set.000").rename(a / "raw"), "no set.000"),
        (lambda a: np.save(a / "set.000/force.npy", np.zeros((2, 6))), r"force.npy cannot be read as .*\(2, 3, 3\)"),
        (lambda a: (a / "set.000/energy.npy").write_bytes(b""), "energy.npy cannot be read"),
        (lambda a: np.save(a / "set.000/real_atom_types.npy", np.zeros((2, 3))), "mixed types"),
    ],
)  # fmt: skip
def test_a_broken_deepmd_system_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    write_system(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(DataError, match=says):
        read_system(tmp_path / "a")


def test_systems_of_a_user_are_divided_by_folder_or_by_fraction(tmp_path: Path) -> None:
    for name, n, start in ("a", 10, 0), ("b", 20, 1000), ("c", 5, 2000):
        write_system(tmp_path / name, sets=(n,), start=start)
    given = deepmd(tmp_path, train="a b", test="c")
    assert (len(given.train), len(given.test)) == (30, 5)
    divided = deepmd(tmp_path, train="a b")
    assert (len(divided.train), len(divided.test)) == (27, 3)
    assert len(deepmd(tmp_path, train="a a b").train) == 27


def test_water_trains_on_the_first_three_folders_wherever_they_lie(tmp_path: Path) -> None:
    for k, n in enumerate((1, 2, 3, 4)):
        write_system(tmp_path / f"forcefield/water_dpmd/data_{k}", sets=(n,))
    for root in tmp_path, tmp_path / "forcefield", tmp_path / "forcefield/water_dpmd":
        source = water(root)
        assert (len(source.train), len(source.test)) == (6, 4)


# --- rMD17 -------------------------------------------------------------------------------------------------------


def write_rmd17(folder: Path, part: str, energies: Sequence[float]) -> None:
    n = len(energies)
    np.savez(
        folder / f"rmd17_ethanol_{part}_01.npz",
        nuclear_charges=np.array([8, 1], dtype=np.uint8),
        coords=np.arange(6.0 * n).reshape(n, 2, 3),
        energies=np.array(energies),
        forces=np.full((n, 2, 3), 10.0),
    )


def test_rmd17_is_converted_from_kcal_per_mol_once(tmp_path: Path) -> None:
    write_rmd17(tmp_path, "train", [-1000.0, -2000.0])
    write_rmd17(tmp_path, "test", [-3000.0])
    source = rmd17(tmp_path)
    assert [frame.energy for frame in source.train] == pytest.approx([-1000 * KCAL, -2000 * KCAL], rel=1e-6)
    assert [frame.energy for frame in source.test] == pytest.approx([-3000 * KCAL], rel=1e-6)
    frame = source.train[1]
    np.testing.assert_allclose(frame.forces, np.full((2, 3), 10 * KCAL), rtol=1e-6)  # type: ignore[arg-type]
    assert frame.positions.tolist() == [[6, 7, 8], [9, 10, 11]]
    assert frame.numbers.tolist() == [8, 1]
    assert not frame.pbc.any()


def test_rmd17_names_its_molecules_and_splits(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="aspirin"):
        rmd17(tmp_path, molecule="asprin")
    with pytest.raises(SettingsError, match="from 1 to 5"):
        rmd17(tmp_path, split=6)
    write_rmd17(tmp_path, "train", [-1.0])
    with pytest.raises(DataError, match=r"and rmd17_ethanol_test_01\.npz in .*figshare 12672038.*set root"):
        rmd17(tmp_path)
    (tmp_path / "rmd17_ethanol_test_01.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no file of rMD17"):
        rmd17(tmp_path)


# --- ANI ---------------------------------------------------------------------------------------------------------


def write_ani(path: Path, n: int = 20, forces: bool = True) -> None:
    """Two molecules; the last conformation of each repeats its first. `forces` holds +dE/dx, as the real file does."""
    with h5py.File(path, "w") as file:
        for k, symbols in enumerate(("OHH", "NHHH")):
            group = file.create_group(f"gdb11_s01/mol{k}")
            positions = np.random.default_rng(k).normal(size=(n + 1, len(symbols), 3)).astype(np.float32)
            positions[n] = positions[0]
            energies = (positions.astype(np.float64) ** 2).sum((1, 2)) / 2 - 76
            group["species"] = np.array([s.encode() for s in symbols])
            group["coordinates"], group["energies"] = positions, energies
            if forces:
                group["forces"] = positions  # of E = x²/2


def test_ani_is_converted_from_hartree_and_its_gradients_become_forces(tmp_path: Path) -> None:
    write_ani(tmp_path / "gdb11_S01_06r.h5")
    source = ani1(tmp_path)
    for frame in [*source.train, *source.test]:
        assert frame.energy == pytest.approx((((frame.positions**2).sum() / 2) - 76) * HARTREE, rel=1e-6)
        np.testing.assert_allclose(frame.forces, -frame.positions * HARTREE, rtol=1e-6)  # type: ignore[arg-type]
    assert {tuple(frame.numbers) for frame in source.test} == {(8, 1, 1), (7, 1, 1, 1)}


def test_ani_keeps_repeated_conformations_once_and_divides_each_molecule_by_its_seed(tmp_path: Path) -> None:
    write_ani(tmp_path / "gdb11_S01_06r.h5")

    def test_part(seed: int) -> list[bytes]:
        source = ani1(tmp_path, split_seed=seed, test_fraction=0.2)
        train = {frame.positions.tobytes() for frame in source.train}
        assert len(train) == len(source.train) == 32
        assert [len(frame.numbers) for frame in source.test] == [3] * 4 + [4] * 4
        assert not train & {frame.positions.tobytes() for frame in source.test}
        return [frame.positions.tobytes() for frame in source.test]

    assert test_part(0) == test_part(0) != test_part(1)


def test_ani_without_forces_is_read_and_forces_of_unknown_sign_are_not(tmp_path: Path) -> None:
    write_ani(tmp_path / "ani_gdb_s01.h5", forces=False)
    assert ani1(tmp_path, file="ani_gdb_s01.h5").train[0].forces is None
    write_ani(tmp_path / "other.h5")
    with pytest.raises(DataError, match="sign of its `forces` is unknown"):
        ani1(tmp_path, file="other.h5")
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(DataError, match="no group with species"):
        ani1(tmp_path, file="empty.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(DataError, match="cannot be read as an ANI file"):
        ani1(tmp_path, file="text.h5")


# --- mlearn ------------------------------------------------------------------------------------------------------


def mlearn_entry(element: str, group: str) -> dict[str, Any]:
    sites = [{"species": [{"element": element, "occu": 1}], "xyz": [float(k), 0.0, 0.0]} for k in range(2)]
    outputs = {"energy": -9.5, "forces": [[1.0, 0, 0], [-1.0, 0, 0]], "virial_stress": [10.0, 20, 30, 40, 50, 60]}
    cell = [[4.0, 0, 0], [0, 5.0, 0], [0, 0, 6.0]]
    return {"structure": {"lattice": {"matrix": cell}, "sites": sites}, "outputs": outputs, "group": group}


def write_mlearn(root: Path, element: str, train: Sequence[str], test: Sequence[str] = ("Elastic",)) -> None:
    folder = root / "data" / element
    folder.mkdir(parents=True)
    for part, groups in ("training", train), ("test", test):
        if groups:
            (folder / f"{part}.json").write_text(json.dumps([mlearn_entry(element, group) for group in groups]))


@pytest.mark.parametrize(
    ("element", "group", "order"),
    [("Si", "Elastic", "xy yz xz"), ("Si", "AIMD-NVT", "xy xz yz"), ("Mo", "Elastic", "xy xz yz")],
)
def test_stress_of_mlearn_is_minus_its_virial_in_kilobars(tmp_path: Path, element: str, group: str, order: str) -> None:
    write_mlearn(tmp_path, element, [group])
    (frame,) = mlearn(tmp_path, element).train
    kilobars = dict(zip(["xx", "yy", "zz", *order.split()], [10, 20, 30, 40, 50, 60], strict=True))
    assert frame.stress is not None
    for name, value in kilobars.items():
        i, j = ("xyz".index(letter) for letter in name)
        assert frame.stress[i, j] == frame.stress[j, i] == pytest.approx(-value * KBAR, rel=1e-6)
    assert (frame.energy, frame.group, frame.pbc.all()) == (-9.5, group, True)
    assert frame.positions.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_mlearn_gives_no_stress_whose_order_is_unknown(tmp_path: Path) -> None:
    write_mlearn(tmp_path, "Si", ["Surface"])
    write_mlearn(tmp_path, "Li", ["Elastic"])
    assert mlearn(tmp_path, "Si").train[0].stress is None
    assert mlearn(tmp_path, "Li").train[0].stress is None


def test_mlearn_says_what_is_missing(tmp_path: Path) -> None:
    write_mlearn(tmp_path, "Cu", [])
    with pytest.raises(DataError, match=r"has test.json of Cu but no data/Cu/training.json.*set another element"):
        mlearn(tmp_path, "Cu")
    with pytest.raises(DataError, match="materialsvirtuallab/mlearn"):
        mlearn(tmp_path, "Mo")
    with pytest.raises(UnknownNameError, match="unknown element of mlearn 'Fe'"):
        mlearn(tmp_path, "Fe")
    write_mlearn(tmp_path, "Si", ["Elastic"])
    (tmp_path / "data/Si/test.json").write_text('[{"structure": {}}]')
    with pytest.raises(DataError, match="no file of mlearn"):
        mlearn(tmp_path, "Si")


# --- extended xyz ------------------------------------------------------------------------------------------------

XYZ = """2
Lattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5 config_type=solid pbc="T T T" \
stress="1 2 3 2 4 5 3 5 6"
Cu 0 0 0 1 2 3
O 1 1 1 -1 -2 -3
2
Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-7.5 pbc="F F F"
H 0 0 0 4 5 6
H 0 0 0.7 -4 -5 -6
"""


def test_extended_xyz_keeps_energy_forces_stress_cell_and_kind(tmp_path: Path) -> None:
    (tmp_path / "train.xyz").write_text(XYZ)
    solid, molecule = read_xyz(tmp_path / "train.xyz")
    assert solid.numbers.tolist() == [29, 8]
    assert (solid.energy, solid.group) == (-3.5, "solid")
    assert solid.forces is not None
    assert solid.stress is not None
    assert solid.forces.tolist() == [[1, 2, 3], [-1, -2, -3]]
    assert solid.stress.tolist() == [[1, 2, 3], [2, 4, 5], [3, 5, 6]]
    assert np.diag(solid.cell).tolist() == [4, 5, 6]
    assert np.isnan(molecule.energy)
    assert molecule.forces is None
    with_prefix = read_xyz(tmp_path / "train.xyz", prefix="REF_")[1]
    assert with_prefix.energy == -7.5
    assert with_prefix.forces is not None
    assert with_prefix.forces[0].tolist() == [4, 5, 6]


def test_what_ase_wrote_is_read_back(tmp_path: Path) -> None:
    atoms = strained_copper()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    write(tmp_path / "cu.xyz", atoms, format="extxyz")
    (frame,) = read_xyz(tmp_path / "cu.xyz")
    assert frame.energy == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(frame.forces, forces, atol=1e-7)  # type: ignore[arg-type]
    np.testing.assert_allclose(frame.stress, stress, atol=1e-7)  # type: ignore[arg-type]


def test_xyz_files_have_a_test_file_or_a_fraction_and_isolated_atoms(tmp_path: Path) -> None:
    (tmp_path / "train.xyz").write_text(
        "".join(XYZ.replace("Cu 0 ", f"Cu {k} ").replace("H 0 ", f"H {k} ") for k in range(10))
    )
    (tmp_path / "test.xyz").write_text(XYZ)
    (tmp_path / "alone.xyz").write_text("1\nenergy=-13.5\nH 0 0 0\n1\nenergy=-2000.0\nO 0 0 0\n")
    source = xyz(tmp_path, test="test.xyz", isolated="alone.xyz")
    assert (len(source.train), len(source.test), source.isolated) == (20, 2, {1: -13.5, 8: -2000})
    divided = xyz(tmp_path, test_fraction=0.2)
    assert sorted(frame.group for frame in divided.test) == ["", "", "solid", "solid"]
    assert (len(divided.train), len(divided.test)) == (16, 4)
    with pytest.raises(DataError, match="single atoms"):
        xyz(tmp_path, test="test.xyz", isolated="test.xyz")
    with pytest.raises(DataError, match=r"no file .*other\.xyz"):
        xyz(tmp_path, train="other.xyz")
    (tmp_path / "bad.xyz").write_text("3\n\nH 0 0 0\n")
    with pytest.raises(DataError, match="cannot be read as extended xyz"):
        xyz(tmp_path, train="bad.xyz")


# --- references and division -------------------------------------------------------------------------------------


def molecule(numbers: Sequence[int], energy: float) -> Frame:
    return Frame(np.array(numbers), RNG.normal(size=(len(numbers), 3)), energy=energy)


def test_references_of_different_compositions_are_those_of_the_elements() -> None:
    atoms = {1: -13.6, 6: -1029.25, 8: -2041.5}
    frames = [molecule(z, sum(atoms[k] for k in z)) for z in ([6, 1, 1, 1, 1], [8, 1, 1], [6, 8, 8], [1, 1])]
    assert least_squares(frames) == pytest.approx(atoms, rel=1e-10)


def test_references_of_one_molecule_are_shared_by_count_and_add_up() -> None:
    found = least_squares([molecule([8, 1, 1], -470.0), molecule([8, 1, 1], -466.0)])
    assert found == pytest.approx({1: -468 * 2 / 5, 8: -468 / 5})
    assert list(found) == [1, 8]


def test_references_need_energies() -> None:
    with pytest.raises(DataError, match="an energy for every element"):
        least_squares([molecule([8, 1, 1], float("nan"))])
    with pytest.raises(DataError, match="an energy for every element"):
        least_squares([molecule([1, 1], -30.0), molecule([8, 1, 1], float("nan"))])


def test_a_division_that_leaves_a_part_empty_is_refused() -> None:
    frames = [molecule([1, 1], -30.0)] * 4
    for fraction in 0.0, 0.1, 1.0:
        with pytest.raises(SettingsError, match="leaves a part empty"):
            divide(frames, fraction, 0)


@pytest.mark.parametrize(("package", "call"), [
    ("ase", rmd17), ("ase", mlearn), ("ase", xyz), ("ase", copper), ("tblite.ase", ethanol), ("h5py", ani1),
])  # fmt: skip
def test_a_missing_package_names_the_extra(
    package: str, call: Callable[..., FrameSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in "train", "test":
        write_rmd17(tmp_path, part, [-1.0])
    write_mlearn(tmp_path, "Si", ["Elastic"])
    write_ani(tmp_path / "gdb11_S01_06r.h5")
    (tmp_path / "train.xyz").write_text(XYZ)
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'actsearch\[forcefield\]'"):
        call() if call in (copper, ethanol) else call(tmp_path)


# --- sets that are made on the spot ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_copper() -> FrameSource:
    return copper(frames=10)


def test_copper_is_strained_and_heated_with_forces_and_stress(small_copper: FrameSource) -> None:
    assert [frame.group for frame in small_copper.train] == ["strained"] * 4 + ["heated"] * 4
    assert [frame.group for frame in small_copper.test] == ["strained", "heated"]
    for frame in [*small_copper.train, *small_copper.test]:
        assert frame.forces is not None
        assert frame.stress is not None
        np.testing.assert_allclose(frame.forces.sum(axis=0), 0, atol=1e-10)
        np.testing.assert_array_equal(frame.stress, frame.stress.T)


def test_forces_and_stress_of_copper_are_derivatives_of_its_energy(small_copper: FrameSource) -> None:
    frame = small_copper.test[1]
    rng = np.random.default_rng(0)
    strain = rng.normal(size=(3, 3))
    strain = strain + strain.T
    direction = rng.normal(size=frame.positions.shape)

    def energy(step: float, along: str) -> float:
        atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True, calculator=EMT())
        if along == "positions":
            atoms.positions += step * direction
        else:
            atoms.set_cell(frame.cell @ (np.eye(3) + step * strain), scale_atoms=True)
        return float(atoms.get_potential_energy())

    assert energy(0, "positions") == pytest.approx(frame.energy, abs=1e-9)
    assert frame.forces is not None
    assert frame.stress is not None
    slope = (energy(1e-4, "positions") - energy(-1e-4, "positions")) / 2e-4
    assert slope == pytest.approx(-(frame.forces * direction).sum(), rel=1e-4)
    slope = (energy(1e-4, "cell") - energy(-1e-4, "cell")) / 2e-4
    assert slope == pytest.approx(np.linalg.det(frame.cell) * (frame.stress * strain).sum(), rel=1e-4)


def test_a_trajectory_follows_from_its_seed() -> None:
    def last(seed: int) -> np.ndarray:
        frames = langevin_frames(strained_copper(), 2, 500, seed, timestep=5.0, stride=2, start=3, group="heated")
        assert [frame.group for frame in frames] == ["heated"] * 2
        return frames[-1].positions

    assert np.array_equal(last(0), last(0))
    assert not np.allclose(last(0), last(1), atol=1e-3)


@pytest.fixture(scope="module")
def short_ethanol() -> FrameSource:
    return ethanol(frames=5)


def test_ethanol_is_in_ev_and_no_force_moves_it_as_a_whole(short_ethanol: FrameSource) -> None:
    assert (len(short_ethanol.train), len(short_ethanol.test)) == (4, 1)
    for frame in [*short_ethanol.train, *short_ethanol.test]:
        assert sorted(frame.numbers.tolist()) == [1] * 6 + [6, 6, 8]
        assert -320 < frame.energy < -305  # -11.39 Hartree
        assert frame.forces is not None
        np.testing.assert_allclose(frame.forces.sum(axis=0), 0, atol=1e-9)


def test_forces_of_ethanol_are_the_negative_gradient(short_ethanol: FrameSource) -> None:
    from tblite.ase import TBLite

    frame = short_ethanol.train[-1]
    assert frame.forces is not None
    size = np.linalg.norm(frame.forces)

    def energy(step: float) -> float:
        atoms = Atoms(numbers=frame.numbers, positions=frame.positions + step * frame.forces / size)
        atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, accuracy=0.01)
        return float(atoms.get_potential_energy())

    assert (energy(1e-3) - energy(-1e-3)) / 2e-3 == pytest.approx(-size, rel=1e-3)


def test_a_trajectory_has_a_gap_between_its_parts() -> None:
    frames: list[Any] = list(range(30))
    train, test = parted(frames, 4)
    assert (train, test) == (frames[: 26 - GAP], frames[26:])
    for make, wrong in (ethanol, {"frames": 4}), (copper, {"frames": 9}), (ethanol, {"temperature": 0.0}):
        with pytest.raises(SettingsError):
            make(**wrong)  # type: ignore[operator]


@pytest.mark.slow
def test_ethanol_of_default_length_is_at_its_temperature_and_forgets_itself() -> None:
    source = ethanol()
    energies = np.array([frame.energy for frame in source.train])
    deviations = energies - energies.mean()
    # The potential energy of 21 harmonic vibrations has a spread of sqrt(21 / 2) kT.
    assert deviations.std() == pytest.approx(np.sqrt(21 / 2) * units.kB * 400, rel=0.4)
    assert (deviations[5:] * deviations[:-5]).mean() < 0.3 * deviations.var()
    assert (len(source.train), len(source.test)) == (160, 40)
    again = ethanol(frames=5)
    assert np.array_equal(source.train[3].positions, again.train[3].positions)
    assert not np.allclose(source.train[3].positions, ethanol(frames=5, trajectory_seed=1).train[3].positions)


# --- the real files ----------------------------------------------------------------------------------------------


def slope(frames: Sequence[Frame], pairs: int, side: float | None = None) -> tuple[float, float]:
    """Of the nearest pairs of frames: the slope of ΔE against -F·Δx, and their correlation; 1 if signs and units fit.

    side: of a periodic cube, Å, in which displacements are taken the short way.
    """
    positions = np.stack([frame.positions for frame in frames])
    forces = np.stack([frame.forces for frame in frames])  # type: ignore[misc]
    energies = np.array([frame.energy for frame in frames])
    found = []
    for i in range(len(frames) - 1):
        moved = positions[i + 1 :] - positions[i]
        if side is not None:
            moved = moved - side * np.round(moved / side)
        distances = np.sqrt((moved**2).sum((1, 2)))
        for k in np.argsort(distances)[:3]:
            j = i + 1 + k
            found.append((distances[k], energies[j] - energies[i], -((forces[i] + forces[j]) / 2 * moved[k]).sum()))
    _, change, work = np.array(sorted(found)[:pairs]).T
    return float((change * work).sum() / (work**2).sum()), float(np.corrcoef(change, work)[0, 1])


def test_energy_and_forces_of_rmd17_agree(real: Path) -> None:
    source = rmd17(real)
    assert (len(source.train), len(source.test)) == (1000, 1000)
    found, correlation = slope(source.train, 200)
    assert found == pytest.approx(1, abs=0.1)
    assert correlation > 0.95
    energies = np.array([frame.energy for frame in source.train])
    assert energies.mean() == pytest.approx(-4209.4, abs=1)  # eV; -97,074 kcal/mol, or 154.7 Hartree
    train = {frame.positions.tobytes() for frame in source.train}
    assert not train & {frame.positions.tobytes() for frame in source.test}
    assert max(np.abs(frame.forces.sum(axis=0)).max() for frame in source.train) < 1e-3  # type: ignore[union-attr]


def test_energy_and_forces_of_water_agree(real: Path) -> None:
    source = water(real)
    assert (len(source.train), len(source.test)) == (320, 80)
    frame = source.train[0]
    assert (frame.numbers == 8).sum() == 64
    assert (frame.numbers == 1).sum() == 128
    np.testing.assert_allclose(frame.cell, 12.4447 * np.eye(3), atol=1e-4)
    found, correlation = slope(source.train, 100, side=frame.cell[0, 0])
    assert found == pytest.approx(1, abs=0.15)
    assert correlation > 0.9
    energies = np.array([frame.energy for frame in source.train])
    assert energies.mean() / 192 == pytest.approx(-155.956, abs=1e-3)
    # float32 in the files: totals are multiples of 2⁻⁹ eV.
    assert np.array_equal(energies * 512, np.round(energies * 512))
    train = {frame.positions.tobytes() for frame in source.train}
    assert not train & {frame.positions.tobytes() for frame in source.test}


def test_energy_and_forces_of_ani_agree(real: Path) -> None:
    source = ani1(real)
    frames = [*source.train, *source.test]
    counts = {z: sum(frame.numbers[0] == z for frame in frames) for z in (6, 7, 8)}
    assert counts == {6: 1135, 7: 808, 8: 526}
    for z in counts:
        found, correlation = slope([frame for frame in frames if frame.numbers[0] == z], 100)
        assert found == pytest.approx(1, abs=0.05)
        assert correlation > 0.99
    assert next(f.energy for f in frames if f.numbers[0] == 6) == pytest.approx(-40.5 * HARTREE, abs=2)


def test_the_file_of_the_ani_release_has_energies_only(real: Path) -> None:
    source = ani1(real, file="ani_gdb_s01.h5")
    assert len(source.train) + len(source.test) == 10_800
    assert all(frame.forces is None for frame in source.test)


@pytest.mark.parametrize(("element", "counts"), [("Si", (214, 25)), ("Mo", (194, 23))])
def test_stress_of_mlearn_is_the_derivative_of_its_energy(real: Path, element: str, counts: tuple[int, int]) -> None:
    source = mlearn(real, element)
    assert (len(source.train), len(source.test)) == counts
    strained = [f for f in [*source.train, *source.test] if f.group == "Elastic" and len(f.numbers) > 10]
    axial, shear = [], []
    for a in strained:
        for b in strained:
            strain = np.linalg.solve((a.cell + b.cell) / 2, b.cell - a.cell)
            if 0.005 < np.abs(strain).max() < 0.045:
                volume = np.linalg.det((a.cell + b.cell) / 2)
                work = volume * ((a.stress + b.stress) / 2 * strain).sum()  # type: ignore[operator]
                sheared = np.abs(strain - np.diag(np.diag(strain))).max() > 1e-3
                (shear if sheared else axial).append((b.energy - a.energy, work))
    for pairs in axial, shear:
        change, work = np.array(pairs).T
        assert len(change) > 100
        assert (change * work).sum() / (work**2).sum() == pytest.approx(1, abs=0.02)
        assert np.corrcoef(change, work)[0, 1] > 0.99


def test_off_diagonal_stress_of_heated_silicon_is_in_the_order_that_its_forces_tell(real: Path) -> None:
    """A pair potential fitted to the forces, a basis of Gaussians of the distance, predicts which entry is which."""
    frames = [f for f in mlearn(real, "Si").train if f.group == "AIMD-NVT"][::2]
    centres = np.linspace(2, 5, 14)
    acting, virials = [], []
    for frame in frames:
        i, j, shift = neighbours(frame.positions, frame.cell, frame.pbc, 5.0)
        vectors = frame.positions[j] - frame.positions[i] + shift @ frame.cell
        distances = np.linalg.norm(vectors, axis=1, keepdims=True)
        basis = np.exp(-(((distances - centres) / 0.25) ** 2)) * (np.cos(np.pi * distances / 5) + 1)
        pulls = vectors[:, :, None] / distances[:, :, None] * basis[:, None]
        force = np.zeros((*frame.positions.shape, 14))
        np.add.at(force, i, pulls)
        acting.append(force.reshape(-1, 14))
        virials.append(np.einsum("ea,ebk->abk", vectors, pulls) / np.linalg.det(frame.cell) / 2)
    wanted = np.concatenate([frame.forces.ravel() for frame in frames])  # type: ignore[union-attr]
    fitted = np.linalg.lstsq(np.concatenate(acting), wanted, rcond=None)[0]
    predicted = np.array([virial @ fitted for virial in virials])
    given = np.array([frame.stress for frame in frames])
    for i, j in (0, 1), (0, 2), (1, 2):
        assert np.corrcoef(predicted[:, i, j], given[:, i, j])[0, 1] > 0.75
    assert abs(np.corrcoef(predicted[:, 0, 2], given[:, 1, 2])[0, 1]) < 0.4


def test_isolated_atoms_of_botnet_are_below_its_molecules(real: Path) -> None:
    folder = real / "forcefield/botnet/dataset_acac"
    source = xyz(folder, train="train_300K.xyz", test="test_MD_600K.xyz", isolated="isolated_atoms.xyz")
    assert (len(source.train), len(source.test)) == (500, 650)
    assert source.isolated is not None
    frame = source.train[0]
    cohesive = frame.energy - sum(source.isolated[int(z)] for z in frame.numbers)
    assert -80 < cohesive < -50  # eV, 14 bonds


def test_energy_and_forces_of_botnet_agree(real: Path) -> None:
    found, correlation = slope(xyz(real / "forcefield/botnet/dataset_ethanol").train, 200)
    assert found == pytest.approx(1, abs=0.15)
    assert correlation > 0.9
