"""The verb md: molecular dynamics with trained force fields, and what it says of them."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
from rich.table import Table

from actsearch.errors import DataError, MissingPackageError, NonFiniteError, SettingsError
from actsearch.files import write_atomically, write_text
from actsearch.forcefield.calculator import batch_like, calculator
from actsearch.forcefield.dynamics import (
    FEWEST,
    UnstableError,
    constant_energy,
    drift,
    radial_distribution,
    thermalised,
)
from actsearch.forcefield.potential import ForceField
from actsearch.process import say, show, stoppable, tell
from actsearch.report.dynamics_plots import Simulated, draw_dynamics
from actsearch.report.plots import save

STORED = 2_000  # points of a series in md.json
HOT = 3.0  # times the temperature asked for; a structure that relaxes warms by less


@dataclass(frozen=True)
class Simulation:
    """How long and how finely.

    Attributes:
        time_steps: fs, of as many trajectories from the same start.
        time: ps, of each; or instead
        steps: that the longest of the time steps takes.
        temperature: K, of the first velocities and of the thermostat.
        equilibrate: ps of Langevin dynamics before, in the shortest of the time steps.
        supercell: so many copies along each vector of the cell.
        seed: of velocities and thermostat.
        double: compute in float64, so that rounding adds nothing to the drift.

    Raises SettingsError for what is out of range.
    """

    time_steps: Sequence[float] = (0.25, 0.5, 1.0)
    time: float | None = None
    steps: int | None = None
    temperature: float = 300.0
    equilibrate: float = 0.0
    supercell: Sequence[int] = (1, 1, 1)
    seed: int = 0
    double: bool = False

    def __post_init__(self) -> None:
        if not self.time_steps or not all(0 < step < math.inf for step in self.time_steps):
            raise SettingsError(f"time steps must be above 0 fs, not {list(self.time_steps)}")
        if len(set(self.time_steps)) != len(self.time_steps):
            raise SettingsError(f"a time step is given twice: {list(self.time_steps)}")
        if self.time is not None and self.steps is not None:
            raise SettingsError("give the time or the number of steps, not both")
        for name in ("time", "steps", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be above 0, not {value}")
        if not 0 <= self.equilibrate < math.inf:
            raise SettingsError(f"equilibrate must be 0 ps or more, not {self.equilibrate}")
        if len(self.supercell) != 3 or min(self.supercell) < 1:
            raise SettingsError(f"a supercell needs three numbers from 1 on, not {list(self.supercell)}")
        if self.seed < 0:
            raise SettingsError(f"seed must be 0 or more, not {self.seed}")
        if round(1000 * self.duration / max(self.time_steps)) < FEWEST:
            raise SettingsError(
                f"a drift needs at least {FEWEST} steps of {max(self.time_steps):g} fs: simulate longer"
            )

    @property
    def duration(self) -> float:
        """ps, of each trajectory; 1 if nothing is said."""
        if self.steps is not None:
            return self.steps * max(self.time_steps) / 1000
        return 1.0 if self.time is None else self.time


def md(models: Sequence[str], structure: str, settings: Simulation, out: Path | None, data_root: str | None) -> None:
    """Simulate with the force fields saved in `models`, write md.json, md.png and trajectories, and print a table.

    Args:
        models: files of trained models.
        structure: a file that ase reads, or the name of a data set of frames, whose first test frame is taken.
        settings: of the simulation.
        out: folder of the results; default: runs/md/DATE.
        data_root: folder of the data set.

    Raises an ActsearchError for what the caller can mend, and for a trajectory that cannot go on.
    """
    fields = {name: _load(path) for name, path in zip(_names(models), models, strict=True)}
    atoms = read_structure(structure, data_root)
    directory = out or Path("runs", "md", datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    with stoppable(lambda: f"nothing was kept but what is in {directory}"):
        simulate(fields, atoms, settings, directory)
    tell("paths", f"\nresults      {directory}", paths={"results": directory})


def _load(path: str) -> ForceField:
    from actsearch.compare.saved import load_model

    model = load_model(path)
    if not isinstance(model, ForceField):
        raise SettingsError(f"{path} holds a {type(model).__name__}, which is no force field")
    return model


def _names(paths: Sequence[str]) -> list[str]:
    """Short names that differ: as many parts of each path, from its end, as that takes."""
    parts = [Path(path).resolve().with_suffix("").parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise SettingsError("the same model is given twice")


def read_structure(structure: str, data_root: str | None = None) -> Any:
    """The first frame (`ase.Atoms`) of a file, or the first test frame of a data set of frames. Raises DataError."""
    try:
        from ase import Atoms
        from ase.io import read
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "molecular dynamics") from None
    path = Path(structure)
    if path.is_file():
        try:
            atoms: Any = read(path, index=0)
        except Exception as error:  # readers of ase fail in many ways
            raise DataError(f"ase cannot read {structure}: {type(error).__name__}: {error}") from error
        if not (np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()):
            raise DataError(f"{structure} has a position or a cell that is not finite")
        return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    from actsearch import data

    if structure not in data.names():
        raise DataError(f"{structure} is neither a file nor one of the data sets {', '.join(data.names())}")
    module = data.build(structure, root=data_root)
    if module.kind != "force_field":
        raise DataError(f"the data set {structure} holds no frames of atoms")
    module.setup("fit")
    frame: Any = module.test_set[0]
    return Atoms(
        frame.numbers.numpy(),
        frame.positions.double().numpy(),
        cell=frame.cell[0].double().numpy(),
        pbc=frame.pbc[0].numpy(),
    )


def simulate(
    fields: Mapping[str, ForceField], atoms: Any, settings: Simulation, directory: Path
) -> dict[str, Simulated]:
    """Simulate `atoms` (ase.Atoms) with each of `fields` by name, write everything to `directory`, print a table.

    Each starts from the same velocities, equilibrates by itself, and runs every time step from there. What is done is
    written when a trajectory breaks, with its last atoms in failed.extxyz; then NonFiniteError is raised.
    """
    atoms = atoms.repeat(tuple(settings.supercell)) if tuple(settings.supercell) != (1, 1, 1) else atoms
    done: dict[str, Simulated] = {}
    for model in fields.values():
        model.check(batch_like(model, atoms))
    for name, model in fields.items():
        where = directory if len(fields) == 1 else directory / name
        try:
            done[name] = _simulate(model, atoms, settings, name)
        except UnstableError as error:
            path = _write_frames(where / "failed.extxyz", [error.atoms])
            if done:
                _write(done, settings, atoms, directory)
            raise NonFiniteError(f"{name}: {error}; its last frame is in {path}") from None
        _write_frames(where / "trajectory.extxyz", done[name].trajectories[0].frames)
    _write(done, settings, atoms, directory)
    show(_table(done))
    return done


def _simulate(model: ForceField, atoms: Any, settings: Simulation, name: str) -> Simulated:
    if settings.double:
        model = model.double()
    rng = np.random.default_rng(settings.seed)
    calc = calculator(model)
    steps = sorted(settings.time_steps)
    start = thermalised(atoms, calc, settings.temperature, settings.equilibrate, steps[0], rng)
    trajectories = []
    for step in steps:
        trajectories.append(constant_energy(start, calc, step, settings.duration))
        last, taken = trajectories[-1].last_temperature, len(trajectories[-1].times) - 1
        line = f"{name}: {taken} steps of {step:g} fs"
        tell("trajectory", line, model=name, steps=taken, time_step=step, last_temperature=last)
        if last > HOT * settings.temperature:
            say(
                f"{name} does not hold this structure together: it ends at {last:.0f} K, and its drift says little; "
                "train it longer or on more frames"
            )
    radial = radial_distribution(trajectories[0].frames) if atoms.pbc.all() else None
    return Simulated(trajectories, [drift(t.times, t.total) for t in trajectories], radial)


# -- what is written -----------------------------------------------------------------------------------------------


def _write_frames(path: Path, frames: Sequence[Any]) -> Path:
    from ase.io import write

    plain = []
    for atoms in frames:
        kept = atoms.copy()
        # Energy and forces of a frame that failed are no numbers, and its calculator would compute them again.
        kept.calc = atoms.calc if type(atoms.calc).__name__ == "SinglePointCalculator" else None
        plain.append(kept)
    return write_atomically(path, lambda temporary: write(temporary, plain, format="extxyz"))


def _write(done: Mapping[str, Simulated], settings: Simulation, atoms: Any, directory: Path) -> None:
    found = {
        "structure": {"formula": atoms.get_chemical_formula(), "atoms": len(atoms), "pbc": atoms.pbc.tolist()},
        "settings": {**asdict(settings), "duration": settings.duration},
        "units": {
            "time": "ps", "time_step": "fs", "total": "eV/atom", "drift": "meV/atom/ps", "fluctuation": "meV/atom",
            "temperature": "K", "centre_speed": "Å/ps", "r": "Å", "seconds": "s a step",
        },
        "models": {name: _numbers(one) for name, one in done.items()},
    }  # fmt: skip
    write_text(directory / "md.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    save(draw_dynamics(done), directory / "md.png")


def _numbers(one: Simulated) -> dict[str, Any]:
    runs = []
    for trajectory, found in zip(one.trajectories, one.drifts, strict=True):
        every = -(-len(trajectory.times) // STORED)
        runs.append(
            {
                "time_step": trajectory.time_step,
                "steps": len(trajectory.times) - 1,
                "drift": found.slope,
                "drift_error": found.error,
                "fluctuation": found.fluctuation,
                "temperature_mean": float(trajectory.temperature.mean()),
                "temperature_sd": float(trajectory.temperature.std()),
                "temperature_last": trajectory.last_temperature,
                "centre_speed": trajectory.centre_speed,
                "seconds": trajectory.seconds,
                "series": {
                    "time": trajectory.times[::every].tolist(),
                    "total": trajectory.total[::every].tolist(),
                    "temperature": trajectory.temperature[::every].tolist(),
                },
            }
        )
    radial = None
    if one.radial is not None:
        radial = {"r": one.radial.r.tolist(), **{pair: g.tolist() for pair, g in one.radial.pairs.items()}}
    return {"runs": runs, "g": radial}


def _table(done: Mapping[str, Simulated]) -> Table:
    table = Table(box=None)
    table.add_column("model")
    for heading in ("time step", "drift, meV/atom/ps", "fluctuation, meV/atom", "temperature, K", "ms a step"):
        table.add_column(heading, justify="right")
    for name, one in done.items():
        for trajectory, found in zip(one.trajectories, one.drifts, strict=True):
            kelvin = trajectory.temperature
            table.add_row(
                name,
                f"{trajectory.time_step:g} fs",
                f"{found.slope:+.3g} ± {found.error:.2g}",
                f"{found.fluctuation:.3g}",
                f"{kelvin.mean():.0f} ± {kelvin.std():.0f}",
                f"{1000 * trajectory.seconds:.3g}",
            )
    return table
