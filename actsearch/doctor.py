"""The verb doctor: whether what actsearch needs is there and works, and what to do where it does not.

Nothing is imported at the top that may be what is broken.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actsearch.errors import ActsearchError
from actsearch.lock import locked

Level = Literal["ok", "warning", "error"]
COLOURS: Mapping[Level, str] = {"ok": "green", "warning": "yellow", "error": "bold red"}
LITTLE, TOO_LITTLE = 5e9, 2e8  # bytes of free disk; a run with pictures and two checkpoints takes some 1e7 to 1e9
COMPILING = 300  # seconds
PLAIN_WIDTH = 160
# What the extras are for; the others are for developers.
EXTRAS = {
    "onnx": "exports to ONNX",
    "text": "byte-pair encodings",
    "forcefield": "ANI-2, CHGNet, dynamics, readers",
    "postgresql": "studies on a PostgreSQL server",
}
_PROJECT = Path(__file__).parent.parent / "pyproject.toml"
_KERNELS = """
import warnings
warnings.simplefilter("error")
from actsearch.cell import piecewise
from actsearch.ops import tabulated
assert piecewise.library.kernels and tabulated.library.kernels
"""
_COMPILED = """
import torch
print(float(torch.compile(lambda x: (2 * x + 1).tanh().sum())(torch.ones(64))))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, what was found, and what to do about it."""

    check: str
    level: Level
    found: str
    advice: str = ""


def doctor(data_root: Path | None, run_root: Path, compile: bool = True, as_json: bool = False) -> bool:
    """Look at everything and print it; whether there is no error.

    Args:
        data_root: folder of the data; default: where readers look.
        run_root: folder of all runs; it is not made.
        compile: also run torch.compile and compile the kernels of tables, which takes up to a minute.
        as_json: print one JSON object instead of a table.
    """
    findings: list[Finding] = []
    checks: list[Callable[[], Iterator[Finding]]] = [
        python,
        packages,
        importable,
        torchvision_pair,
        processors,
        accelerators,
        *([compiler, kernels] if compile else []),
        lambda: data(data_root),
        lambda: disk(run_root),
    ]
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # a fault of one part must not hide what is said of the others
            name = getattr(check, "__name__", "check")
            findings.append(Finding(name, "error", _line(error), "this check itself failed"))
    if as_json:
        print(json.dumps({"ok": _is_well(findings), "checks": [asdict(f) for f in findings]}, indent=1))
    else:
        _show(findings)
    return _is_well(findings)


def _is_well(findings: Sequence[Finding]) -> bool:
    return all(finding.level != "error" for finding in findings)


def _show(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe: lines are not cut at 80 columns
        console = Console(highlight=False, width=PLAIN_WIDTH)
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    for f in findings:
        found = Text(f.found)
        if f.advice:
            found.append(f"\n→ {f.advice}" if console.encoding.startswith("utf") else f"\n-> {f.advice}", style="bold")
        table.add_row(Text(f.level, style=COLOURS[f.level]), Text(f.check), found)
    console.print(table)
    errors, warnings = (sum(f.level == level for f in findings) for level in ("error", "warning"))
    console.print(f"\n{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:299] + "…"


# -- versions ------------------------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    """The interpreter."""
    wanted = "3.11"
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < tuple(map(int, wanted.split("."))):
        yield Finding("python", "error", found, f"use Python {wanted} or newer")
    else:
        yield Finding("python", "ok", found)


def requirements() -> list[Requirement]:
    """What the project asks for: of the checkout, else of the installed package."""
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
        asked = [Requirement(text) for text in project["dependencies"]]
        for extra, texts in project["optional-dependencies"].items():
            asked += [Requirement(f"{text}; extra == '{extra}'") for text in texts]
        return asked
    return [Requirement(text) for text in metadata.requires("actsearch") or []]


def packages() -> Iterator[Finding]:
    """Installed versions against what the project asks for; one line for each dependency and each extra."""
    extras: dict[str, list[Requirement]] = {name: [] for name in EXTRAS}
    for asked in requirements():
        extra = re.search(r"extra == ['\"](\w+)['\"]", str(asked.marker or ""))
        if extra is None:
            yield _needed(asked)
        elif extra[1] in extras:
            extras[extra[1]].append(asked)
    for name, all_asked in extras.items():
        yield _extra(name, all_asked)


def _version(asked: Requirement) -> str | None:
    try:
        return metadata.version(asked.name)
    except metadata.PackageNotFoundError:
        return None


def _fits(asked: Requirement, version: str) -> bool:
    # A build such as 2.13.0+cpu or a nightly one is of that version.
    return asked.specifier.contains(Version(version).base_version, prereleases=True)


def _needed(asked: Requirement) -> Finding:
    version = _version(asked)
    install = f"pip install '{asked.name}{asked.specifier}'"
    if version is None:
        return Finding(asked.name, "error", "not installed", install)
    if not _fits(asked, version):
        return Finding(asked.name, "error", f"{version}, not {asked.specifier}", install)
    return Finding(asked.name, "ok", version)


def _extra(name: str, all_asked: Sequence[Requirement]) -> Finding:
    found = {asked.name: _version(asked) for asked in all_asked}
    there = {name: version for name, version in found.items() if version is not None}
    install = f"pip install 'actsearch[{name}]'"
    purpose = EXTRAS[name]
    if not there:
        return Finding(f"[{name}]", "ok", f"not installed; for {purpose}: {install}")
    listed = ", ".join(f"{package} {version}" for package, version in there.items())
    old = [a for a in all_asked if a.name in there and not _fits(a, there[a.name])]
    lacking = [package for package in found if package not in there]
    if old:
        wrong = f"{listed}; too old or too new: {', '.join(f'{a.name} (asked: {a.specifier})' for a in old)}"
        return Finding(f"[{name}]", "warning", wrong, install)
    if lacking:
        partly = f"{listed}; not installed: {', '.join(lacking)}"
        return Finding(f"[{name}]", "warning", partly, f"for {purpose}: {install}")
    return Finding(f"[{name}]", "ok", listed)


# -- what is installed works ---------------------------------------------------------------------------------------


def importable() -> Iterator[Finding]:
    """The packages that everything stands on can be imported, as they are imported here."""
    for name in ("torch", "actsearch._torchvision", "pytorch_lightning", "torchmetrics", "sympy", "matplotlib"):
        try:
            importlib.import_module(name)
        except Exception as error:
            advice = "install it again, in a fresh environment, with the versions of constraints.txt"
            yield Finding(f"import {name}", "error", _line(error), advice)
            return
    yield Finding("imports", "ok", "torch, torchvision, pytorch_lightning, torchmetrics, sympy, matplotlib")


def torchvision_pair() -> Iterator[Finding]:
    """torchvision and torch belong together by version, and by what they are built for."""
    import torch

    from actsearch import _torchvision

    try:
        versions = Version(metadata.version("torch")), Version(metadata.version("torchvision"))
    except metadata.PackageNotFoundError:
        return  # said above
    pair = f"torch {versions[0]}, torchvision {versions[1]}"
    # 2.6 goes with 0.21, and so on.
    if versions[0].major == 2 and versions[1].major == 0 and versions[1].minor != versions[0].minor + 15:
        fitting = f"torchvision==0.{versions[0].minor + 15}.*"
        yield Finding("torchvision", "warning", f"{pair} are not of one release", f"pip install '{fitting}'")
    elif _torchvision._library is not None:
        kind = "CUDA" if torch.version.cuda is None else "another CUDA"
        yield Finding(
            "torchvision",
            "warning",
            f"{pair}: its compiled operators do not load, for they are built for {kind}; actsearch does without them",
            "other programs may stop at `import torchvision`; install both from the same index, such as PyTorch's for "
            "CPU, to mend it",
        )
    else:
        yield Finding("torchvision", "ok", pair)


def processors() -> Iterator[Finding]:
    """Cores, threads of torch, and how busy they are."""
    import torch

    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{platform.machine()}, {there} cores, {threads} threads of torch"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > there:
        yield Finding("cpu", "warning", found, f"set OMP_NUM_THREADS={there}, or --trainer.threads {there}")
    elif load > 1.5 * there:
        advice = "other programs use the cores: a search takes longer; times that are measured now mean little"
        yield Finding("cpu", "warning", f"{found}, load {load:.1f}", advice)
    else:
        yield Finding("cpu", "ok", found)


def accelerators() -> Iterator[Finding]:
    """GPUs that torch can use, and those that it cannot."""
    import torch

    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(k)
            free = torch.cuda.mem_get_info(k)[0]
            memory = f"{free / 2**30:.0f} of {facts.total_memory / 2**30:.0f} GiB free"
            try:
                float(torch.ones(2, device=f"cuda:{k}").sum())
            except RuntimeError as error:
                advice = "another program may hold it; or torch is not built for it"
                yield Finding(f"gpu {k}", "error", f"{facts.name}: {_line(error)}", advice)
                continue
            level: Level = "ok" if free > facts.total_memory / 4 else "warning"
            advice = "" if level == "ok" else "other programs hold its memory"
            yield Finding(f"gpu {k}", level, f"{facts.name}, {memory}", advice)
    elif Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        why = "built for CPU" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        advice = "install a torch for the CUDA of the driver, or look whether nvidia-smi runs"
        yield Finding("gpu", "warning", f"there is one, which torch ({why}) cannot use", advice)
    else:
        yield Finding("gpu", "ok", "none: everything runs on the CPU")


def compiler() -> Iterator[Finding]:
    """torch.compile on the CPU, in a process and a cache of its own, so that nothing is taken from an earlier run."""
    works = f"torch.compile works ({_cxx() or 'its compiler is not in PATH'})"
    yield _compiling("compiler", "torch.compile", _COMPILED, "TORCHINDUCTOR_CACHE_DIR", works)


def kernels() -> Iterator[Finding]:
    """The project's own kernels for CPUs, in the same way."""
    yield _compiling(
        "kernels", "the compiler of tables' kernels", _KERNELS, "XDG_CACHE_HOME", "those of tables compile"
    )


def _compiling(check: str, what: str, code: str, cache_variable: str, works: str) -> Finding:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, cache_variable: cache}
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                timeout=COMPILING,
            )
        except subprocess.TimeoutExpired:
            return Finding(check, "warning", f"{what} took longer than {COMPILING} s", _INSTALL)
    if done.returncode == 0:
        return Finding(check, "ok", works)
    return Finding(check, "warning", f"{what} fails: {_reason(done.stderr)}", _INSTALL)


_INSTALL = (
    "searches run without, but slower: install a C++ compiler with OpenMP (GCC or Clang) and the headers of "
    "Python (on Debian: g++ and python3-dev), or set CXX"
)


def _reason(output: str) -> str:
    """The telling line of what a failed compilation wrote: the compiler's own error, else Python's, else the last."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    for telling in (r"\berror: ", r"^[\w.]+(Error|Exception|Compiler): ", ""):
        if found := [line for line in lines if re.search(telling, line)]:
            return found[-1][:300]
    return "it ended without a word"


def _cxx() -> str | None:
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")))), None)


# -- data and disk -------------------------------------------------------------------------------------------------


def data(root: Path | None) -> Iterator[Finding]:
    """The folder of the data can be read."""
    given = root is not None or bool(os.environ.get("ACTSEARCH_DATA"))
    folder = root if root is not None else Path(os.environ.get("ACTSEARCH_DATA") or "~/.cache/actsearch/data")
    folder = folder.expanduser()
    where = f"{folder}" + ("" if root is not None else " (ACTSEARCH_DATA)" if given else " (the default)")
    if not folder.exists():
        if given:
            yield Finding("data", "error", f"{where} is not there", "give another by --data.root or ACTSEARCH_DATA")
        else:
            yield Finding("data", "ok", f"{where} is not there yet; it is made when something is downloaded")
        return
    try:
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
            unreadable = [name for name in names if not os.access(folder / name, os.R_OK)]
            listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            found = f"{where}: {listed}" if names else f"{where} is empty"
        else:
            with folder.open("rb") as file:
                file.read(1)
            unreadable, found = [], where
    except OSError as error:
        yield Finding("data", "error", f"{where} cannot be read: {error.strerror or error}", "ask for the rights to it")
        return
    if unreadable:
        yield Finding("data", "warning", f"{where}: {', '.join(unreadable[:5])} cannot be read", "ask for the rights")
    else:
        yield Finding("data", "ok", found)


def disk(root: Path) -> Iterator[Finding]:
    """Runs can be written and locked, and there is room for them, and for what is written on the way."""
    there = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    name = f"{root}" if there == root.absolute() else f"{root} (in {there})"
    try:
        with tempfile.TemporaryDirectory(prefix=".actsearch-doctor-", dir=there) as trial, locked(trial):
            Path(trial, "file").write_bytes(b"\0" * 4096)
    except (OSError, ActsearchError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        yield Finding("runs", "error", f"{name} cannot be written: {reason}", "choose another folder by --run.root")
        return
    yield Finding("runs", "ok", f"{name} can be written")
    for label, path in (("disk", there), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(path).free
        found = f"{free / 1e9:.1f} GB free at {path}"
        if free < TOO_LITTLE:
            yield Finding(label, "error", found, "make room: a run stops when it cannot be written")
        elif free < LITTLE:
            yield Finding(label, "warning", found, "enough for small runs; checkpoints of a large model may fill it")
        else:
            yield Finding(label, "ok", found)
