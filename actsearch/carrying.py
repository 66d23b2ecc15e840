"""The verbs of the command line that carry a function away: export, and zoo."""

from __future__ import annotations

import json
import os
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sympy
import torch
from rich.table import Table
from torch import Tensor

from actsearch import zoo as functions
from actsearch.activation import Activation, load
from actsearch.errors import RunError, SettingsError, UnknownNameError
from actsearch.export import parity
from actsearch.export.numpy import to_numpy_source
from actsearch.export.onnx import load_onnx, missing_packages, to_onnx
from actsearch.export.parity import Parity
from actsearch.export.program import load_program, to_program
from actsearch.export.source import names, to_source
from actsearch.export.symbolic import to_latex, to_sympy_source
from actsearch.files import write_text
from actsearch.genotype import Genotype
from actsearch.report import terminal
from actsearch.report.facts import number
from actsearch.report.plots import draw_activation, save
from actsearch.run import RunDirectory
from actsearch.swap.smoothness import smoothness_in_words

console = terminal.make_console()

# Beyond it an export is not what it should be: of the value, and of the derivatives.
TOLERANCE = (1e-5, 1e-4)


@dataclass(frozen=True)
class Form:
    """A form in which a function can be written.

    Attributes:
        ending: of the file's name, after the function's.
        write: `(genotype, name, path)` writes it.
        check: `(path, activation, inputs)` reads it back and compares; None if there is nothing to run.
    """

    ending: str
    write: Callable[[Genotype, str | None, Path], object]
    check: Callable[[Path, Activation, Tensor | None], Parity] | None


def _run_text(path: Path) -> types.SimpleNamespace:
    """What a Python file that we have just written defines."""
    space: dict[str, Any] = {"__name__": path.stem}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    return types.SimpleNamespace(**space)


def _check_source(path: Path, activation: Activation, inputs: Tensor | None) -> Parity:
    (cls,) = (v for v in vars(_run_text(path)).values() if isinstance(v, type) and v.__module__ == path.stem)
    return parity.of_torch(activation, cls(), parity.points(inputs))


def _check_numpy(path: Path, activation: Activation, inputs: Tensor | None) -> Parity:
    found = [v for v in vars(_run_text(path)).values() if isinstance(v, types.FunctionType)]
    return parity.of_numpy(activation, found[-1], parity.points(inputs))


def _check_sympy(path: Path, activation: Activation, inputs: Tensor | None) -> Parity:
    found = _run_text(path)
    function = sympy.lambdify(found.x, found.expression, ["scipy", "numpy"])
    # Without the guards, so without the far points.
    with np.errstate(all="ignore"):
        return parity.of_numpy(
            activation, lambda x: np.broadcast_to(function(x), x.shape), parity.points(inputs, far=False)
        )


def _check_onnx(path: Path, activation: Activation, inputs: Tensor | None) -> Parity:
    run = load_onnx(path)
    return parity.of_single(activation, lambda x: run(x[None])[0][0], parity.points(inputs))


def _check_program(path: Path, activation: Activation, inputs: Tensor | None) -> Parity:
    run = load_program(path)
    return parity.of_torch(activation, lambda x: run(x[None])[0], parity.points(inputs), torch.float32)


def _text(to_text: Callable[[Genotype, str | None], str]) -> Callable[[Genotype, str | None, Path], object]:
    return lambda genotype, name, path: write_text(path, to_text(genotype, name))


FORMS: Mapping[str, Form] = {
    "source": Form(".py", _text(to_source), _check_source),
    "numpy": Form("_numpy.py", _text(to_numpy_source), _check_numpy),
    "onnx": Form(".onnx", lambda genotype, name, path: to_onnx(Activation(genotype), path), _check_onnx),
    "torch": Form(".pt2", lambda genotype, name, path: to_program(Activation(genotype), path), _check_program),
    "sympy": Form("_sympy.py", _text(to_sympy_source), _check_sympy),
    "latex": Form(".tex", _text(lambda genotype, name: to_latex(genotype)), None),
    "json": Form(".json", lambda genotype, name, path: genotype.save(path), None),
}


def export(source: str, forms: Sequence[str], out: Path | None, name: str | None, trainable: bool, force: bool) -> None:
    """Write the function of a run, a file or the zoo in some forms, all of them or none, and print their errors."""
    genotype, inputs, folder = _read(source)
    chosen = _chosen(forms)
    if trainable and chosen != ["source"]:
        raise SettingsError("--trainable is for --to source alone")
    stem = names(genotype, name)[1]
    paths = {form: (out or folder) / (stem + FORMS[form].ending) for form in chosen}
    if out is not None and out.suffix and not out.is_dir():
        if len(chosen) > 1:
            raise SettingsError(f"--out {out} is one file, and {len(chosen)} forms are asked for; give a folder")
        paths = {chosen[0]: out}
    for path in paths.values():
        if path.exists() and not force:
            raise RunError(f"{path} is already there; give --force to overwrite it, or another --out")
    try:
        lines = _write(paths, genotype, inputs, name, trainable)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"cannot write {error.filename or next(iter(paths.values()))}: {error.strerror}") from None
    for line in lines:
        _say(line)


def _write(
    paths: Mapping[str, Path], genotype: Genotype, inputs: Tensor | None, name: str | None, trainable: bool
) -> list[str]:
    """Write every form to its path, or none; a line for each."""
    activation = Activation(genotype)
    lines = []
    for path in paths.values():
        _make_folder(path.parent)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=next(iter(paths.values())).parent) as temporary:
        for form, path in paths.items():
            written = Path(temporary, path.name)
            if trainable:
                write_text(written, to_source(genotype, name, trainable=True))
            else:
                FORMS[form].write(genotype, name, written)
            check = FORMS[form].check
            lines.append(f"{path}  {'' if check is None else _in_words(check(written, activation, inputs))}".rstrip())
        for path in paths.values():
            os.replace(Path(temporary, path.name), path)
    return lines


def _read(source: str) -> tuple[Genotype, Tensor | None, Path]:
    """The genotype, the recorded inputs, and the folder that an export goes to."""
    if source.startswith(functions.PREFIX):
        return functions.load(source), None, Path()
    path = Path(source)
    genotype = load(path).genotype
    return (
        (genotype, RunDirectory(path).read_inputs(), path / "export")
        if path.is_dir()
        else (genotype, None, path.parent)
    )


def _chosen(forms: Sequence[str]) -> list[str]:
    for form in forms:
        if form not in (*FORMS, "all"):
            raise UnknownNameError("form of export", form, [*FORMS, "all"])
    if "all" not in forms:
        return list(dict.fromkeys(forms))
    absent = missing_packages()
    if absent:
        _say(f"no ONNX: {', '.join(absent)} not installed (pip install 'actsearch[onnx]')")
    return [form for form in FORMS if form != "onnx" or not absent]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def _in_words(errors: Parity) -> str:
    derivatives = [error for error in (errors.first, errors.second) if error is not None]
    good = errors.value <= TOLERANCE[0] and all(error <= TOLERANCE[1] for error in derivatives)
    return f"{errors}{'' if good else '; MORE THAN EXPECTED: look before you use it'}"


# -- the zoo -------------------------------------------------------------------------------------------------------


def list_zoo() -> None:
    """The functions of the zoo in a table."""
    table = Table("name", "formula", "smoothness at least", "gain", "reference", box=None)
    for name in functions.names():
        entry = functions.entry(name)
        table.add_row(
            name,
            entry.genotype.formula,
            smoothness_in_words(entry.genotype.smoothness),
            number(Activation(entry.genotype).gain),
            entry.reference if entry.kind == "published" else f"{entry.kind}: {entry.reference}",
        )
    console.print(table)


def show_zoo(name: str, png: Path | None) -> None:
    """What is known of an entry; drawn into `png` as well if that is given."""
    entry = functions.entry(name)
    _say(f"{entry.title}  ({entry.reference})")
    if entry.note:
        _say(entry.note)
    for key, value in (entry.origin or {}).items():
        _say(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    terminal.show(entry.genotype, None, console)
    if png is not None:
        _say(f"picture  {save(draw_activation(Activation(entry.genotype), None), png)}")


def use_zoo(name: str, out: Path | None) -> None:
    """Write the genotype of an entry, and say how it is used."""
    entry = functions.entry(name)
    path = out or Path(f"{entry.name}.json")
    if path.exists():
        raise RunError(f"{path} is already there; give another --out")
    entry.genotype.save(path)
    _say(f"{path}  {entry.genotype.formula}\n\nimport actsearch")
    _say(f"actsearch.swap(model, actsearch.load({str(path)!r}))  # or: actsearch.load('zoo:{entry.name}')")


def _say(line: str) -> None:
    console.print(terminal.plain(line, console), markup=False, highlight=False, soft_wrap=True)
