"""Site and SwapReport: the places at which activations stand, and what a swap did at each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from actsearch.errors import SwapError
from actsearch.swap.calls import UNKNOWN, Call
from actsearch.swap.catalog import Function, function_name


@dataclass(frozen=True)
class Site:
    """A place in a model at which an activation stands.

    name: dotted. Of a submodule or an attribute its own name; of an entry of a container the way to it, such as
        `block.acts[0]` or `block.config.act`; of a call in a module's code the name of the submodule that takes its
        place: the function's, numbered in the order in which the code is read, such as `layer1.0.relu_2`.
    original: a description of what stood there.
    kind: whether that is a "module", a "function" that a module holds, or a "call" in its code.
    value: what stood there: the module, or the function.
    """

    name: str
    original: str
    kind: Literal["module", "function", "call"] = "module"
    value: Any = field(default=None, repr=False, compare=False)
    call: Call | None = field(default=None, repr=False, compare=False)

    @property
    def function(self) -> str:
        """The name of the function that stood here: "relu"; of a module, its class's in lower case."""
        return function_name(self.value)

    def default(self) -> nn.Module:
        """A new module that computes what stood here; never in place.

        Raises SwapError for a call whose other arguments are known only when it runs, and for a site without a value.
        """
        if isinstance(self.value, nn.Module):
            made = copy.deepcopy(self.value)
            if getattr(made, "inplace", False) is True:
                made.inplace = False  # type: ignore[assignment]
            return made
        if self.value is None:
            raise SwapError(f"it is not known what stands at {self.name or 'the site'}")
        if self.call is None:
            return Function(self.value)
        if UNKNOWN in (*self.call.arguments, *self.call.keywords.values()):
            raise SwapError(f"{self.name}: {self.original} has arguments that are known only when it runs")
        return Function(self.value, self.call.arguments, dict(self.call.keywords))


@dataclass
class SwapReport:
    """What a swap did. `replaced` and `skipped` (with the reason) together are everything that was found.

    out_of_place: modules whose `inplace=True` was set to False, as they could overwrite what the new function saved
        for its gradient.
    unused: sites that did not run on the example, if one was given.
    """

    replaced: list[Site] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    out_of_place: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    undo: list[tuple[Any, ...]] = field(default_factory=list, repr=False)  # what unswap does, last first

    @property
    def originals(self) -> dict[str, Any]:
        """What stood at each replaced site, by its name."""
        return {site.name: site.value for site in self.replaced}

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)} activation site(s)"]
        unused = set(self.unused)
        lines += [f"  {s.name}: {s.original}" + (" (did not run)" if s.name in unused else "") for s in self.replaced]
        if self.skipped:
            lines.append(f"left {len(self.skipped)} alone")
            lines += [f"  {site.name}: {site.original} ({reason})" for site, reason in self.skipped]
        if self.out_of_place:
            lines.append(f"no longer in place: {', '.join(self.out_of_place)}")
        return "\n".join(lines)
