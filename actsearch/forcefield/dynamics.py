"""Molecular dynamics with a force field: does it conserve energy, and what does the liquid look like?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actsearch.errors import DataError, NonFiniteError, SettingsError
from actsearch.forcefield.frames import Array
from actsearch.forcefield.neighbours import neighbours
from actsearch.work import under_way

FRICTION = 0.02  # of the thermostat, 1/fs
EXPLODED = 1.0  # eV an atom that the total energy may move, or the kinetic energy exceed ten times its mean
BLOCKS = 10
FEWEST = 3 * BLOCKS
BIN = 0.05  # Å
FARTHEST = 10.0  # Å


class UnstableError(NonFiniteError):
    """A trajectory that cannot go on; `atoms` are those of the moment, `time` is in ps."""

    def __init__(self, reason: str, atoms: Any, time: float) -> None:
        super().__init__(f"{reason} after {time:.4g} ps")
        self.atoms = atoms
        self.time = time


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What was seen at constant energy.

    Attributes:
        time_step: fs.
        times: (n,) ps, of the start and of every step.
        total: (n,) total energy, eV an atom.
        temperature: (n,) K, over the degrees of freedom that are left without the motion of the whole.
        centre_speed: greatest speed of the centre of mass, Å/ps.
        frames: `ase.Atoms` at about equal distances in time.
        seconds: of one step.
    """

    time_step: float
    times: Array
    total: Array
    temperature: Array
    centre_speed: float
    frames: list[Any] = field(default_factory=list)
    seconds: float = math.nan

    @property
    def last_temperature(self) -> float:
        """Mean of the last tenth, K."""
        return float(self.temperature[-max(1, len(self.temperature) // 10) :].mean())


@dataclass(frozen=True)
class Drift:
    """Of the total energy: its slope and the slope's standard error, meV/atom/ps; RMS about the line, meV/atom."""

    slope: float
    error: float
    fluctuation: float


def drift(times: Array, total: Array) -> Drift:
    """The least-squares line through the total energy `total` (n,), eV an atom, against `times` (n,), ps.

    Energies of neighbouring steps are correlated, so the standard error comes from the means of ten blocks about the
    line, as if those were independent. Raises SettingsError for fewer than 30 values.
    """
    if len(times) < FEWEST:
        raise SettingsError(f"a drift needs at least {FEWEST} steps, not {len(times)}: simulate longer")
    t, e = times - times.mean(), 1000 * (total - total.mean())
    slope = float(t @ e / (t @ t))
    rest = e - slope * t
    means = np.array([block.mean() for block in np.array_split(rest, BLOCKS)])
    middles = np.array([block.mean() for block in np.array_split(t, BLOCKS)])
    error = math.sqrt(float(means @ means) / (BLOCKS - 2) / float(middles @ middles))
    return Drift(slope, error, math.sqrt(float(rest @ rest) / len(rest)))


def freedom(atoms: Any) -> int:
    """Degrees of freedom without the motion of the whole: 3n - 3, and of a molecule 3n - 6, of two atoms 1."""
    n = len(atoms)
    if atoms.pbc.any():
        return 3 * n - 3
    return 3 * n - 6 if n > 2 else 1


def temperature(atoms: Any) -> float:
    """K, over the degrees of freedom of `freedom`."""
    from ase import units

    return float(2 * atoms.get_kinetic_energy() / (units.kB * freedom(atoms)))


def thermalised(
    atoms: Any, calculator: Any, temperature: float, duration: float, time_step: float, rng: np.random.Generator
) -> Any:
    """A copy of `atoms` with velocities of `temperature` K, after `duration` ps of Langevin dynamics in `time_step` fs.

    The whole neither moves nor, without periodic boundaries, turns. Raises UnstableError if it cannot go on.
    """
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import thermalize_momenta

    if len(atoms) < 2:
        raise DataError("one atom alone has no dynamics: give a structure of two or more")
    atoms = atoms.copy()
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature, rng=rng)
    steps = round(1000 * duration / time_step)
    if steps:
        # The thermostat's own way to hold the centre of mass does not sample exactly, and ase warns of it.
        atoms.set_constraint(FixCom())
        dynamics = Langevin(
            atoms, time_step * units.fs, temperature_K=temperature, friction=FRICTION / units.fs, fixcm=False, rng=rng
        )
        bound = EXPLODED + 10 * 1.5 * units.kB * temperature
        with under_way("equilibrating", steps, "steps") as work:
            for k in range(steps):
                _step(dynamics, atoms, (k + 1) * time_step / 1000)
                if not atoms.get_kinetic_energy() / len(atoms) < bound:
                    now = (k + 1) * time_step / 1000
                    raise UnstableError("the atoms are far too fast for the thermostat", atoms, now)
                work.advance()
        atoms.set_constraint()
    _at_rest(atoms)
    return atoms


def _at_rest(atoms: Any) -> None:
    from ase.md.velocitydistribution import Stationary, ZeroRotation

    Stationary(atoms, preserve_temperature=False)
    if not atoms.pbc.any():
        with np.errstate(divide="ignore", invalid="ignore"):  # of a linear molecule one moment of inertia is 0
            ZeroRotation(atoms, preserve_temperature=False)


def _step(dynamics: Any, atoms: Any, now: float) -> None:
    try:
        dynamics.step()
    except NonFiniteError as error:
        raise UnstableError(str(error), atoms, now) from None


def constant_energy(atoms: Any, calculator: Any, time_step: float, duration: float, n_frames: int = 100) -> Trajectory:
    """Velocity Verlet from `atoms` as they move, for `duration` ps in steps of `time_step` fs; `atoms` stay.

    n_frames: about so many frames are kept.
    Raises UnstableError for energies or forces that are not finite, and for a total energy that explodes.
    """
    from ase import units
    from ase.md.verlet import VelocityVerlet

    atoms = atoms.copy()
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, time_step * units.fs)
    steps = max(1, round(1000 * duration / time_step))
    every = max(1, steps // max(1, n_frames))
    times = np.arange(steps + 1) * time_step / 1000
    total, temperatures, frames = np.empty(steps + 1), np.empty(steps + 1), []
    fastest, mass = 0.0, float(atoms.get_masses().sum())
    started = time.perf_counter()
    with under_way(f"{time_step:g} fs a step", steps, "steps") as work:
        for k in range(steps + 1):
            if k:
                _step(dynamics, atoms, times[k])
            try:
                total[k] = atoms.get_total_energy() / len(atoms)
            except NonFiniteError as error:
                raise UnstableError(str(error), atoms, times[k]) from None
            temperatures[k] = temperature(atoms)
            if not abs(total[k] - total[0]) < EXPLODED:
                moved = f"{total[k] - total[0]:.3g} eV an atom"
                raise UnstableError(
                    f"the total energy moved by {moved} with steps of {time_step:g} fs", atoms, times[k]
                )
            fastest = max(fastest, float(np.linalg.norm(atoms.get_momenta().sum(0))) / mass)
            if k % every == 0:
                frames.append(_kept(atoms))
            work.at(k)
    seconds = (time.perf_counter() - started) / steps
    return Trajectory(time_step, times, total, temperatures, fastest * 1000 * units.fs, frames, seconds)


def _kept(atoms: Any) -> Any:
    """A copy that remembers energy and forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    kept = atoms.copy()
    kept.calc = SinglePointCalculator(kept, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return kept


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """g(r) at `r` (n,) Å, the middles of bins, for each pair of elements, as (n,) under names such as O-H."""

    r: Array
    pairs: dict[str, Array]


def radial_distribution(frames: Sequence[Any], width: float = BIN) -> RadialDistribution:
    """g(r) of each pair of elements, averaged over `frames` (ase.Atoms, periodic in all directions, of equal atoms).

    Pairs a, b in a shell over those that N_a (N_b - δ_ab) pairs without any order would have there, so that g is 1 in
    an ideal gas of any size. r goes up to half the smallest height of the cell, and at most 10 Å; `width` is that of a
    bin, Å. Raises DataError for frames that are not periodic.
    """
    from ase.data import chemical_symbols

    if not frames or not all(atoms.pbc.all() for atoms in frames):
        raise DataError("g(r) needs frames that are periodic in all three directions")
    heights = [atoms.get_volume() / np.linalg.norm(_faces(atoms), axis=1) for atoms in frames]
    n_bins = int(min(FARTHEST, float(np.min(heights)) / 2) / width)
    if n_bins < 1:
        raise DataError("the cell is too small for g(r)")
    edges = width * np.arange(n_bins + 1)
    shells = 4 / 3 * math.pi * np.diff(edges**3)
    numbers = frames[0].numbers
    kinds = sorted({int(z) for z in numbers}, reverse=True)
    sums = {pair: np.zeros(n_bins) for pair in itertools.combinations_with_replacement(kinds, 2)}
    for atoms in frames:
        cell = np.asarray(atoms.cell.array)
        i, j, shift = neighbours(atoms.positions, cell, atoms.pbc, float(edges[-1]))
        r = np.linalg.norm(atoms.positions[j] + shift @ cell - atoms.positions[i], axis=1)
        for (a, b), total in sums.items():
            n_pairs = (numbers == a).sum() * ((numbers == b).sum() - (a == b))
            if n_pairs:
                counts, _ = np.histogram(r[(numbers[i] == a) & (numbers[j] == b)], edges)
                total += counts * atoms.get_volume() / (n_pairs * shells * len(frames))
    pairs = {f"{chemical_symbols[a]}-{chemical_symbols[b]}": total for (a, b), total in sums.items()}
    return RadialDistribution((edges[1:] + edges[:-1]) / 2, pairs)


def _faces(atoms: Any) -> Array:
    """Vectors normal to the faces of the cell, with their areas."""
    a, b, c = np.asarray(atoms.cell.array)
    return np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)])
