"""Trained models of a comparison on disk, as plain data and tensors."""

from __future__ import annotations

import io
import numbers
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actsearch import models
from actsearch.compare.contestants import Contestant, from_origin
from actsearch.errors import ActsearchError, RunError, SettingsError
from actsearch.files import is_whole_archive, write_atomically
from actsearch.swap import swap

FOLDER = "models"
_FORMAT = 1
_OMITTED = object()


def model_file(directory: Path | str, name: str, seed: int) -> Path:
    """Where the model of a contestant and a seed lies."""
    return Path(directory) / FOLDER / f"{_safe(name)}-{seed}.pt"


def check(contestants: Sequence[Contestant]) -> None:
    """Raise SettingsError if a model with one of them cannot be described, or two of them would lie in one file."""
    for contestant in contestants:
        if not contestant.origin:
            raise SettingsError(
                f"models with {contestant.name}, which was made by hand, cannot be saved; make it by "
                "actsearch.compare.contestant, or leave save_models out"
            )
    names = [contestant.name for contestant in contestants]
    files = [_safe(name) for name in names]
    for k, file in enumerate(files):
        if file in files[:k]:
            raise SettingsError(
                f"the models of {names[files.index(file)]} and {names[k]} would be one file; rename one"
            )


def save_model(path: Path | str, model: nn.Module, built: Mapping[str, Any], contestant: Contestant) -> Path:
    """Write `model`, whole or not at all, so that `load_model` builds it again.

    Args:
        built: how it was built: `model` (its name), `options` and `facts`, as of `actsearch.models.build`. Facts that
            are not plain data are left out; a builder gets None for them, so buffers must come from the state.
        contestant: what was swapped in.

    Raises SettingsError for a contestant or options that cannot be written so, and RunError.
    """
    check([contestant])
    facts = {name: plain(value) for name, value in built["facts"].items()}
    options = plain(built["options"])
    if options is _OMITTED:
        raise SettingsError(f"options of model {built['model']} are no plain data, so it cannot be saved")
    content = {
        "actsearch_model": _FORMAT,
        "model": built["model"],
        "options": options,
        "facts": {name: value for name, value in facts.items() if value is not _OMITTED},
        "omitted": [name for name, value in facts.items() if value is _OMITTED],
        "contestant": {"name": contestant.name, "origin": plain(contestant.origin), "shared": contestant.shared},
        "state": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
    }
    # Not by torch itself, whose errors do not tell that a disk is full.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_model(path: Path | str) -> nn.Module:
    """The trained model that `save_model` wrote, in evaluation mode and on the CPU.

    Reading executes no code of the file. Raises RunError for a file that is missing or holds something else.
    """
    content = _read(Path(path))
    try:
        facts = {**content["facts"], **dict.fromkeys(content["omitted"])}
        chosen = content["contestant"]
        with torch.random.fork_rng(devices=[]):  # the first weights, which the state replaces
            # Under the name that it had in the task, so that the sites' names are the same.
            holder = nn.Module()
            holder.model = models.build(content["model"], facts, **content["options"])
            contestant = from_origin(chosen["name"], chosen["origin"])
            swap(holder, contestant.make, shared=chosen["shared"], force=True)
        _load(holder.model, content["state"])
    except (ActsearchError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} does not fit this version's models ({type(error).__name__}: {reason})") from None
    return holder.model.eval()


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """With the state's dtypes: a model that was trained in double precision stays so."""
    model.load_state_dict(state, strict=True)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.dtype != state[name].dtype:
            tensor.data = state[name].clone()


def _read(path: Path) -> dict[str, Any]:
    try:
        path.open("rb").close()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    if not is_whole_archive(path):
        raise RunError(f"{path} is no trained model, or damaged: its checksums are not those that it was written with")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is no trained model ({type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("actsearch_model") != _FORMAT:
        raise RunError(f"{path} is no trained model that this version can read; compare.save_models writes them")
    return content


def plain(value: Any) -> Any:
    """Numbers, text, None, and lists and mappings of them, in Python's own types; `_OMITTED` for anything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list | tuple):
        parts: list[Any] = [plain(part) for part in value]
        whole: Any = tuple(parts) if isinstance(value, tuple) else parts
        return _OMITTED if any(part is _OMITTED for part in parts) else whole
    if isinstance(value, Mapping):
        keys, values = plain(list(value)), plain(list(value.values()))
        return _OMITTED if _OMITTED in (keys, values) else dict(zip(keys, values, strict=True))
    return _OMITTED


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
