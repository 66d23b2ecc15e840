"""A function as an ONNX model, by torch's dynamo exporter, checked in onnxruntime."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actsearch.errors import MissingPackageError
from actsearch.files import write_atomically

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def to_onnx(module: nn.Module, path: Path | str) -> Path:
    """Write `module`, an element-wise function, for float32 tensors of any shape: input `x`, output `y`.

    Raises MissingPackageError without the packages of the extra `onnx`, and RunError if the file cannot be written.
    """
    return to_onnx_together([module], path)


def to_onnx_together(modules: Sequence[nn.Module], path: Path | str) -> Path:
    """As `to_onnx`, of several functions of one input: outputs `y0`, `y1`, …; `y` if it is one."""
    _require()
    example = torch.linspace(-2, 2, 12).reshape(3, 4)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        exported = torch.onnx.export(
            _Together(modules).eval(),
            (example,),
            dynamo=True,
            optimize=False,  # onnxscript 0.7's optimiser breaks graphs with several clips; onnxruntime has its own
            verbose=False,
            custom_translation_table={torch.ops.aten.log_sigmoid.default: _log_sigmoid},
            input_names=["x"],
            output_names=["y"] if len(modules) == 1 else [f"y{k}" for k in range(len(modules))],
            dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("features")},),
        )
    assert exported is not None
    model = exported.model_proto
    # Element by element: it is the same for any number of dimensions.
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    if any(node.op_type == "Shape" for node in model.graph.node):
        _flatten(model.graph)
    return write_atomically(path, lambda temporary: temporary.write_bytes(model.SerializeToString()))


class _Together(nn.Module):
    """Several functions of one input; copies, since an output of a graph may not be its input or another output."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.of = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x).clone() for module in self.of)


def load_onnx(path: Path | str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """What `to_onnx` wrote, run by onnxruntime on the CPU: a function of a float32 array to its outputs."""
    _require()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": np.asarray(x)})  # type: ignore[no-any-return]


def _log_sigmoid(x: Any) -> Any:
    """The exporter writes log(sigmoid(x)), which is -inf from x = -104 on."""
    from onnxscript import opset18 as op

    return op.Neg(op.Softplus(op.Neg(x)))


def _flatten(graph: Any) -> None:
    """Let a graph that asks for two dimensions by name, as a constant does, see a single row of any input."""
    from onnx import helper, numpy_helper

    for node in graph.node:
        node.input[:] = ["x_row" if name == "x" else name for name in node.input]
        node.output[:] = [f"{name}_row" if name in {y.name for y in graph.output} else name for name in node.output]
        node.input[:] = [f"{name}_row" if name in {y.name for y in graph.output} else name for name in node.input]
    before = [helper.make_node("Shape", ["x"], ["x_shape"]), helper.make_node("Reshape", ["x", "row"], ["x_row"])]
    after = [helper.make_node("Reshape", [f"{y.name}_row", "x_shape"], [y.name]) for y in graph.output]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "row"))


def _require() -> None:
    for package in NEEDED:
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingPackageError(package, "onnx", "an export to ONNX") from None


class _quiet:
    """Within it, the exporter's own log is silent below an error."""

    def __enter__(self) -> None:
        self.loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
