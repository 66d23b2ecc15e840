"""Adaptive slopes: σ(n·a·z) with a trained slope a, which starts where n·a = 1; as operations, and in any model.

GAAF, one a for the network: Jagtap, Karniadakis, J. Comput. Phys. 404 (2020), arXiv 1906.01170. L-LAAF, one a site, and
N-LAAF, one a neuron: Jagtap, Kawaguchi, Karniadakis, Proc. R. Soc. A 476 (2020), arXiv 1909.12228.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from actsearch.errors import SettingsError
from actsearch.ops.adaptive_slope import AdaptiveSlope, Function
from actsearch.ops.guard import limit, power_bound
from actsearch.ops.slope_recovery import layer_slopes, recovery, slope_recovery
from actsearch.ops.spec import OpParameter, Scope, registrar

if TYPE_CHECKING:
    from actsearch.swap import Site, SwapReport

__all__ = ["AdaptiveSlope", "adapt", "layer_slopes", "recovery", "slope", "slope_recovery"]

LAAF = "Jagtap et al. 2020, arXiv 1909.12228"
GAAF = "Jagtap & Karniadakis 2020, arXiv 1906.01170"

_LINEAR = power_bound(1)


def slope(x: Tensor, a: Tensor) -> Tensor:
    return limit(x, _LINEAR) * a.to(x.dtype)


def _register(scope: Scope, reference: str) -> None:
    # n is 1 here: under Adam, n·a at a rate moves as a does at n times that rate (`op_parameter_lr`).
    registrar(1, "laaf", reference)(
        f"laaf_{scope}",
        slope,
        "a * x",
        printed="{a} * {0}",
        parameters=(OpParameter("a", mean=1.0, scope=scope, trained_with="weights", is_slope=True),),
        monotonic="increasing",
        exact_within=_LINEAR,
    )


_register("network", GAAF)
_register("site", LAAF)
_register("channel", LAAF)


def adapt(
    model: nn.Module,
    scope: Scope = "site",
    n: float = 1.0,
    channel_axis: int | None = None,
    *,
    lr_factor: float = 1.0,
    **options: Any,
) -> SwapReport:
    """Give the activations of `model` adaptive slopes, in place; it computes the same as before until they are trained.

    Every site keeps its own activation, inside an AdaptiveSlope. Slopes that it has already are replaced. A call in a
    loop (`for layer in layers: x = F.tanh(layer(x))`) is one site, hence one slope.

    Args:
        model: any module.
        scope: "network", one slope for all sites (GAAF); "site", one each (L-LAAF); "channel", one a channel of each
            site (N-LAAF), whose number is that of the first batch: run one before an optimiser is made, or give an
            `example`.
        n, channel_axis, lr_factor: see AdaptiveSlope.
        options: of `actsearch.swap`, such as include, exclude, gates and example. A module that stands at several
            places is split, so that each has slopes of its own, unless `shared="keep"`.

    Returns the SwapReport, which `actsearch.unswap` takes.
    Raises SettingsError as AdaptiveSlope does, and SwapError if nothing was adapted; the model is then untouched.
    """
    from actsearch.swap import swap, unswap  # on a higher floor: `adapt` is the public name, and it is a swap
    from actsearch.swap.audit import listen

    device = next((parameter.device for parameter in model.parameters()), None)

    def adaptive(activation: Function) -> AdaptiveSlope:
        return AdaptiveSlope(activation, scope, n, channel_axis=channel_axis, lr_factor=lr_factor).to(device)

    first = adaptive(nn.Identity())

    def at(site: Site) -> AdaptiveSlope:
        there = site.default()
        made = adaptive(there.activation if isinstance(there, AdaptiveSlope) else there)
        if scope == "network":
            made.a = first.a
        return made

    report = swap(model, at, **{"shared": "split", **options})
    if scope == "channel" and options.get("example") is not None:
        try:
            listen(model, options["example"], set(), gates=False)  # by running it, the slopes get their sizes
        except SettingsError:
            unswap(model, report)
            raise
    return report
