"""The vocabulary: every operation that a cell can hold, registered once."""

from actsearch.ops import bases, binary, slopes, unary
from actsearch.ops.clip import Clip
from actsearch.ops.spec import OpParameter, OpSpec, registry

__all__ = ["Clip", "OpParameter", "OpSpec", "bases", "binary", "registry", "slopes", "unary"]
