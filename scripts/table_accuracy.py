"""How far the table evaluator is from the dense one in float64, on what a network under training really hands it.

A ResNet searches on CIFAR-10 (from its JPEG copy, or any other image set). At every batch the inputs of all
activation sites and the gradients of their outputs are kept, and the gradients of α and of the inputs are computed
from them twice.

    python scripts/table_accuracy.py --model resnet20 --batches 5
    python scripts/table_accuracy.py --model resnet8 --batches 200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import actsearch._torchvision  # noqa: F401

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actsearch import MixedCell, data, models, swap
from actsearch.cell import MixedSite


class Recorder:
    """Keeps the input of every site and the gradient of its output, of one forward and backward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[int, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}
        for module in model.modules():
            if isinstance(module, MixedSite):
                module.register_forward_hook(self._record)

    def _record(self, site: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(site, MixedSite)
        self.inputs[site.index] = inputs[0].detach()
        output.register_hook(lambda g, index=site.index: self.gradients.__setitem__(index, g))


def gradients(cell: MixedCell, seen: Recorder, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of each slot's α, and of each site's input, in float64; float64 inputs are computed densely."""
    alphas = list(cell.alpha.values())
    total = [torch.zeros_like(a, dtype=torch.float64) for a in alphas]
    of_inputs = []
    for index, x in seen.inputs.items():
        x = x.to(dtype).requires_grad_()
        y = cell(x, index, True)
        d_x, *found = torch.autograd.grad(y, [x, *alphas], seen.gradients[index].to(dtype), retain_graph=True)
        of_inputs.append(d_x.double())
        total = [t + f.double() for t, f in zip(total, found, strict=True)]
    return total, of_inputs


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10_jpeg", help="an image set")
    parser.add_argument("--root", help="its folder; default: that of the other commands")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--space", default="grafs")
    parser.add_argument("--relaxation", default="dirichlet")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=200, help="on which the evaluators are compared")
    parser.add_argument("--every", type=int, default=1, help="compare at every so many training steps")
    parser.add_argument("--threads", type=int, help="default: one a core")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    module = data.build(given.data, root=given.root, batch_size=given.batch_size)
    module.setup("fit")
    torch.manual_seed(0)
    model = models.build(given.model, module.facts)
    cell = MixedCell(given.space, given.relaxation, evaluator="table")
    swap(model, lambda site: cell.add_site(site.name))
    seen = Recorder(model)
    weights = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    alpha = torch.optim.Adam(cell.parameters(), lr=6e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    errors: list[list[float]] = []
    input_errors: list[float] = []
    differences = [torch.zeros_like(a, dtype=torch.float64) for a in cell.alpha.values()]
    means = [d.clone() for d in differences]
    norms = [0.0 for _ in differences]
    step = 0
    while len(errors) < given.batches:
        for images, labels in module.train_dataloader():
            for optimizer, trained in ((alpha, list(cell.parameters())), (weights, list(model.parameters()))):
                cell.resample()
                loss = F.cross_entropy(model(images), labels)
                found = torch.autograd.grad(loss, trained, allow_unused=True, retain_graph=True)
                if optimizer is alpha and step % given.every == 0:
                    ours, our_inputs = gradients(cell, seen, torch.float32)
                    theirs, their_inputs = gradients(cell, seen, torch.float64)
                    errors.append([relative(a, b) for a, b in zip(ours, theirs, strict=True)])
                    input_errors.append(max(map(relative, our_inputs, their_inputs)))
                    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                        differences[k] += a - b
                        means[k] += b
                        norms[k] += float(b.norm())
                    print(
                        len(errors), f"loss {float(loss.detach()):.3f}", *(f"{e:.1e}" for e in errors[-1]), flush=True
                    )
                for p, g in zip(trained, found, strict=True):
                    p.grad = g
                nn.utils.clip_grad_norm_(trained, 5.0)
                optimizer.step()
            step += 1
            if len(errors) == given.batches:
                break
    by_slot = torch.tensor(errors)
    rows = {
        slot: {
            "median": float(by_slot[:, k].median()),
            "greatest": float(by_slot[:, k].max()),
            "share_above_3e-2": float((by_slot[:, k] > 3e-2).double().mean()),
            "of_the_mean": float(differences[k].norm() / means[k].norm()),
            "of_the_mean_norm": float(differences[k].norm() / norms[k]),
        }
        for k, slot in enumerate(cell.alpha)
    }
    inputs = torch.tensor(input_errors)
    rows["x (worst site)"] = {
        "median": float(inputs.median()),
        "greatest": float(inputs.max()),
        "share_above_3e-2": float((inputs > 3e-2).double().mean()),
    }
    print(f"{'':16} {'median':>9} {'greatest':>9} {'>3e-2':>7} {'mean':>9} {'bias':>9}")
    for name, row in rows.items():
        print(f"{name:16}", *(f"{value:9.1e}" for value in row.values()))
    if given.out:
        given.out.write_text(json.dumps({**vars(given), "out": None, "errors": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
