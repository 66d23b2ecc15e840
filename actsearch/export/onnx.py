"""A function as an ONNX model, by torch's dynamo exporter, checked in onnxruntime."""

from __future__ import annotations

import importlib.util
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


def to_onnx(module: nn.Module, path: Path | str, rank: int = 2) -> Path:
    """Write `module`, an element-wise function of float32 tensors of `rank` dimensions of any size.

    The model's input is called `x`, its output `y`.

    Raises MissingPackageError without the packages of the extra `onnx`, and RunError if the file cannot be written.
    """
    return to_onnx_together([module], path, rank)


def to_onnx_together(modules: Sequence[nn.Module], path: Path | str, rank: int = 2) -> Path:
    """As `to_onnx`, of several functions of one input: outputs `y0`, `y1`, …; `y` if it is one."""
    _require()
    example = torch.linspace(-2, 2, 3**rank).reshape([3] * rank)
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
            dynamic_shapes=({k: torch.export.Dim(f"n{k}") for k in range(rank)},),
        )
    assert exported is not None
    model = exported.model_proto
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
    return lambda x: session.run(None, {"x": np.asarray(x)})


def _log_sigmoid(x: Any) -> Any:
    """The exporter writes log(sigmoid(x)), which is -inf from x = -104 on."""
    from onnxscript import opset18 as op

    return op.Neg(op.Softplus(op.Neg(x)))


def missing_packages() -> list[str]:
    """Which of the packages of the extra `onnx` are not installed."""
    return [package for package in NEEDED if importlib.util.find_spec(package) is None]


def _require() -> None:
    for package in missing_packages():
        raise MissingPackageError(package, "onnx", "an export to ONNX")


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
