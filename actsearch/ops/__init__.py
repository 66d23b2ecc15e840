"""The vocabulary: every operation that a cell can hold, registered once."""

from actsearch.ops import binary, slopes, unary
from actsearch.ops.clip import Clip
from actsearch.ops.spec import OpParameter, OpSpec, registry

__all__ = ["Clip", "OpParameter", "OpSpec", "binary", "registry", "slopes", "unary"]
