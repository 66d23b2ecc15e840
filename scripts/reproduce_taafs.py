"""Do trained and searched activations improve force fields? (Li 2024, arXiv 2412.14655)

    python scripts/reproduce_taafs.py --data DIR --jobs 2      # four architectures, 3 seeds: two hours on two cores
    python scripts/reproduce_taafs.py --data DIR --jobs 2 --architectures '[painn]' --seeds 5

For Deep Potential on water, ANI-2 and PaiNN on ethanol, and CHGNet on molybdenum, each with the settings of its file in
configs/transfer: the library's own activation, a basis of trained coefficients in its place or added to it (TAAFS), a
trained slope before it (L-LAAF, N-LAAF), the functions that searches with forces in the loss found for Deep Potential
(`--config deep_potential_water`), and a random function. All start a seed from the same weights and see the same
batches. DIR holds water_dpmd, rmd17 and mlearn. Every retraining is on disk when it ends, so the command can be given
again to go on; OUT/table.md and OUT/forces.png are made of what is there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
from jsonargparse import auto_cli
from matplotlib.figure import Figure

from actsearch import options, session
from actsearch.build import build
from actsearch.compare import OWN, Comparison, Contestant, contestant, standard_contestants
from actsearch.config import Config, RetrainConfig, SearchConfig, TransferConfig
from actsearch.errors import ActsearchError, UnknownNameError
from actsearch.files import write_text
from actsearch.ops.bases import BASES
from actsearch.process import prepare
from actsearch.report.plots import save
from actsearch.space import SearchSpace
from actsearch.transfer import retrain_all

ARCHITECTURES = {
    "deep_potential": "deep_potential_water",
    "ani2": "ani2_ethanol",
    "painn": "painn_ethanol",
    "chgnet": "chgnet_molybdenum",
}
SEARCH = "deep_potential_water"
RANDOM_OF = "smooth_c2"
OUTLIER, LINEAR = 200, 50  # %, of the picture
METRICS = {"test_energy_rmse": "energy RMSE, meV/atom", "test_force_rmse": "force RMSE, meV/Å"}


def read(cls: type[Config], name: str, data: str | None) -> Config:
    """The shipped configuration of that name, with data from that folder."""
    parser = options.make_parser("")
    options.add_config(parser, cls)
    config, _ = options.read_config(parser, [f"--config={name}"], cls)
    config.data.root = data
    return config


def searched(space: str, data: str | None, out: Path) -> Path:
    """The genotype that a search for Deep Potential found, now or in an earlier call; a broken one goes on."""
    name = f"search_{space}"
    found = sorted(out.glob(f"{name}/*/genotype.json"))
    if not found:
        config = read(SearchConfig, SEARCH, data)
        config.space = space
        config.run = dataclasses.replace(config.run, root=str(out), name=name)
        config.compare.enabled = False
        begun = sorted(out.glob(f"{name}/*/checkpoints/*"))
        session.search(config, begun[-1].parent.parent if begun else None)
        found = sorted(out.glob(f"{name}/*/genotype.json"))
    return found[-1]


def contestants(
    functions: dict[str, Path], settings: RetrainConfig, bases: Sequence[str], residual: Sequence[str], random: int
) -> list[Contestant]:
    """All columns of one architecture."""
    adapted = [*(f"taafs:{name}" for name in bases), *(f"taafs:{name}:residual" for name in residual)]
    common: dict[str, Any] = {"channel_axis": -1, "lr_factor": settings.lr_factor}
    declared = {**common, "parameters": settings.parameters}
    return [
        contestant(OWN),
        *(contestant(name, **common) for name in [*adapted, "laaf:site", "laaf:channel"]),
        *(contestant(file, f"searched in {space}", **declared) for space, file in functions.items()),
        *standard_contestants([], SearchSpace.load(RANDOM_OF), random, **declared),
    ]


def table(comparison: Comparison) -> str:
    """Both errors of each contestant, and its relative difference to the architecture's own activation."""
    titles = [cell for title in METRICS.values() for cell in (title, "to own [95 % CI]", "p (Holm)")]
    lines = [f"| activation | {' | '.join(titles)} | added parameters |"]
    lines.append("| --- |" + " ---: |" * (len(titles) + 1))
    measured = [dataclasses.replace(comparison, metric=metric) for metric in METRICS]
    for row in comparison.rows:
        cells = [row.name]
        for one in measured:
            values = one.row(row.name)
            cells.append(f"{values.mean:.3g} ± {values.sd:.2g}")
            cells += ["", ""] if row.name == OWN else relative(one, row.name)
        share = f" ({100 * row.added_parameters / row.parameters:.3f} %)" if row.added_parameters else ""
        lines.append(f"| {' | '.join(cells)} | {row.added_parameters:+d}{share} |")
    return "\n".join(lines)


def relative(comparison: Comparison, name: str) -> list[str]:
    """The paired difference to `own` in percent of its mean, and the p value."""
    test, own = comparison.test(name), comparison.row(OWN).mean
    low, high = (-100 * end / own for end in reversed(test.paired.interval))
    said = f"{-100 * test.paired.mean / own:+.1f} % [{low:+.1f}, {high:+.1f}]"
    return [said, f"{test.p_holm:.2g}"]


def draw(comparisons: dict[str, Comparison]) -> Figure:
    """Force errors relative to the architecture's own activation, seed by seed."""
    figure = Figure(figsize=(3.2 * len(comparisons), 5.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(comparisons), sharey=True))
    for axis, (name, comparison) in zip(axes, comparisons.items(), strict=True):
        own = np.array(comparison.row(OWN).values)
        rows = [row for row in comparison.rows if row.name != OWN]
        for place, row in enumerate(rows):
            change = 100 * (np.array(row.values) / own - 1)
            axis.plot(change, [place] * len(change), "o", ms=4, color="tab:blue", alpha=0.6)
            axis.plot(np.nanmean(change), place, "|", ms=14, mew=2, color="black")
        axis.axvline(0, color="gray", lw=1)
        # One that did not learn would press all others into a line.
        if max(abs(end) for end in axis.get_xlim()) > OUTLIER:
            axis.set_xscale("symlog", linthresh=LINEAR)
            ticks = [tick for tick in (-LINEAR, 0, LINEAR, 10 * LINEAR, 100 * LINEAR) if tick < axis.get_xlim()[1]]
            axis.set_xticks(ticks, [f"{tick}" for tick in ticks])
            axis.minorticks_off()
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set(title=name, xlabel="force RMSE to own activation, %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    return figure


def reproduce(
    architectures: tuple[str, ...] = tuple(ARCHITECTURES),
    bases: tuple[str, ...] = tuple(BASES),
    residual: tuple[str, ...] = ("chebyshev",),
    spaces: tuple[str, ...] = ("smooth_c2", "taafs"),
    seeds: int | None = None,
    epochs: int | None = None,
    random: int = 1,
    data: str | None = None,
    jobs: int = 1,
    out: str = "runs/forces",
) -> None:
    """Train each architecture with every activation, and print energy and force errors.

    Args:
        architectures: deep_potential, ani2, painn, chgnet.
        bases: bspline, fourier, chebyshev, legendre, hermite, rbf; each in place of the own activation.
        residual: those that are added to it as well.
        spaces: of the searches.
        seeds: number of seeds; default: as configured.
        epochs: of a retraining; default: as configured for each architecture.
        random: number of random functions of smooth_c2.
        data: folder that holds the sets.
        jobs: retrainings at the same time, each a process with one thread.
        out: folder of all results.
    """
    for name in architectures:
        if name not in ARCHITECTURES:
            raise UnknownNameError("architecture", name, ARCHITECTURES)
    folder = Path(out)
    functions = {space: searched(space, data, folder) for space in spaces}
    comparisons: dict[str, Comparison] = {}
    for name in architectures:
        config = read(TransferConfig, ARCHITECTURES[name], data)
        prepare(config.trainer)
        given = {"seeds": seeds, "epochs": epochs, "jobs": jobs, "save_models": True}
        config.compare = dataclasses.replace(config.compare, **{k: v for k, v in given.items() if v is not None})
        who = contestants(functions, config.compare, bases, residual, random)
        comparisons[name] = retrain_all(config, config.compare, build(config), who, folder / name, reference=OWN)
    text = "\n\n".join(f"### {name}\n\n{table(comparison)}" for name, comparison in comparisons.items())
    write_text(folder / "table.md", text + "\n")
    picture = save(draw(comparisons), folder / "forces.png")
    print(f"\n{text}\n\n{picture}")


if __name__ == "__main__":
    try:
        auto_cli(reproduce, as_positional=False)
    except ActsearchError as error:
        print(f"reproduce_taafs.py: {error}", file=sys.stderr)
        sys.exit(2)
