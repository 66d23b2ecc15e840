"""The bilevel search. Calling the module, `actsearch.search(...)`, is the public function of `actsearch.api`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `actsearch.api.search`."""
        from actsearch.api import search  # the one call upwards: the public name of a function of the top floor

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
