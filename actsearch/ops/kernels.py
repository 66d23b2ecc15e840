"""The kernels of a discrete cell: one forwards and one backwards, made by torch.compile and shared by the process.

The cell is traced at a single number, so what is traced holds no shape and fits any tensor. The backward kernel is the
trace of `torch.autograd.grad`: no derivative is written by hand. Parameters are arguments, so their values may change.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from actsearch.ops import elementary
from actsearch.ops.clip import Clip
from actsearch.ops.graph import INPUT, evaluate
from actsearch.ops.guard import HALF

# What a kernel is compiled with, by its number of dimensions: large enough to be worth all threads, and no two sizes
# equal, since the compiler takes equal ones for the same.
_EXAMPLES = {1: (262_139,), 2: (509, 521), 3: (61, 67, 71)}

# The number of threads is read when a kernel runs, so that it need not be compiled again for another; and x·y + z is
# one instruction, rounded once.
_OPTIONS: dict[str, Any] = {"cpp.dynamic_threads": True, "cpp.enable_floating_point_contract_flag": "fast"}


@dataclass(frozen=True)
class Structure:
    """What of a discrete cell decides its kernels. Slots are numbered, so their names make no difference.

    Attributes:
        steps: in their order, the operation of every slot and the numbers of what it reads; 0 is the input, k slot k.
        clip: of unbounded operations.
        scale: what the value of the last slot is multiplied by.
    """

    steps: tuple[tuple[str, tuple[int, ...]], ...]
    clip: Clip
    scale: float = 1.0

    @classmethod
    def of(
        cls, order: Sequence[str], ops: Mapping[str, str], inputs: Mapping[str, Sequence[str]], clip: Clip, scale: float
    ) -> Structure:
        """That of a cell as `evaluate` takes it."""
        number = {INPUT: 0, **{slot: k for k, slot in enumerate(order, 1)}}
        return cls(tuple((ops[slot], tuple(number[i] for i in inputs[slot])) for slot in order), clip, scale)

    def __call__(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The cell at `x` (any shape), one operation after the other; half precision in float32, rounded once.

        `parameters` are in the order in which the slots and their operations name them, and broadcast with `x`.
        """
        if x.dtype in HALF:
            return self(x.float(), parameters).to(x.dtype)
        order, ops, inputs = self._cell
        left = iter(parameters)  # `evaluate` asks for them in their order
        y = evaluate(x, order, ops, inputs, lambda *key: next(left), self.clip)
        return y if self.scale == 1 else self.scale * y

    @cached_property
    def _cell(self) -> tuple[list[str], dict[str, str], dict[str, list[str]]]:
        names = [INPUT, *(f"slot{k}" for k in range(1, len(self.steps) + 1))]
        ops = {slot: op for slot, (op, _) in zip(names[1:], self.steps, strict=True)}
        inputs = {slot: [names[i] for i in read] for slot, (_, read) in zip(names[1:], self.steps, strict=True)}
        return names[1:], ops, inputs


@dataclass(frozen=True)
class Signature:
    """Which kernel of a structure is wanted.

    Attributes:
        dtype, device: of x and of the output. Parameters have the dtype in which the cell is computed.
        ndim: of x as the kernel sees it: contiguous, 1 to 3.
        channel: its dimension along which the parameters lie; None for one value each.
        n_parameters: how many there are.
        wanted: None for the forward kernel, `(x, *parameters) -> y`; for a backward one, `(x, gradient of y,
            *parameters) -> gradients`, whether the gradient of x and of each parameter is. The others are None.
        inference: whether x was made in inference mode.
    """

    dtype: torch.dtype
    device: torch.device
    ndim: int
    channel: int | None
    n_parameters: int
    wanted: tuple[bool, ...] | None
    inference: bool

    @property
    def computed(self) -> torch.dtype:
        """In which the cell is computed."""
        return torch.float32 if self.dtype in HALF else self.dtype

    def arguments(self, shape: tuple[int, ...], parameter_shape: tuple[int, ...]) -> list[Tensor]:
        """Tensors such as the kernel takes."""
        x = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(1 if self.wanted is None else 2)]
        return [
            *x,
            *(torch.zeros(parameter_shape, dtype=self.computed, device=self.device) for _ in range(self.n_parameters)),
        ]

    def example(self) -> list[Tensor]:
        """The arguments that it is compiled with."""
        shape = _EXAMPLES[self.ndim]
        along = () if self.channel is None else (shape[self.channel], *[1] * (self.ndim - 1 - self.channel))
        return self.arguments(shape, along)


Kernel = Callable[..., Any]

_kernels: dict[tuple[Structure, Signature], Kernel | None] = {}
_lock = threading.RLock()
_warned = False


def kernel(structure: Structure, signature: Signature) -> Kernel | None:
    """The compiled kernel, made at the first call; None if there is none.

    There is none for a cell that ignores its input or hands it through, and where compiling failed: that is warned of
    once.
    """
    key = structure, signature
    if key not in _kernels:
        with _lock:
            if key not in _kernels:
                _kernels[key] = _compile(structure, signature)
    return _kernels[key]


def give_up(structure: Structure, signature: Signature, error: Exception) -> None:
    """From now on there is no such kernel, since it failed with `error`."""
    _kernels[structure, signature] = None
    _warn(error)


def _compile(structure: Structure, signature: Signature) -> Kernel | None:
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autograd.set_detect_anomaly(False),  # it looks at values, of which a trace has none
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # those of the compiler are no concern of the caller
        try:
            graph = _trace(structure, signature)
            if graph is None:
                return None
            # `forward` of a traced graph is code of its own; what shares its code shares the limit on recompilations.
            compiled: Kernel = torch.compile(graph.forward, fullgraph=True, dynamic=True, options=_OPTIONS)
            with torch.inference_mode(signature.inference):
                example = signature.example()
            compiled(*example)
            return compiled
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failure = error
    _warn(failure)
    return None


def _warn(error: Exception) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    warnings.warn(
        f"an activation could not be compiled and runs one operation at a time, slower, with the same values: {cause}",
        RuntimeWarning,
        stacklevel=2,
    )


def _trace(structure: Structure, signature: Signature) -> GraphModule | None:
    """The kernel before it is compiled; None if the cell's output does not follow from its input by some operation."""
    wanted = signature.wanted

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        return structure(x, parameters)

    def backward(x: Tensor, gradient: Tensor, *parameters: Tensor) -> list[Tensor | None]:
        assert wanted is not None
        leaves = [t.detach().requires_grad_(want) for t, want in zip((x, *parameters), wanted, strict=True)]
        with torch.enable_grad():
            y = structure(leaves[0], leaves[1:])
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(y, asked, gradient, allow_unused=True))
        return [next(found) if want else None for want in wanted]

    inlined = signature.device.type == "cpu" and signature.computed == torch.float32
    traced = make_fx(
        forward if wanted is None else backward,
        decomposition_table=dict(elementary.DECOMPOSITIONS) if inlined else None,
    )
    graph: GraphModule = traced(*signature.arguments((), ()))
    (output,) = graph.graph.find_nodes(op="output")
    if wanted is None:
        if output.args[0].op == "placeholder" or not _reaches(graph, output.args[0]):
            return None
    else:
        _merge_bounds(graph)
        _sum(graph, output, signature)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _reaches(graph: GraphModule, node: Node) -> bool:
    """Whether `node` depends on the first argument of `graph`."""
    seen, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - seen
        seen |= new
        waiting.extend(new)
    return next(iter(graph.graph.nodes)) in seen


def _merge_bounds(graph: GraphModule) -> None:
    """-b <= v and v <= b, of which a derivative has one pair for every clamp, as |v| <= b: one mask, not three."""
    for node in graph.graph.nodes:
        if node.target not in (torch.ops.aten.logical_and.default, torch.ops.aten.logical_and_.default):
            continue
        lower, upper = node.args
        if lower.target != torch.ops.aten.ge.Scalar or upper.target != torch.ops.aten.le.Scalar:
            continue
        if lower.args[0] is upper.args[0] and lower.args[1] == -upper.args[1]:
            with graph.graph.inserting_before(node):
                size = graph.graph.call_function(torch.ops.aten.abs.default, (lower.args[0],))
                within = graph.graph.call_function(torch.ops.aten.le.Scalar, (size, upper.args[1]))
            node.replace_all_uses_with(within)


def _sum(graph: GraphModule, output: Node, signature: Signature) -> None:
    """Sum the gradients of parameters, which the trace has for every element, over what shares a parameter."""
    gradients = list(output.args[0])  # type: ignore[arg-type]
    axes = [axis for axis in range(signature.ndim) if axis != signature.channel]
    for k, gradient in enumerate(gradients):
        if k and gradient is not None and axes:
            with graph.graph.inserting_before(output):
                gradients[k] = graph.graph.call_function(torch.ops.aten.sum.dim_IntList, (gradient, axes))
    output.args = (gradients,)
