"""The errors that a user can mend: one line each, and what to do about it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class ActsearchError(Exception):
    """Base of every error that actsearch raises on purpose; the command line prints it as one line and exits with 2."""

    exit_code = 2


class UnknownNameError(ActsearchError, KeyError):
    """A name that no registry, file or key has; the message lists near matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(unknown_name(kind, name, known))

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return str(self.args[0])


class SpaceError(ActsearchError, ValueError):
    """A search space that cannot be searched: a cycle, an empty slot, a constraint that nothing meets."""


class GenotypeError(ActsearchError, ValueError):
    """A genotype that cannot be read, or that does not fit what it is used with."""


class SettingsError(ActsearchError, ValueError):
    """A setting outside its range, or two settings that contradict each other."""


class SwapError(ActsearchError, ValueError):
    """A model in which no activation could be replaced."""


class SmoothnessError(SwapError):
    """An activation that is less smooth than the model needs."""


class TaskError(ActsearchError, ValueError):
    """A task or datamodule that a search cannot drive."""


class DataError(ActsearchError, ValueError):
    """Data that is missing, or not what its name promises."""


class RunError(ActsearchError, OSError):
    """A run directory that cannot be written, read or resumed."""


class EvaluatorError(ActsearchError, RuntimeError):
    """A derivative was asked of a table that it does not hold."""


class NonFiniteError(ActsearchError, ArithmeticError):
    """Losses stayed NaN or infinite for longer than a search may skip; or energies or forces of atoms are."""


class RankError(ActsearchError, RuntimeError):
    """Of the processes that share a training one is gone, or they no longer hold the same."""


class MissingPackageError(ActsearchError, ImportError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'actsearch[{extra}]'")


class Stopped(ActsearchError):
    """The process was told to end, by Ctrl-C or by the SIGTERM of a scheduler; what was done is kept."""

    def __init__(self, message: str, by_user: bool) -> None:
        super().__init__(message)
        self.exit_code = 130 if by_user else 0


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line that says that `name` is not a `kind` and which names come near."""
    known = sorted(str(k) for k in known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    listed = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"unknown {kind} {name!r}; known: {listed}"


def without_passwords(text: str) -> str:
    """`text` with *** for the password of every URL in it: what is printed or kept may be read by others.

    A password that holds a sign which a URL would encode, such as @ or /, is found all the same, and one in a URL whose
    scheme was forgotten.
    """
    text = re.sub(r"(://[^\s:/@'\"]*):[^\s'\"]*@", r"\1:***@", text)
    text = re.sub(r"(?<![^\s'\"=])([^\s:/@'\"=]+):(?!//)[^\s'\"]+@", r"\1:***@", text)
    return re.sub(r"(?i)(\w*(?:password|passwd|pwd)=)[^\s&'\"]+", r"\1***", text)
