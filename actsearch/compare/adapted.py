"""The model's own activations as contestants: as they stand, with trained slopes, or with a trained basis."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from actsearch.errors import SettingsError, UnknownNameError, unknown_name
from actsearch.ops import bases
from actsearch.ops.adaptive_slope import AdaptiveSlope
from actsearch.ops.basis_activation import BasisActivation
from actsearch.ops.spec import Scope
from actsearch.swap import Site

OWN = "own"
OWN_FORMULA = "the model's own"
SOURCES = (
    OWN,
    *(f"taafs:{name}{end}" for name in bases.BASES for end in ("", ":residual")),
    *(f"laaf:{scope}" for scope in get_args(Scope)),
)
"""What stands for such a contestant, without the optional numbers."""


@dataclass(frozen=True)
class Own:
    """What stands at the site."""

    def __call__(self, site: Site) -> nn.Module:
        return site.default()

    @property
    def formula(self) -> str:
        return OWN_FORMULA


@dataclass(frozen=True)
class Taafs:
    """A BasisActivation of its own for every site, which starts at what stands there.

    y = Σ_k c_k φ_k(tanh x), by least squares at the start (TAAFS, arXiv 2412.14655). That is bounded: tanh is met
    exactly, but SiLU with a Chebyshev basis of 10 only to 0.04 (root mean square under N(0, 1); 1.4 at x = 4). With
    `residual` the sum is added to what stands there and starts at 0.
    """

    basis: str
    n_coefficients: int
    residual: bool
    lr_factor: float

    def __call__(self, site: Site) -> nn.Module:
        return BasisActivation(
            self.basis,
            self.n_coefficients,
            initial=_within(site.default(), AdaptiveSlope, "activation"),
            residual=self.residual,
            lr_factor=self.lr_factor,
        )

    @property
    def formula(self) -> str:
        start = f"{OWN_FORMULA} + " if self.residual else ""
        return f"{start}sum of {self.n_coefficients} c_k {self.basis}_k(tanh(x)), c of each site"


@dataclass(eq=False)
class Laaf:
    """An AdaptiveSlope around what stands at the site; with scope "network" all sites share the slope."""

    scope: Scope
    n: float
    channel_axis: int | None
    lr_factor: float
    shared: dict[str, nn.Parameter] = field(default_factory=dict)

    def __call__(self, site: Site) -> nn.Module:
        there = _within(site.default(), AdaptiveSlope, "activation")
        made = AdaptiveSlope(there, self.scope, self.n, channel_axis=self.channel_axis, lr_factor=self.lr_factor)
        if self.scope == "network":
            made.a = self.shared.setdefault("a", made.a)  # type: ignore[arg-type]
        return made

    @property
    def formula(self) -> str:
        axis = "" if self.channel_axis is None else f" (axis {self.channel_axis})"
        times = f"{self.n:g} * " if self.n != 1 else ""
        return f"{OWN_FORMULA} at {times}a * x, a of {'the' if self.scope == 'network' else 'each'} {self.scope}{axis}"


def is_adapted(source: str) -> bool:
    """Whether `source` means the model's own activations, as they are or adapted."""
    return source == OWN or source.partition(":")[0] in ("taafs", "laaf")


def factory(source: str, channel_axis: int | None = None, lr_factor: float = 1.0) -> Own | Taafs | Laaf:
    """What `source` means: `own`, `taafs:BASIS[:K][:residual]` or `laaf:SCOPE[:N]`.

    K: number of coefficients, default 10; residual: see Taafs. SCOPE: site (L-LAAF), channel (N-LAAF) or network
    (GAAF); N: its fixed factor n, default 1. channel_axis: for scope channel. lr_factor: trained at this multiple of
    the learning rate.
    Raises UnknownNameError with near matches, or SettingsError.
    """
    kind, *parts = source.split(":")
    if source == OWN:
        return Own()
    if kind not in ("taafs", "laaf"):
        raise UnknownNameError("adaptation", source, SOURCES)
    name, *options = parts or [""]
    made: Taafs | Laaf
    if kind == "taafs":
        given = _options(source, options, {"residual"})
        made = Taafs(name, given.get("number", bases.N_COEFFICIENTS), "residual" in given, lr_factor)
        if name not in bases.BASES:
            raise UnknownNameError("basis", name, bases.BASES)
    else:
        given = _options(source, options, set())
        if name not in get_args(Scope):
            raise SettingsError(unknown_name("scope of slopes", name, get_args(Scope)))
        axis = channel_axis if name == "channel" else None
        made = Laaf(name, given.get("number", 1), axis, lr_factor)  # type: ignore[arg-type]
    copy.deepcopy(made)(Site("", "", value=nn.Tanh()))  # complains about numbers before anything is trained
    return made


def _options(source: str, options: list[str], words: set[str]) -> Mapping[str, Any]:
    """What follows the name: one whole number at most, and words."""
    found: dict[str, Any] = {}
    for option in options:
        key = "number" if option.isdecimal() else option
        if key in found or (key != "number" and key not in words):
            allowed = " or ".join(["a whole number", *sorted(words)])
            raise SettingsError(
                f"{source!r}: {option!r} is not understood; after the name there can be {allowed}, once"
            )
        found[key] = int(option) if option.isdecimal() else True
    return found


def _within(module: nn.Module, kind: type[nn.Module], name: str) -> Any:
    """What `module` holds as `name` if it is of that kind, such as the activation under a slope."""
    return getattr(module, name) if isinstance(module, kind) else module
