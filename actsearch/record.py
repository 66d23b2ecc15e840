"""RunRecord: what a search left in its run directory, read back as plain data for tables, figures and reports."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from actsearch.compare import Comparison, Retraining
from actsearch.compare.comparison import FILE as COMPARISON
from actsearch.compare.records import FILE as RETRAININGS
from actsearch.compare.records import retraining
from actsearch.errors import ActsearchError, GenotypeError, MissingPackageError, RunError, unknown_name
from actsearch.files import read_json, whole_json_lines
from actsearch.genotype import Genotype
from actsearch.lock import in_use
from actsearch.run import SUMMARY, RunDirectory
from actsearch.search.strategies.log import FILE as TRIALS
from actsearch.search.strategies.log import TrialRecord
from actsearch.space import SearchSpace

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]
Table = Literal["metrics", "probabilities", "trials", "retrainings"]
Found = TypeVar("Found")

MADE_BY_A_SEARCH = ("config.yaml", "space.yaml", "genotypes.jsonl", TRIALS)
UNDECIDED = 0.02  # lead of the best candidate below which a slot with several is undecided


@dataclass(frozen=True)
class CellRecord:
    """One cell over the epochs of a gradient search.

    Attributes:
        name: `network`, or of what the space shares its cells by.
        candidates: by slot, in the order of the columns below.
        probabilities: by slot, (epochs, candidates) float64: the mean weight of each, 0 of the dropped.
        genotypes: the discrete cell at each epoch; None where the line cannot be read.
        clip_hits: by `slot/op`, (epochs,): the share of the recorded pre-activations at which the clip acted on that
            candidate; 0 also where an older run did not write it.
        final: what the search ended with, after its local search; None before the end.
    """

    name: str
    candidates: Mapping[str, tuple[str, ...]]
    probabilities: Mapping[str, Array]
    genotypes: tuple[Genotype | None, ...]
    clip_hits: Mapping[str, Array] = field(default_factory=dict)
    final: Genotype | None = None

    @property
    def survivors(self) -> dict[str, NDArray[np.int64]]:
        """By slot, (epochs,): how many candidates are left."""
        return {slot: (p > 0).sum(axis=1) for slot, p in self.probabilities.items()}

    @property
    def entropy(self) -> dict[str, Array]:
        """By slot, (epochs,), in nats: log n when undecided, 0 when one candidate is certain."""
        return {
            slot: -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1) + 0.0 for slot, p in self.probabilities.items()
        }

    @property
    def margin(self) -> dict[str, Array]:
        """By slot, (epochs,): the lead of the most probable candidate over the second."""
        found = {}
        for slot, p in self.probabilities.items():
            best = np.sort(p, axis=1)
            found[slot] = best[:, -1] - best[:, -2] if p.shape[1] > 1 else np.ones(len(p))
        return found

    @property
    def undecided(self) -> tuple[str, ...]:
        """Slots that ended with several candidates of which the best leads by less than 0.02."""
        return tuple(
            slot
            for slot, lead in self.margin.items()
            if len(lead) and self.survivors[slot][-1] > 1 and lead[-1] < UNDECIDED
        )

    @property
    def genotype(self) -> Genotype | None:
        """The final one, else that of the last epoch that can be read; None if there is none."""
        return self.final or next((g for g in reversed(self.genotypes) if g is not None), None)


@dataclass(frozen=True)
class RunRecord:
    """A run read back. What is missing or damaged is left out, and `notes` says so.

    Attributes:
        path: of the run.
        config: config.yaml; empty if it cannot be read, as are the next two.
        environment: versions and machine.
        summary: search.json: steps, seconds, losses; written when the search, not the comparison, ends.
        strategy: gradient, random, tpe or genetic.
        space: None if it cannot be read.
        epochs: (E,) of the epochs on record, from 1 on.
        phases: of each epoch, in words.
        metrics: metrics.csv by column, each (rows,) float64, NaN where nothing is; without the words of `phase`.
        losses: (E,) by name: `train`, `arch` (the mixture, on α's part), `val` (the discrete cell, likewise).
        skipped: steps that were skipped because something was not finite.
        cells: of a gradient search, by name.
        trials: of the other strategies.
        found: the genotypes that the search ended with, by cell; empty before its end.
        inputs: (n,) float32, a sample of the inputs of the activation sites; None if there is none.
        comparison: None if there is none, or not yet.
        retrainings: those that are done, also of a comparison that is not.
        length: epochs of the whole search; None if that is not known.
        expected: retrainings of the whole comparison; 0 without one.
        busy: a process is writing the run at the moment.
        notes: what could not be read, one sentence each.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    strategy: str
    space: SearchSpace | None
    epochs: NDArray[np.int64]
    phases: tuple[str, ...]
    metrics: Mapping[str, Array]
    losses: Mapping[str, Array]
    skipped: int
    cells: Mapping[str, CellRecord]
    trials: tuple[TrialRecord, ...]
    found: Mapping[str, Genotype]
    inputs: NDArray[np.float32] | None
    comparison: Comparison | None
    retrainings: tuple[Retraining, ...]
    length: int | None
    expected: int
    busy: bool
    notes: tuple[str, ...]

    @property
    def genotype(self) -> Genotype:
        """What was found. Raises GenotypeError if the search has not ended, or if there are several: see `found`."""
        if len(self.found) != 1:
            raise GenotypeError(
                f"{self.path} holds {len(self.found)} final genotypes, not one; see `found` and `cells`"
            )
        return next(iter(self.found.values()))

    @property
    def searched(self) -> bool:
        """Whether the search came to its end."""
        return bool(self.found)

    @property
    def finished(self) -> bool:
        """Whether everything that the run was to do is done, the comparison as well."""
        return self.searched and (self.comparison is not None or self.expected == 0)

    @property
    def progress(self) -> str:
        """In words, how far it came: `finished`, or after which epoch, trial or retraining it stands."""
        if self.finished:
            return "finished"
        if self.searched:
            return f"the search ended; {len(self.retrainings)} of {self.expected} retrainings are done"
        if self.strategy != "gradient":
            return f"the search stands after {len(self.trials)} trials"
        done = int(self.epochs[-1]) if len(self.epochs) else 0
        return f"the search stands after epoch {done}" + (f" of {self.length}" if self.length else "")

    @property
    def resume(self) -> str:
        """What to type to go on; empty if the run is finished."""
        if self.finished:
            return ""
        return f"actsearch search --resume {self.path}"

    def frame(self, table: Table = "metrics") -> pandas.DataFrame:
        """A table as a pandas DataFrame.

        Args:
            table: `metrics`, with a row an epoch; `probabilities`, with the columns epoch, cell, slot, candidate and
                probability; `trials`; or `retrainings`, with all that the test logged.

        Raises MissingPackageError without pandas, and RunError for a table of another name.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError("pandas", "dev", "a DataFrame") from None
        if table == "metrics":
            return pandas.DataFrame(dict(self.metrics))
        if table == "probabilities":
            rows: list[Any] = [
                (int(epoch), name, slot, op, float(p))
                for name, cell in self.cells.items()
                for slot, ops in cell.candidates.items()
                for epoch, ps in zip(self.epochs, cell.probabilities[slot], strict=True)
                for op, p in zip(ops, ps, strict=True)
            ]
            return pandas.DataFrame(rows, columns=["epoch", "cell", "slot", "candidate", "probability"])
        if table == "trials":
            names = ("number", "formula", "loss", "steps", "pruned", "seconds")
            return pandas.DataFrame([{name: getattr(t, name) for name in names} for t in self.trials], columns=names)
        if table == "retrainings":
            known = ("activation", "seed", "failure", "seconds", "step_seconds", "peak_memory", "added_parameters")
            return pandas.DataFrame([{n: getattr(r, n) for n in known} | dict(r.metrics) for r in self.retrainings])
        raise RunError(unknown_name("table", str(table), get_args(Table)))


def is_run(directory: Path | str) -> bool:
    """Whether a search has written anything there."""
    return any((Path(directory) / name).is_file() for name in MADE_BY_A_SEARCH)


def read_run(directory: Path | str) -> RunRecord:
    """Read a run directory, of any strategy, finished or not, without changing it.

    Raises RunError, in one line, if `directory` is none; of a file that is damaged or missing the rest is read, and the
    record's `notes` say what is wrong.
    """
    path = Path(directory)
    if not is_run(path):
        raise RunError(f"{path} is not a run: it has no config.yaml; give a folder runs/NAME/DATE")
    reader = _Reader(path)
    run = RunDirectory(path)
    config = reader.read("config.yaml", run.read_config) or {}
    environment = reader.read("environment.json", lambda: read_json(path / "environment.json")) or {}
    summary = reader.read(SUMMARY, lambda: read_json(path / SUMMARY), optional=True) or {}
    space = reader.read("space.yaml", lambda: SearchSpace.load(run.read_space()))
    strategy = str(config.get("strategy") or summary.get("strategy") or "gradient")
    records = reader.read("genotypes.jsonl", lambda: _history(reader, run), optional=True) or []
    cells = _cells(reader, records)
    found = _found(reader, cells)
    comparison = reader.read(COMPARISON, lambda: Comparison.load(path), optional=True)
    inputs = reader.read("inputs.npy", run.read_inputs, optional=True)
    losses = [r["losses"] if isinstance(r.get("losses"), dict) else {} for r in records]
    return RunRecord(
        path=path,
        config=config,
        environment=environment,
        summary=summary,
        strategy=strategy,
        space=space,
        epochs=np.array([r["epoch"] for r in records], dtype=np.int64),
        phases=tuple(str(r.get("phase", "")) for r in records),
        metrics=reader.read("metrics.csv", lambda: _metrics(path / "metrics.csv"), optional=strategy != "gradient")
        or {},
        losses={
            name: np.array([_number(of.get(name)) for of in losses])
            for name in dict.fromkeys(key for of in losses for key in of)
        },
        skipped=max((r["skipped"] for r in records if type(r.get("skipped")) is int), default=0),
        cells={name: replace(cell, final=found.get(name)) for name, cell in cells.items()},
        trials=tuple(reader.read(TRIALS, lambda: _trials(reader), optional=True) or ()),
        found=found,
        inputs=None if inputs is None else inputs.numpy(),
        comparison=comparison,
        retrainings=comparison.retrainings
        if comparison is not None
        else tuple(reader.read(RETRAININGS, lambda: _retrainings(reader), optional=True) or ()),
        length=_count(config, "search", "epochs"),
        expected=_expected(config, found),
        busy=in_use(path),
        notes=tuple(reader.notes),
    )


class _Reader:
    """Reads the files of a run, and notes what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    def read(self, name: str, how: Callable[[], Found], optional: bool = False) -> Found | None:
        """What `how` gives; None, with a note, if it raises an ActsearchError or the file is missing."""
        if not (self.path / name).is_file():
            if not optional:
                self.notes.append(f"{name} is missing")
            return None
        try:
            return how()
        except ActsearchError as error:
            self.notes.append(str(error))
            return None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a file; a last one that a kill cut off needs no words, others are noted."""
        lines, damaged = whole_json_lines(self.path / name)
        if damaged:
            self.left_out(name, damaged)
        return lines

    def left_out(self, name: str, n: int) -> None:
        self.notes.append(f"{name}: {n} line{'s are' if n > 1 else ' is'} damaged or cut off, and left out")


def _history(reader: _Reader, run: RunDirectory) -> list[dict[str, Any]]:
    records, lines = run.history(), reader.lines("genotypes.jsonl")
    # What a resumed search wrote again replaces what was there, though its rewind should have left nothing.
    found = sorted({r["epoch"]: r for r in records}.values(), key=lambda r: r["epoch"])
    if len(records) < len(lines):
        reader.left_out("genotypes.jsonl", len(lines) - len(records))
    return found


def _cells(reader: _Reader, records: Sequence[Mapping[str, Any]]) -> dict[str, CellRecord]:
    names = list(dict.fromkeys(name for record in records for name in record["cells"]))
    return {name: _cell(reader, name, [record["cells"].get(name, {}) for record in records]) for name in names}


def _cell(reader: _Reader, name: str, lines: Sequence[Mapping[str, Any]]) -> CellRecord:
    tables = [_table(line.get("probabilities")) for line in lines]
    slots = list(dict.fromkeys(slot for table in tables for slot in table))
    candidates = {slot: tuple(dict.fromkeys(op for table in tables for op in table.get(slot, {}))) for slot in slots}
    probabilities = {
        slot: np.array([[table.get(slot, {}).get(op, 0.0) for op in ops] for table in tables], dtype=np.float64)
        for slot, ops in candidates.items()
    }
    genotypes: list[Genotype | None] = []
    for line in lines:
        try:
            genotypes.append(Genotype.from_dict(line.get("genotype")))
        except ActsearchError:
            genotypes.append(None)
    if unread := genotypes.count(None):
        reader.notes.append(f"genotypes.jsonl: {unread} genotype(s) of cell {name} cannot be read")
    hits: list[dict[str, Any]] = [of if isinstance(of := line.get("clip_hits"), dict) else {} for line in lines]
    clipped = {
        key: np.array([np.nan_to_num(_number(of.get(key))) for of in hits])
        for key in dict.fromkeys(str(key) for of in hits for key in of)
    }
    return CellRecord(name, candidates, probabilities, tuple(genotypes), clipped)


def _table(probabilities: Any) -> dict[str, dict[str, float]]:
    """Probabilities by slot and candidate; what is no number is left out."""
    if not isinstance(probabilities, dict):
        return {}
    return {
        slot: {op: float(p) for op, p in of.items() if not math.isnan(_number(p))}
        for slot, of in probabilities.items()
        if isinstance(of, dict)
    }


def _found(reader: _Reader, cells: Mapping[str, CellRecord]) -> dict[str, Genotype]:
    """The final genotypes: genotype.json, or one for each of several cells."""
    if len(cells) < 2:
        files = {next(iter(cells), "network"): "genotype.json"}
    else:
        files = {name: f"genotype.{name}.json" for name in cells}
    read = {
        name: reader.read(file, lambda file=file: Genotype.load(reader.path / file), optional=True)  # type: ignore[misc]
        for name, file in files.items()
    }
    found = {name: genotype for name, genotype in read.items() if genotype is not None}
    return found if len(found) == len(files) else {}


def _trials(reader: _Reader) -> list[TrialRecord]:
    found, bad = [], 0
    for line in reader.lines(TRIALS)[1:]:  # the first tells what all have in common
        try:
            found.append(TrialRecord.from_dict(line))
        except (KeyError, TypeError, ValueError, AttributeError):
            bad += 1
    if bad:
        reader.left_out(TRIALS, bad)
    return found


def _retrainings(reader: _Reader) -> list[Retraining]:
    found, bad = [], 0
    for line in reader.lines(RETRAININGS)[1:]:
        try:
            found.append(retraining({k: v for k, v in line.items() if k != "function"}))
        except (KeyError, TypeError, AttributeError):
            bad += 1
    if bad:
        reader.left_out(RETRAININGS, bad)
    return found


def _metrics(path: Path) -> dict[str, Array]:
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8", errors="replace").splitlines()))
    except (OSError, csv.Error) as error:
        raise RunError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    names = [name for name in (rows[0] if rows else {}) if name and name != "phase"]
    return {name: np.array([_parsed(row.get(name)) for row in rows], dtype=np.float64) for name in names}


def _parsed(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else math.nan


def _count(config: Mapping[str, Any], section: str, key: str) -> int | None:
    values = config.get(section)
    found = values.get(key) if isinstance(values, dict) else None
    return found if type(found) is int and found > 0 else None


def _expected(config: Mapping[str, Any], found: Mapping[str, Genotype]) -> int:
    """How many retrainings the run's own comparison has; it has none if several functions were found."""
    compare = config.get("compare")
    if not isinstance(compare, dict) or compare.get("enabled") is not True or len(found) > 1:
        return 0
    activations, random = compare.get("activations"), compare.get("random")
    if not isinstance(activations, list) or type(random) is not int:
        return 0
    return (1 + len(activations) + random) * (_count(config, "compare", "seeds") or 0)


__all__ = ["CellRecord", "RunRecord", "is_run", "read_run"]
