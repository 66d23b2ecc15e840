"""A user's own arrays in one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from actsearch.data.source import Source, Split, divide
from actsearch.errors import DataError

CHANNELS = (1, 3, 4)


def npz(root: Path, split_seed: int = 0) -> Source:
    """Read the file `root`: arrays x_train, y_train, x_test and y_test, or x and y, which are divided 80/20.

    x: images (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4, or feature vectors (N, F); any real dtype.
    y: integers from 0 to K − 1, each of them present in the training part. Raises DataError for anything else.
    """
    arrays = _load(root)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        x_train, y_train = _examples(root, arrays, "x_train", "y_train")
        x_test, y_test = _examples(root, arrays, "x_test", "y_test")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise DataError(f"{root}: x_train and x_test must agree in shape, not {x_train.shape} and {x_test.shape}")
        train, test = Split.of(x_train, y_train), Split.of(x_test, y_test)
    elif {"x", "y"} <= arrays.keys():
        train, test = divide(*_examples(root, arrays, "x", "y"), split_seed)
    else:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{root} must hold x_train, y_train, x_test and y_test, or x and y; it holds {found}")
    classes = np.unique(train.labels)
    if len(classes) < 2 or classes[0] != 0 or classes[-1] != len(classes) - 1:
        raise DataError(f"{root}: training labels must be 0 … K − 1, all present and K ≥ 2, not {_few(classes)}")
    strangers = np.setdiff1d(test.labels, classes)
    if len(strangers):
        raise DataError(f"{root}: labels {_few(strangers)} occur in the test part only; no model can learn them")
    return Source(root.name, train, test, num_classes=len(classes))


def _load(path: Path) -> dict[str, np.ndarray]:
    if path.suffix != ".npz" or not path.is_file():
        raise DataError(f"the data set 'npz' needs root = the path of an .npz file; there is none at {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:  # an array of objects could execute code: refused
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; write it with numpy.savez and plain arrays") from error


def _examples(path: Path, arrays: dict[str, np.ndarray], x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays[x_name], arrays[y_name]
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "biuf" or not np.array_equal(y, np.round(y)):
        raise DataError(f"{path}: {y_name} must be one integer an example, not {y.dtype} of shape {y.shape}")
    if len(x) != len(y) or len(y) == 0:
        raise DataError(
            f"{path}: {x_name} and {y_name} must be as long as each other and not empty: {len(x)}, {len(y)}"
        )
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise DataError(f"{path}: {x_name} must hold finite real numbers (dtype {x.dtype})")
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return _channels_first(path, x_name, x), y.astype(np.int64)


def _channels_first(path: Path, name: str, x: np.ndarray) -> np.ndarray:
    if x.size and x.ndim == 2:
        return x
    if x.size and x.ndim == 3:
        return x[:, None]
    if x.size and x.ndim == 4:
        first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
        if first and last:
            raise DataError(f"{path}: {name} {x.shape} may be NCHW or NHWC; give images larger than 4 pixels a side")
        if first:
            return x
        if last:
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    raise DataError(f"{path}: {name} must be (N,F), (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1, 3 or 4, not {x.shape}")


def _few(labels: np.ndarray) -> str:
    return ", ".join(map(str, labels[:6])) + (", …" if len(labels) > 6 else "")
