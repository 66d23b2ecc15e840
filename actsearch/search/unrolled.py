"""The hypergradient through one unrolled step of the weights: DARTS, arXiv 1806.09055, second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

EPSILON = 0.01  # over the norm of the weights' gradient: the half step of the finite difference (DARTS, section 2.3)


def unrolled_gradients(
    weights: Sequence[nn.Parameter],
    parameters: Sequence[nn.Parameter],
    rate: float,
    train_loss: Callable[[], Tensor],
    arch_loss: Callable[[], tuple[Tensor, Tensor]],
    waits: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Gradient of L_arch(w - ξ ∇_w L_train(w, α), α) by α; DARTS, eq. 7 and 8.

    The Hessian-vector product is a central difference with ε = 0.01 / ‖∇_w' L_arch‖. The weights are restored to the
    same bits.

    Args:
        weights: w.
        parameters: α, and what else the upper level trains.
        rate: ξ.
        train_loss: L_train at the present weights, on a new graph at every call, with the same randomness.
        arch_loss: L_arch likewise, and the same with what is added to it before it is differentiated.
        waits: whether the host may wait for the device, to compute ε exactly as a number.

    Returns L_arch at the unrolled weights and the gradients, 0 for what is not reached.
    """
    kept = [w.detach().clone() for w in weights]

    def put(shift: Sequence[Tensor | None], scale: float | Tensor) -> None:
        with torch.no_grad():
            for w, original, d in zip(weights, kept, shift, strict=True):
                w.copy_(original if d is None else original + scale * d)
        torch.clear_autocast_cache()  # it would hand out casts of the old weights

    def gradients(loss: Tensor, of: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, of, allow_unused=True)

    try:
        put(gradients(train_loss(), weights), -rate)
        loss, whole = arch_loss()
        both = gradients(whole, [*parameters, *weights])
        direct, v = both[: len(parameters)], both[len(parameters) :]
        norm = torch.nn.utils.get_total_norm([d for d in v if d is not None])
        epsilon = EPSILON / (max(float(norm), 1e-12) if waits else norm.clamp(min=1e-12))
        put(v, epsilon)
        above = gradients(train_loss(), parameters)
        put(v, -epsilon)
        below = gradients(train_loss(), parameters)
    finally:
        put([None] * len(weights), 0.0)
    found = []
    for p, d, a, b in zip(parameters, direct, above, below, strict=True):
        zero = torch.zeros_like(p)
        implicit = (zero if a is None else a) - (zero if b is None else b)
        found.append(((zero if d is None else d) - rate * implicit / (2 * epsilon)).to(zero.dtype))
    return loss, found
