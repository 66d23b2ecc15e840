"""compare: retraining with several activations over seeds, paired, with statistics."""

from __future__ import annotations

import csv
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actsearch._torchvision  # noqa: F401

import numpy as np
import pytorch_lightning as pl
from scipy import stats

from actsearch.errors import RunError, SettingsError, TaskError
from actsearch.files import write_text
from actsearch.genotype import Genotype
from actsearch.ops.clip import Clip
from actsearch.seeds import mix_seed, seed_all
from actsearch.space import SearchSpace
from actsearch.swap import swap

DISCOVERED = "discovered"
_HEADER = ("activation", "seed", "value", "train_seconds", "hash")


@dataclass(frozen=True)
class Result:
    """One retraining: the test metric at its end, and the seconds it took."""

    activation: str
    seed: int
    value: float
    train_seconds: float


@dataclass(frozen=True)
class Row:
    """One activation over all seeds, and what the discovered one gains over it.

    Attributes:
        name, formula: of the activation.
        values: the metric by seed.
        mean, sd: of the values; sd is that of the sample (n - 1).
        difference: mean over seeds of discovered - this; NaN in the discovered one's own row.
        interval: its 95 % confidence interval by Student's t, infinite with fewer than two seeds.
        p_t, p_permutation: two-sided paired t test, and exact sign-flip permutation test.
        p_holm: p_t after Holm's correction over all rows.
    """

    name: str
    formula: str
    values: tuple[float, ...]
    mean: float
    sd: float
    difference: float
    interval: tuple[float, float]
    p_t: float
    p_permutation: float
    p_holm: float
    train_seconds: float


@dataclass(frozen=True)
class Comparison:
    """All retrainings of a comparison, with their statistics.

    `metric` is what was measured on the test set, `higher_is_better` its direction.
    """

    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    epochs: int
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def verdict(self) -> str:
        """In words, whether the discovered function differs from each standard one; one sentence a line."""
        scale, unit = (100, " points") if self.metric.endswith("acc") else (1, "")
        lines = []
        for row in self.rows:
            if row.name == DISCOVERED:
                continue
            low, high = (scale * end for end in row.interval)
            gain = row.difference if self.higher_is_better else -row.difference
            if not row.p_holm < 0.05:  # also when it is NaN
                said = "no significant difference"
            else:
                said = "significantly better" if gain > 0 else "significantly worse"
            lines.append(
                f"discovered - {row.name}: {scale * row.difference:+.3g}{unit} "
                f"(95 % CI {low:+.3g} to {high:+.3g}, Holm p = {row.p_holm:.2g}): {said}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number becomes null."""
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "seeds": list(self.seeds),
            "epochs": self.epochs,
            "rows": [{k: _plain(v) for k, v in vars(row).items()} for row in self.rows],
        }


def standard_contestants(
    names: Sequence[str], space: SearchSpace | None = None, random: int = 0, seed: int = 0
) -> dict[str, Genotype]:
    """Controls: unary operations by id, unclipped, genotype files by path, and `random` functions of `space`.

    Raises UnknownNameError or GenotypeError for a name that is neither.
    """
    contestants = {
        Path(name).stem: Genotype.load(name) if name.endswith(".json") else Genotype.of_op(name, Clip("none"))
        for name in names
    }
    for k in range(random):
        if space is None:
            raise SettingsError("random controls need the search space that they are drawn from")
        contestants[f"random {k + 1}"] = space.random(mix_seed(seed, 7_919, k))
    return contestants


def compare(
    build_task: Callable[[], pl.LightningModule],
    datamodule: Any,
    contestants: Mapping[str, Genotype],
    *,
    seeds: Sequence[int],
    epochs: int,
    directory: Path | str,
    trainer: Mapping[str, Any] | None = None,
    report: Callable[[Result], None] | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
) -> Comparison:
    """Retrain every contestant from scratch for every seed, at the same budget, and test it.

    For one seed all contestants start from the same weights and see the same batches, so differences are paired. Each
    result is added to `directory`/comparison.csv at once; what is already there is not trained again.

    Args:
        build_task: gives a fresh task; called after seeding, so that equal seeds give equal weights.
        datamodule: with `train_dataloader` and `test_dataloader`.
        contestants: genotypes by name; the one named `discovered` is compared with every other.
        seeds, epochs: of the retrainings.
        directory: gets comparison.csv and comparison.json.
        trainer: further arguments of the Trainer.
        report: told every Result as it comes.
        metric: what `test_step` logs; default: `test_acc` if it is there, else `test_loss`.
        higher_is_better: default: for names that end in `acc`.

    Raises TaskError if the task does not log the metric, RunError if the directory cannot be written or holds the
    results of other functions.
    """
    if not seeds or epochs < 1:
        raise SettingsError("a comparison needs at least one seed and one epoch")
    path = Path(directory) / "comparison.csv"
    known = _read(path, contestants, epochs)
    results: list[Result] = []
    # Seeds outermost: a comparison that is cut short still has complete pairs.
    for seed in seeds:
        for name, genotype in contestants.items():
            result = known.get((name, seed))
            if result is None:
                seed_all(seed)
                value, metric, seconds = _retrain(build_task(), datamodule, genotype, seed, epochs, trainer, metric)
                result = Result(name, seed, value, seconds)
                _append(path, result, _fingerprint(genotype, epochs))
            if report is not None:
                report(result)
            results.append(result)
    metric = metric or "test_acc"
    if higher_is_better is None:
        higher_is_better = metric.endswith("acc")
    comparison = Comparison(metric, higher_is_better, tuple(seeds), epochs, _rows(contestants, results, seeds))
    write_text(
        Path(directory) / "comparison.json", json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n"
    )
    return comparison


def _retrain(
    task: pl.LightningModule,
    datamodule: Any,
    genotype: Genotype,
    seed: int,
    epochs: int,
    trainer_options: Mapping[str, Any] | None,
    metric: str | None,
) -> tuple[float, str, float]:
    swap(task, genotype)
    seed_all(seed, 1)
    trainer = pl.Trainer(
        **{
            "max_epochs": epochs,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            **(trainer_options or {}),
        }
    )
    started = time.perf_counter()
    trainer.fit(task, train_dataloaders=datamodule.train_dataloader())
    seconds = time.perf_counter() - started
    (found,) = trainer.test(task, dataloaders=datamodule.test_dataloader(), verbose=False)
    if metric is None:
        metric = "test_acc" if "test_acc" in found else "test_loss"
    if metric not in found:
        raise TaskError(f"test_step does not log {metric!r}; it logs: {', '.join(sorted(found)) or 'nothing'}")
    return float(found[metric]), metric, seconds


def _rows(contestants: Mapping[str, Genotype], results: Sequence[Result], seeds: Sequence[int]) -> tuple[Row, ...]:
    values = {name: np.array([r.value for r in results if r.activation == name]) for name in contestants}
    seconds = {name: float(np.mean([r.train_seconds for r in results if r.activation == name])) for name in contestants}
    discovered = values.get(DISCOVERED)
    tests = {}
    for name in contestants:
        if discovered is not None and name != DISCOVERED:
            tests[name] = paired(discovered - values[name])
    corrected = holm({name: test[2] for name, test in tests.items()})
    nothing = (math.nan, (math.nan, math.nan), math.nan, math.nan)
    rows = []
    for name, genotype in contestants.items():
        v = values[name]
        difference, interval, p_t, p_permutation = tests.get(name, nothing)
        rows.append(
            Row(
                name=name,
                formula=genotype.formula,
                values=tuple(v.tolist()),
                mean=float(v.mean()),
                sd=float(v.std(ddof=1)) if len(v) > 1 else math.nan,
                difference=difference,
                interval=interval,
                p_t=p_t,
                p_permutation=p_permutation,
                p_holm=corrected.get(name, math.nan),
                train_seconds=seconds[name],
            )
        )
    return tuple(rows)


def paired(differences: Any) -> tuple[float, tuple[float, float], float, float]:
    """Mean, 95 % interval, p of the paired t test and of the exact sign-flip permutation test of paired differences.

    With equal differences the t test is undefined: p is 1 if they are 0, and NaN otherwise.
    """
    d = np.asarray(differences, dtype=float)
    mean = float(d.mean())
    if len(d) < 2:
        return mean, (-math.inf, math.inf), math.nan, 1.0
    spread = float(d.std(ddof=1))
    if spread == 0:
        p_t = 1.0 if mean == 0 else math.nan
        return mean, (mean, mean), p_t, _sign_flip(d)
    half = float(stats.t.ppf(0.975, len(d) - 1)) * spread / math.sqrt(len(d))
    return mean, (mean - half, mean + half), float(stats.ttest_1samp(d, 0.0).pvalue), _sign_flip(d)


def _sign_flip(d: np.ndarray) -> float:
    """Share of sign patterns whose mean is at least as far from 0; all patterns up to 16 differences, else a sample."""
    if len(d) <= 16:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(65_536, len(d)))
    return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction; NaN stays NaN and does not count."""
    finite = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    highest = 0.0
    for k, (p, name) in enumerate(finite):
        highest = max(highest, min(1.0, p * (len(finite) - k)))
        corrected[name] = highest
    return corrected


def _read(path: Path, contestants: Mapping[str, Genotype], epochs: int) -> dict[tuple[str, int], Result]:
    """Results on disk of these contestants; a line cut off by a kill is left out."""
    if not path.is_file():
        return {}
    known = {}
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if None in line.values() or line["activation"] not in contestants:
                continue
            if line["hash"] != _fingerprint(contestants[line["activation"]], epochs):
                raise RunError(
                    f"{path} holds results of another function named {line['activation']!r}, or after another "
                    "number of epochs; use a new folder"
                )
            result = Result(line["activation"], int(line["seed"]), float(line["value"]), float(line["train_seconds"]))
            known[result.activation, result.seed] = result
    return known


def _append(path: Path, result: Result, fingerprint: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.is_file()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(_HEADER)
            writer.writerow(
                [
                    result.activation,
                    result.seed,
                    repr(result.value),
                    f"{result.train_seconds:.3f}",
                    fingerprint,
                ]
            )
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def _fingerprint(genotype: Genotype, epochs: int) -> str:
    return f"{genotype.formula} | {genotype.clip.kind} {genotype.clip.limit:g} | {epochs} epochs"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
