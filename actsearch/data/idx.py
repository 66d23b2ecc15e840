"""The idx format of MNIST and its kin, read where it lies, packed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from actsearch.errors import DataError

UBYTE = 0x08


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, gzip-packed if its name ends in .gz.

    The header is two zero bytes, the element type, the number of axes, and each axis as a big-endian 32-bit integer.
    Raises DataError for a file that is missing, damaged, shorter or longer than its header says, or not of bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({str(error) or type(error).__name__}): fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{path} is not an idx file: fetch it again")
    kind, axes = content[2], content[3]
    if kind != UBYTE:
        raise DataError(f"{path} holds idx type 0x{kind:02x}; only unsigned bytes (0x08) are known")
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise DataError(f"{path} does not hold the {shape} bytes that its header promises: fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
