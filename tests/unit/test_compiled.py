"""Kernels that are compiled where that can be done."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from actsearch.cell.compiled import Compiled
from actsearch.cell.flat import Order


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.fixture(autouse=True)
def _forgets_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "failed", False)


def test_where_compiling_fails_the_plain_function_runs_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(function: object, **options: object) -> object:
        def run(*tensors: torch.Tensor) -> None:
            calls.append(1)
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    run, other = Compiled(double), Compiled(double)
    x = torch.randn(5)
    with pytest.warns(UserWarning, match="without compiled kernels.*no compiler"):
        assert torch.equal(run(x), 2 * x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(x), 2 * x)
        assert torch.equal(other(x), 2 * x)
    assert calls == [1]


def test_an_error_of_the_function_itself_is_raised_and_not_taken_for_a_missing_compiler() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(7)

    with pytest.raises(RuntimeError, match="shape"):
        Compiled(broken)(torch.randn(5))
    assert not Compiled.failed


@pytest.mark.slow
def test_without_a_compiler_a_search_step_has_the_same_bits(tmp_path: Path) -> None:
    code = """
import warnings, torch, hashlib
torch.set_num_threads(1)
from actsearch import MixedCell
cell = MixedCell("grafs", evaluator="table"); cell.add_site("a")
x = torch.linspace(-5, 5, 1 << 20)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    cell(x); cell.resample(); cell(x); cell.resample()
    z = x.clone().requires_grad_()
    y = cell(z)
    g = torch.autograd.grad(y.square().sum(), [z, *cell.alpha.values()])
print(len([w for w in told if "without compiled kernels" in str(w.message)]))
print(hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in (y, *g))).hexdigest())
"""
    found = []
    for compiler in ({}, {"CXX": str(tmp_path / "missing")}):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache{len(found)}"), **compiler}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250, check=False
        )
        assert run.returncode == 0, run.stderr
        found.append(run.stdout.split())
    assert [lines[0] for lines in found] == ["0", "1"]
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize(
    ("x", "is_view"),
    [
        (torch.randn(2, 3, 4), True),
        (torch.randn(2, 3, 4).permute(2, 0, 1), True),
        (torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (torch.randn(2, 6, 4)[:, ::2], False),
        (torch.randn(1, 4).expand(3, 4), False),
        (torch.randn(()), True),
        (torch.randn(0, 4), True),
        (torch.randn(3, 1, 2).transpose(0, 1), True),
    ],
)
def test_elements_come_in_the_order_of_memory_and_go_back(x: torch.Tensor, is_view: bool) -> None:
    order = Order.of(x)
    elements = order.flatten(x)
    assert elements.shape == (x.numel(),)
    assert (elements.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == is_view
    assert torch.equal(order.restore(elements), x)
    assert torch.equal(order.restore(order.flatten(x.contiguous())), x)
