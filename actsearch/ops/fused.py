"""The discrete cell by one kernel forwards and one backwards, where there can be kernels, and as before elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from actsearch.ops.clip import Clip
from actsearch.ops.guard import HALF
from actsearch.ops.kernels import Kernel, Signature, Structure, give_up, kernel
from actsearch.ops.memory import alias, dense_strides, with_strides
from actsearch.ops.spec import registry

_DTYPES = (torch.float32, torch.float64, *HALF)
_LEAST = 4097  # elements: below, the call of a kernel takes longer than the operations, and sums have another kernel


def fused(
    x: Tensor,
    order: Sequence[str],
    ops: Mapping[str, str],
    inputs: Mapping[str, Sequence[str]],
    parameters: Callable[[str, str, str], Tensor],
    clip: Clip,
    scale: float = 1.0,
    channel_axis: int | None = None,
) -> Tensor:
    """The discrete cell at `x` (any shape), as `evaluate` gives it up to rounding, times `scale`.

    It takes the arguments of `evaluate`, and half precision too, which is computed in float32 and rounded once. One
    kernel computes the output and one the gradients that are asked for; only `x` and the parameters are saved. Kernels
    are compiled when a structure is first met, which takes seconds, and serve all parameter values, shapes, and dense
    memory formats. The output has the memory format of `x`.

    Where no kernel can serve, it is `evaluate` itself: while a graph is traced or exported (there the operations are
    seen one by one), in functional transforms and forward-mode derivatives, for tensor subclasses, for few elements
    (4,096), for parameters of another dtype than that of the computation, and where compiling failed, of which it warns
    once. A backward pass that is itself differentiated is computed by `evaluate` too.

    Args:
        channel_axis: the axis of `x` along which the parameters lie, each of shape (channels,); None for parameters of
            one value.
    """
    structure = Structure.of(order, ops, inputs, clip, scale)
    values = [parameters(slot, ops[slot], p.name) for slot in order for p in registry[ops[slot]].parameters]
    if torch.compiler.is_compiling() or not _can_fuse(x, values, channel_axis):
        return _exact(structure, channel_axis, x, values)
    layout = _Layout.of(x, channel_axis)
    forward = _Call(structure, layout.signature(x, len(values)))
    if forward.kernel is None:
        return _exact(structure, channel_axis, x, values)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *values)):
        return _Fused.apply(forward, channel_axis, x, *values)
    y = _value(forward, layout, x, values)
    return _exact(structure, channel_axis, x, values) if y is None else y


def _exact(structure: Structure, channel_axis: int | None, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    if channel_axis is not None:
        shape = [1] * x.ndim
        shape[channel_axis] = -1
        parameters = [p.view(shape) for p in parameters]
    return structure(x, parameters)


def _can_fuse(x: Tensor, parameters: Sequence[Tensor], channel_axis: int | None) -> bool:
    computed = torch.float32 if x.dtype in HALF else x.dtype
    if channel_axis is None:
        sizes = [1]
    elif -x.ndim <= channel_axis < x.ndim:
        sizes = [x.shape[channel_axis]]
    else:
        return False
    tensors = (x, *parameters)
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.device == x.device for t in tensors)
        and x.dtype in _DTYPES
        and x.layout is torch.strided
        and x.device.type != "meta"
        and not x.is_neg()
        and x.numel() >= _LEAST
        and all(p.dtype == computed and p.ndim < 2 and [p.numel()] == sizes for p in parameters)
        and not _watched(tensors)
    )


def _watched(tensors: Sequence[Tensor]) -> bool:
    """Whether something wants to see the single operations."""
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or is_in_torch_dispatch_mode()
        or any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)  # is_grads_batched=True
        or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


class _Call(NamedTuple):
    """A kernel by what it is compiled from."""

    structure: Structure
    signature: Signature

    @property
    def kernel(self) -> Kernel | None:
        return kernel(self.structure, self.signature)

    def __call__(self, *tensors: Tensor) -> Any:
        """What the kernel returns; None if it does not run after all."""
        run = self.kernel
        if run is None:
            return None
        try:
            # Its own state in the eyes of the compiler, whatever surrounds it.
            with torch.no_grad(), torch.autocast(self.signature.device.type, enabled=False):
                return run(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            give_up(self.structure, self.signature, error)
            return None


class _Layout(NamedTuple):
    """A dense tensor as a kernel sees it: contiguous, all dimensions merged but that of the channels.

    `shape` is that of the kernel's tensor and `channel` its dimension that holds them; `strides` are the tensor's own.
    """

    shape: tuple[int, ...]
    channel: int | None
    strides: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, channel_axis: int | None) -> _Layout:
        """That of `x`, or of a dense copy if there are gaps in it."""
        strides = dense_strides(x)
        axis = None if channel_axis is None else channel_axis % x.ndim
        if axis is None or x.shape[axis] == 1:
            return cls((x.numel(),), None, strides)
        after = strides[axis]
        channels = x.shape[axis]
        before = x.numel() // (channels * after)
        # The compiler takes a size of 1 for a constant: it is left out.
        shape = tuple(size for size in (before, channels, after) if size != 1)
        return cls(shape, 0 if before == 1 else 1, strides)

    def signature(self, x: Tensor, n_parameters: int, wanted: tuple[bool, ...] | None = None) -> Signature:
        return Signature(x.dtype, x.device, len(self.shape), self.channel, n_parameters, wanted, x.is_inference())

    def merged(self, x: Tensor) -> Tensor:
        """`x` (the tensor, or one of its shape in any format) in the shape of the kernel, copied if need be."""
        x = with_strides(x, self.strides)
        return alias(x, self.shape, [math.prod(self.shape[k + 1 :]) for k in range(len(self.shape))])

    def restored(self, y: Tensor, shape: torch.Size) -> Tensor:
        """What a kernel returned, in the shape and format of the tensor."""
        return alias(y, shape, self.strides)

    def along(self, parameter: Tensor) -> Tensor:
        """A parameter in a shape that broadcasts with the kernel's tensors."""
        size = () if self.channel is None else (-1, *[1] * (len(self.shape) - 1 - self.channel))
        return parameter.detach().view(size)


def _value(forward: _Call, layout: _Layout, x: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
    y = forward(layout.merged(x), *map(layout.along, parameters))
    return None if y is None else layout.restored(y, x.shape)


class _Fused(torch.autograd.Function):
    """The cell by its kernels; saves x and the parameters."""

    @staticmethod
    def forward(ctx: Any, forward: _Call, channel_axis: int | None, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.structure, ctx.channel_axis = forward.structure, channel_axis
        ctx.save_for_backward(x, *parameters)
        y = _value(forward, _Layout.of(x, channel_axis), x, parameters)
        return _exact(forward.structure, channel_axis, x, parameters) if y is None else y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[2:])
        found = None
        # Kernels have no second derivatives: where they are wanted (create_graph=True), autograd sees every step.
        if (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not _watched((x, *parameters, *gradients))
        ):
            layout = _Layout.of(x, ctx.channel_axis)
            backward = _Call(ctx.structure, layout.signature(x, len(parameters), wanted))
            found = backward(layout.merged(x), layout.merged(gradients[0]), *map(layout.along, parameters))
        if found is not None:
            d_x, *d_parameters = found
            return (
                None,
                None,
                None if d_x is None else layout.restored(d_x, x.shape),
                *(None if d is None else d.view(p.shape) for d, p in zip(d_parameters, parameters, strict=True)),
            )
        return (None, None, *_plain_gradients(ctx, (x, *parameters), wanted, gradients[0]))


def _plain_gradients(
    ctx: Any, tensors: Sequence[Tensor], wanted: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    differentiable = torch.is_grad_enabled()
    if differentiable:
        # Aliases: an earlier site holds the same parameters, and the gradients would go on through the input to those.
        tensors = [t.view_as(t) for t in tensors]
    else:
        tensors = [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
    with torch.enable_grad():
        y = _exact(ctx.structure, ctx.channel_axis, tensors[0], tensors[1:])
    asked = [t for t, want in zip(tensors, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(y, asked, gradient, create_graph=differentiable, allow_unused=True))
    return [next(found) if want else None for want in wanted]
