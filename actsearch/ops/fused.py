"""The discrete cell by one kernel forwards and one backwards, where there can be kernels, and as before elsewhere.

On a CPU, a function of float32 without parameters that are trained is a table, whose kernels cost the same for any
function; the others are compiled from their operations.
"""

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
from actsearch.ops.tabulated import Tables, Tabulated, tabulate

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
    kernel computes the output and one the gradients that are asked for; only `x` and the parameters are saved. The
    output has the memory format of `x`.

    - A function of one variable without trained parameters is a table on a CPU in float32, see
      `actsearch.ops.tabulated`: made in some hundredths of a second when the function is first met.
    - Others have kernels compiled from their operations when a structure is first met, which takes seconds; they serve
      all values of scalar parameters, shapes, and dense memory formats.

    Where neither can serve, it is `evaluate` itself: while a graph is traced or exported (there the operations are
    seen one by one), in functional transforms and forward-mode derivatives, for tensor subclasses, for few elements
    (4,096), for parameters of another dtype than that of the computation, and where compiling failed, of which it warns
    once. A backward pass that is itself differentiated is computed by `evaluate` too.

    Args:
        channel_axis: the axis of `x` along which the parameters lie, each of shape (channels,); None for parameters of
            one value.
    """
    structure = Structure.of(order, ops, inputs, clip, scale)
    values = [parameters(slot, ops[slot], p.name) for slot in order for p in registry[ops[slot]].parameters]
    if torch.compiler.is_compiling() or not _has_kernels(x, values):
        return _exact(structure, channel_axis, x, values)
    if _is_fixed(x, values, channel_axis) and (table := _table(structure, values)):
        run = _Tabulated.apply if torch.is_grad_enabled() and x.requires_grad else _tabulated_value
        return run(table, structure, x, *values)
    if not _are_scalars(x, values, channel_axis):
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


def _has_kernels(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    computed = torch.float32 if x.dtype in HALF else x.dtype
    tensors = (x, *parameters)
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.device == x.device for t in tensors)
        and x.dtype in _DTYPES
        and x.layout is torch.strided
        and x.device.type != "meta"
        and not x.is_neg()
        and x.numel() >= _LEAST
        and all(p.dtype == computed for p in parameters)
        and not _watched(tensors)
    )


def _is_fixed(x: Tensor, parameters: Sequence[Tensor], channel_axis: int | None) -> bool:
    """Whether it is one function of one variable, and stays so."""
    alike = channel_axis is None or not parameters
    return x.is_cpu and x.dtype == torch.float32 and alike and not any(p.requires_grad for p in parameters)


def _are_scalars(x: Tensor, parameters: Sequence[Tensor], channel_axis: int | None) -> bool:
    """Whether every parameter is one number, or one for each channel."""
    if channel_axis is None:
        size = 1
    elif -x.ndim <= channel_axis < x.ndim:
        size = x.shape[channel_axis]
    else:
        return False
    return all(p.ndim < 2 and p.numel() == size for p in parameters)


def _watched(tensors: Sequence[Tensor]) -> bool:
    """Whether something wants to see the single operations."""
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or is_in_torch_dispatch_mode()
        or any(torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)  # is_grads_batched=True
        or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


# -- tables ------------------------------------------------------------------------------------------------------------

_tables = Tables()
_FEW = 1 / 16  # share of elements outside the table that are still computed one by one


def _table(structure: Structure, parameters: Sequence[Tensor]) -> Tabulated | None:
    values = tuple(tuple(p.flatten().tolist()) for p in parameters)

    def exact(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        y = structure(leaf, [p.detach().double() for p in parameters])
        if not y.requires_grad:  # a constant
            return y, torch.zeros_like(x)
        return y.detach(), torch.autograd.grad(y.sum(), leaf)[0]

    def make() -> Tabulated | None:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            fixed = [p.detach().clone() for p in parameters]
            return tabulate(exact, lambda x: structure(x, fixed).detach())

    return _tables.get((structure, values), make)


def _tabulated_value(table: Tabulated, structure: Structure, x: Tensor, *parameters: Tensor) -> Tensor:
    layout = _Layout.of(x, None)
    elements = layout.merged(x)
    y, outside = table.value(elements)
    if outside > _FEW * x.numel():
        return structure(x.detach(), parameters)
    if outside:
        where = table.is_outside(elements)
        y[where] = structure(elements[where], parameters)
    return layout.restored(y, x.shape)


class _Tabulated(torch.autograd.Function):
    """The cell by its table; saves x."""

    @staticmethod
    def forward(ctx: Any, table: Tabulated, structure: Structure, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.table, ctx.structure, ctx.channel_axis = table, structure, None
        ctx.save_for_backward(x, *parameters)
        return _tabulated_value(table, structure, x, *parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        d_x = None
        if not torch.is_grad_enabled() and not _watched((x, *gradients)):
            d_x = _tabulated_gradient(ctx, x, gradients[0])
        if d_x is None:
            (d_x, *_) = _plain_gradients(ctx, (x, *parameters), [True, *[False] * len(parameters)], gradients[0])
        return (None, None, d_x, *[None] * len(parameters))


def _tabulated_gradient(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor | None:
    layout = _Layout.of(x, None)
    elements, g = layout.merged(x), layout.merged(gradient)
    d_x, outside = ctx.table.times_slope(elements, g)
    if outside > _FEW * x.numel():
        return None
    if outside:
        where = ctx.table.is_outside(elements)
        leaf = elements[where].requires_grad_()
        with torch.enable_grad():
            y = ctx.structure(leaf, ctx.saved_tensors[1:])
        d_x[where] = torch.autograd.grad(y, leaf, g[where])[0] if y.requires_grad else 0.0
    return layout.restored(d_x, x.shape)


# -- kernels of operations ---------------------------------------------------------------------------------------------


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
