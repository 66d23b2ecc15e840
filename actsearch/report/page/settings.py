"""Settings: configuration, space and versions as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actsearch.space import SearchSpace

Pairs = tuple[tuple[str, str], ...]


def sections(config: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """The sections of a configuration, flat; what stands in none comes first."""
    single = tuple((str(key), _word(value)) for key, value in config.items() if not isinstance(value, dict))
    found = [("", single)] if single else []
    found += [(str(key), tuple(_flat(value))) for key, value in config.items() if isinstance(value, dict) and value]
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, _word(value))]
    return pairs


def _word(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return str(value)


def of_space(space: SearchSpace) -> Pairs:
    """What a space holds."""
    slots = ((f"slot {slot.name}({', '.join(slot.inputs)})", ", ".join(slot.candidates)) for slot in space.slots)
    clip = "none" if space.clip.kind == "none" else f"{space.clip.kind}, at {space.clip.limit:g}"
    return (
        ("name", space.name),
        ("functions", f"{space.size:,}"),
        ("shared by", f"the {space.sharing}" if space.sharing == "network" else f"each {space.sharing}"),
        ("clip", clip),
        *slots,
        ("hash", space.hash),
    )


def of_environment(environment: Mapping[str, Any]) -> Pairs:
    """Versions and machine."""
    pairs = [
        (str(key).replace("_", " "), _word(value))
        for key, value in environment.items()
        if not isinstance(value, dict) and key != "command"
    ]
    packages = environment.get("packages")
    pairs += [(str(k), str(v)) for k, v in packages.items()] if isinstance(packages, dict) else []
    return tuple(pairs)
