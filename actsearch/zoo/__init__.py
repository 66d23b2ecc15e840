"""The zoo: functions known from the literature, and finds of our own; one JSON file each.

A new entry is one new file. Its genotype is of registered operations, so that it can be retrained, compared, drawn and
exported like any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from actsearch.errors import GenotypeError, UnknownNameError
from actsearch.genotype import Genotype

FORMAT = "actsearch.zoo"
PREFIX = "zoo:"
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A function of the zoo.

    Attributes:
        name: lower case, as in `zoo:NAME` and as its file is called.
        title: as people write it.
        genotype: the function; without a clip if it is a published one.
        kind: `published`, or `found` by a search of ours.
        aliases: other names that find it.
        reference: authors, year and where it was published; for a find, which run found it.
        origin: for a find: space, seed, task, score and whatever places it; empty for a published function.
        note: what a user should know.
    """

    name: str
    title: str
    genotype: Genotype
    kind: str
    aliases: tuple[str, ...] = ()
    reference: str = ""
    origin: Mapping[str, Any] | None = None
    note: str = ""


def names() -> tuple[str, ...]:
    """The names of all entries, without aliases, in alphabetical order."""
    return tuple(_entries())


def entry(name: str) -> Entry:
    """The entry of a name or an alias, with or without `zoo:` before it. Raises UnknownNameError."""
    key = name.removeprefix(PREFIX).lower()
    entries = _entries()
    aliases = {alias: found for found in entries.values() for alias in found.aliases}
    if key not in entries and key not in aliases:
        raise UnknownNameError("function of the zoo", name.removeprefix(PREFIX), [*entries, *aliases])
    return entries.get(key) or aliases[key]


def load(name: str) -> Genotype:
    """The genotype of an entry. Raises UnknownNameError."""
    return entry(name).genotype


@cache
def _entries() -> dict[str, Entry]:
    return {path.stem: _read(path) for path in sorted(_FOLDER.glob("*.json"))}


def _read(path: Path) -> Entry:
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("format") != FORMAT or data["name"] != path.stem:
        raise GenotypeError(
            f"{path} is not an entry of the zoo: its format must be {FORMAT!r} and its name {path.stem!r}"
        )
    # A genotype that leaves the zoo says where it is from.
    provenance = {"zoo": data["name"], "reference": data["reference"], **data.get("origin", {})}
    return Entry(
        name=data["name"],
        title=data["title"],
        genotype=Genotype.from_dict({**data["genotype"], "provenance": provenance}),
        kind=data["kind"],
        aliases=tuple(data.get("aliases", ())),
        reference=data["reference"],
        origin=data.get("origin"),
        note=data.get("note", ""),
    )
