"""Adaptive slopes: σ(n·a·z) with a trained slope a, which starts where n·a = 1.

GAAF, one a for the network: Jagtap, Karniadakis, J. Comput. Phys. 404 (2020), arXiv 1906.01170. L-LAAF, one a site, and
N-LAAF, one a neuron: Jagtap, Kawaguchi, Karniadakis, Proc. R. Soc. A 476 (2020), arXiv 1909.12228.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actsearch.ops.guard import limit, power_bound
from actsearch.ops.spec import OpParameter, Scope, registrar

LAAF = "Jagtap et al. 2020, arXiv 1909.12228"
GAAF = "Jagtap & Karniadakis 2020, arXiv 1906.01170"

_LINEAR = power_bound(1)


def slope(x: Tensor, a: Tensor) -> Tensor:
    return limit(x, _LINEAR) * a.to(x.dtype)


def recovery(means: Sequence[Tensor]) -> Tensor:
    return 1 / torch.stack([m.exp() for m in means]).mean()


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
