"""What actsearch finds in a real PaiNN and SchNet of schnetpack, where activations are functions on `Dense`."""

from __future__ import annotations

from typing import Any, TypeVar

import actsearch._torchvision  # noqa: F401

import pytest
import torch
import torch.utils.data.dataloader as dataloader
from torch import Tensor, nn

from actsearch.swap import swap, unswap

if not hasattr(dataloader, "T_co"):  # schnetpack 2.1.1 imports this name, which torch 2.13 no longer has
    dataloader.T_co = TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]

spk = pytest.importorskip("schnetpack", reason="schnetpack is not installed: run make test-deepmd")

PAINN = [
    "interactions.0.interatomic_context_net.0.activation",
    "interactions.1.interatomic_context_net.0.activation",
    "mixing.0.intraatomic_context_net.0.activation",
    "mixing.1.intraatomic_context_net.0.activation",
]
SCHNET = [f"interactions.{i}.{part}.activation" for i in range(2) for part in ("f2out.0", "filter_network.0")]


def model(kind: str) -> Any:
    build = {"PaiNN": spk.representation.PaiNN, "SchNet": spk.representation.SchNet}[kind]
    return build(8, 2, spk.nn.GaussianRBF(5, 4.0), spk.nn.CosineCutoff(4.0)).double().eval()


def water(positions: Tensor) -> dict[str, Tensor]:
    pairs = torch.tensor([[i, j] for i in range(3) for j in range(3) if i != j])
    vectors = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    return {
        "_atomic_numbers": torch.tensor([8, 1, 1]),
        "_Rij": vectors,
        "_idx_i": pairs[:, 0],
        "_idx_j": pairs[:, 1],
    }


POSITIONS = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64)


@pytest.mark.parametrize(("kind", "names", "function"), [("PaiNN", PAINN, "silu"), ("SchNet", SCHNET, "shifted")])
def test_swap_finds_the_functions_of_dense_layers_and_only_those(kind: str, names: list[str], function: str) -> None:
    m = model(kind)
    report = swap(m, nn.Mish, example=(water(POSITIONS),))
    assert [site.name for site in report.replaced] == names
    assert all(site.function.startswith(function) for site in report.replaced)
    assert report.skipped == []
    assert report.unused == []
    assert isinstance(m.get_submodule(names[0]), nn.Mish)


@pytest.mark.parametrize("kind", ["PaiNN", "SchNet"])
def test_a_swapped_model_has_another_energy_that_does_not_change_under_rotation(kind: str) -> None:
    m = model(kind)

    def energy(positions: Tensor) -> Tensor:
        return m(water(positions))["scalar_representation"].square().sum()

    before = energy(POSITIONS)
    report = swap(m, nn.Mish)
    x = POSITIONS.clone().requires_grad_()
    after = energy(x)
    assert not torch.isclose(after, before)
    (gradient,) = torch.autograd.grad(after, x)
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    y = (POSITIONS @ q.T).requires_grad_()
    turned = energy(y)
    assert torch.isclose(turned, after, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(turned, y)[0], gradient @ q.T, atol=1e-12)
    unswap(m, report)
    assert torch.equal(energy(POSITIONS), before)
