"""The retrainings of a comparison on disk: one line of JSON each, written as it ends, read back to go on."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actsearch.compare.contestants import Contestant
from actsearch.compare.retrain import Retraining
from actsearch.errors import RunError
from actsearch.files import append_line, read_json_lines, write_text

FILE = "retrainings.jsonl"


class Records:
    """The file `retrainings.jsonl` of a directory. Its first line holds what all retrainings have in common.

    Args:
        directory: is made if need be.
        common: plain data that decides the results: budget, training, data, model. None of it may differ from that of
            the retrainings that are there.
        contestants: whose results are read; those of others stay in the file.

    A line that a kill cut off is removed. Raises RunError for what cannot be read or written, or does not fit.
    """

    def __init__(self, directory: Path | str, common: Mapping[str, Any], contestants: Sequence[Contestant]) -> None:
        self.path = Path(directory) / FILE
        self.done: dict[tuple[str, int], Retraining] = {}
        self._identity = {c.name: c.identity for c in contestants}
        # As it will be read again: tuples become lists there.
        common = json.loads(json.dumps(plain(common)))
        lines = self._lines()
        if not lines:
            write_text(self.path, json.dumps(common) + "\n")
            return
        if different := list(_differences(lines[0], common)):
            raise RunError(
                f"{self.path} holds retrainings under other conditions ({'; '.join(different[:3])}); use a new folder"
            )
        for line in lines[1:]:
            self._take(line)

    def add(self, result: Retraining) -> None:
        """Append a result."""
        self.done[result.activation, result.seed] = result
        line = {"function": self._identity[result.activation], **plain_retraining(result)}
        append_line(self.path, json.dumps(line))

    def _take(self, line: dict[str, Any]) -> None:
        function = line.pop("function", None)
        try:
            result = retraining(line)
        except (TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{self.path} holds a line that is no retraining ({error}): delete the line, and it is done again, or "
                "use a new folder"
            ) from None
        if result.activation not in self._identity:
            return
        if function != self._identity[result.activation]:
            raise RunError(
                f"{self.path} holds results of another function named {result.activation!r}: {function}, not "
                f"{self._identity[result.activation]}; use a new folder"
            )
        self.done[result.activation, result.seed] = result

    def _lines(self) -> list[dict[str, Any]]:
        return read_json_lines(self.path, "delete the line, and its retraining is done again, or use a new folder")


def plain_retraining(result: Retraining) -> dict[str, Any]:
    """Plain data that `retraining` reads back."""
    return plain(dataclasses.asdict(result))


def retraining(data: Mapping[str, Any]) -> Retraining:
    """A Retraining from plain data; what was not finite is NaN again.

    Raises TypeError for values of other kinds, and for keys that are unknown or missing.
    """
    values = dict(data)
    for name, fits in _FITS.items():
        if name in values and not fits(values[name]):
            raise TypeError(f"{name} is {reprlib.repr(values[name])}")
    for name in ("seconds", "step_seconds"):
        values[name] = math.nan if values[name] is None else values[name]
    values["metrics"] = {k: math.nan if v is None else v for k, v in values["metrics"].items()}
    return Retraining(**values)


def _is_count(value: Any) -> bool:
    return type(value) is int


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_curve(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, list) and all(map(_is_number, v)) for v in value.values())


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "activation": _is_text,
    "seed": _is_count,
    "metrics": _is_metrics,
    "failure": _is_text,
    "curve": _is_curve,
    "seconds": _is_number,
    "step_seconds": _is_number,
    "peak_memory": lambda value: value is None or _is_count(value),
    "added_parameters": _is_count,
    "parameters": _is_count,
    "device": _is_text,
    "jobs": _is_count,
}


def plain(value: Any) -> Any:
    """Plain data for JSON; a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Where two pieces of plain data differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {json.dumps(old)} there, {json.dumps(new)} here"
