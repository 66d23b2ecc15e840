"""Command-line options with manners: named configurations, near matches, and errors of one line."""

from __future__ import annotations

import dataclasses
import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from actsearch.config import Config, sections, singles
from actsearch.errors import SettingsError, UnknownNameError, unknown_name
from actsearch.files import find_named, named_files, read_yaml
from actsearch.work import Mode

# By default a mapping with the key class_path, in a value of any type, would be imported and called.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["*"])


def make_parser(usage: str, description: str = "") -> ArgumentParser:
    """A parser that raises instead of ending the process."""
    return ArgumentParser(
        usage=usage, description=description, exit_on_error=False, allow_abbrev=False, default_env=False
    )


def parse(parser: ArgumentParser, arguments: Sequence[str], cls: type | None = None) -> Any:
    """The parsed arguments, those of the configuration `cls` among them.

    Raises SettingsError or UnknownNameError, with near matches, in one line.
    """
    try:
        parsed = parser.parse_args(list(arguments))
        if cls is not None:
            _check_null(parsed, cls)
        return parser.instantiate(parsed)
    except ArgumentError as error:
        raise _explained(str(error), parser) from None
    except OverflowError as error:  # of a whole number with hundreds of digits, where jsonargparse wants a float
        raise SettingsError(f"a number among the settings is too large: {error}") from None


def _explained(message: str, parser: ArgumentParser) -> Exception:
    """An argparse message as an error of ours."""
    line = " ".join(message.split())
    if found := re.search(r"nrecognized arguments: (--?[^\s=]+)", line):
        known = [o for action in parser._actions for o in action.option_strings]
        return UnknownNameError("option", found[1], known)
    if found := re.match(r'Parser key "([^"]+)": Expected an? (.*?)\. Got value: (.*)$', line):
        key, expected, value = found[1], found[2], found[3]
        if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", expected):
            return SettingsError(unknown_name(f"value of {key}", value, re.findall(r"[\w-]+", choices[1])))
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace("typing.", "")
        return SettingsError(f"{key} must be of type {expected}, not {value!r}")
    return SettingsError(line)


def add_progress(parser: ArgumentParser) -> None:
    """`--progress`, of the verbs that take a while."""
    parser.add_argument(
        "--progress",
        type=Mode,
        default=SUPPRESS,  # it is no part of the configuration that is printed
        help="default, auto: live in a terminal, lines elsewhere; plain: lines without colours; quiet: only errors; "
        "json: one JSON object a line on standard output, for programs",
    )


def progress_of(parsed: Any) -> Mode:
    """What `--progress` says."""
    return parsed.get("progress", "auto")


# -- configurations ------------------------------------------------------------------------------------------------


def add_config(parser: ArgumentParser, cls: type[Config], unused: Collection[str] = ()) -> None:
    """`--config`, and an option for every key of the configuration `cls`.

    Of `unused` keys, and sections, the verb takes no notice: a file may hold them, and the help does not list them.
    """
    parser.add_argument(
        "--config",
        action="config",
        metavar="NAME|FILE",
        help=f"settings to start from: one of {', '.join(named_files(cls.folder))}, or a YAML file; default: default",
    )
    for name, kind in singles(cls).items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(cls, name), help=_help_of(cls, name))
    for name, section in sections(cls).items():
        parser.add_class_arguments(section, name)
    for action in parser._actions:
        if _is_of(action.dest, unused):
            action.help = SUPPRESS


def _is_of(key: str, unused: Collection[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in unused)


def _help_of(cls: type, name: str) -> str:
    """What the docstring of `cls` says of its argument `name`."""
    arguments = (cls.__doc__ or "").split("Args:")[1]
    found = re.search(rf"^ +{name}: (.*?)(?=^ +\w+: |\Z)", arguments, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{cls.__name__} does not tell what {name} is"
    return " ".join(found[1].split())


def read_config(
    parser: ArgumentParser,
    arguments: Sequence[str],
    cls: type[Config],
    start: Config | None = None,
    unused: Collection[str] = (),
) -> tuple[Config, Any]:
    """The configuration that `arguments` describe, and everything that was parsed, for the parser's other arguments.

    Whatever their order, options override files; of several files the later overrides the earlier. Without a file it is
    `start`, or the shipped `default`. Raises SettingsError, as for an option of `unused` keys, or UnknownNameError.
    """
    for argument in arguments:
        key = argument.partition("=")[0].removeprefix("--")
        if argument.startswith("--") and _is_of(key, unused):
            raise SettingsError(f"--{key} has no part in this verb; leave it out")
    names, others = taken("--config", arguments)
    if start is None and not names:
        names = ["default"]
    elif start is not None and not names:
        parser.set_defaults({key: _value(start, key) for key in keys(cls)})
    chosen = [find_named("configuration", cls.folder, name) for name in names]
    for file in chosen:
        check_keys(read_yaml(file, SettingsError), file, cls)
    parsed = parse(parser, [*(f"--config={file}" for file in chosen), *others], cls)
    return cls(**{name: parsed[name] for name in (*singles(cls), *sections(cls))}), parsed


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def taken(option: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values that `arguments` give to `option`, and the other arguments. Raises SettingsError if one lacks."""
    values, others = [], []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == option:
            value = next(waiting, "--")
            if value.startswith("--"):
                raise SettingsError(f"{option} needs a value")
            values.append(value)
        elif argument.startswith(f"{option}="):
            values.append(argument.partition("=")[2])
        else:
            others.append(argument)
    return values, others


def dotted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options with a dot in their name, each as one --KEY=VALUE, and the other arguments. Raises SettingsError."""
    found, others = [], []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, _ = argument.partition("=")
        if not re.fullmatch(r"--\w+(\.\w+)+", name):
            others.append(argument)
            continue
        value = "" if equals else next(waiting, "--")
        if value.startswith("--"):
            raise SettingsError(f"{name} needs a value")
        found.append(argument if equals else f"{name}={value}")
    return found, others


def check_keys(content: Mapping[str, Any], file: Path | str, cls: type) -> None:
    """Raise UnknownNameError, with near matches, for a key that no setting of the configuration `cls` has."""
    known = set(keys(cls))
    holders = {key.rpartition(".")[0] for key in known} - {""}
    for key, value in _flat(content, holders):
        if key in holders:
            raise SettingsError(f"{file}: section {key!r} must hold keys and values, not {value!r}")
        if key not in known:
            section = key.rpartition(".")[0]
            siblings = [k for k in known | holders if k.rpartition(".")[0] == section]
            raise UnknownNameError(f"key in {file}:", key, siblings)


def check_key(key: str, cls: type) -> None:
    """Raise UnknownNameError for a dotted key that the configuration `cls` lacks; a mapping takes any further ones."""
    known = list(keys(cls))
    mappings = [name for name in known if isinstance(_value(cls(), name), dict)]
    if key not in known and not any(key.startswith(f"{name}.") for name in mappings):
        raise UnknownNameError(f"setting of a {cls.__name__.removesuffix('Config').lower()}", key, known)


def _check_null(parsed: Any, cls: type) -> None:
    """Raise SettingsError for null where a value is needed, which jsonargparse lets through."""
    for key in _needed(cls):
        if parsed.get(key) is None:
            raise SettingsError(f"{key} must not be empty (null): give a value, or leave it out")


def _needed(cls: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings in sections of a configuration whose types do not admit null."""
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _needed(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif prefix and get_origin(hint) is not ClassVar and type(None) not in get_args(hint):
            yield prefix + name


def keys(cls: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings in a dataclass of dataclasses."""
    default = cls()
    for field in dataclasses.fields(cls):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(type(value), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _flat(content: Mapping[str, Any], sections: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in sections and isinstance(value, Mapping):
            yield from _flat(value, sections, f"{key}.")
        else:
            yield key, value
