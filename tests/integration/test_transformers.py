"""A search runs on transformers too, on images and on text, at either order, to a function that can be retrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import actsearch
from actsearch import data, models, tasks

SMALL = {
    "vit": ("digits", {"limit_train": 160}, {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp_dim": 24}),
    "gpt": ("python_reference", {"limit_train": 160, "context": 16}, {"layers": 2, "heads": 2, "width": 16}),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("model", SMALL)
def test_a_transformer_is_searched_and_retrained(model: str, order: int, tmp_path: Path) -> None:
    name, data_options, model_options = SMALL[model]
    module = data.build(name, batch_size=32, **data_options)

    def task() -> pl.LightningModule:
        torch.manual_seed(0)
        net = models.build(model, module.facts, **model_options)
        return tasks.build(module.kind, net, module.facts, optimizer="adamw", lr=3e-3, interval="step", final_lr=1e-4)

    snapshots: list[Any] = []
    found = actsearch.search(
        task(),
        module,
        space="grafs",
        run_root=tmp_path,
        observers=[snapshots.append],
        callbacks=[],
        epochs=3,
        order=order,
        alpha_lr=0.02,
        warm="gelu",
        trainer={"accelerator": "cpu"},
        refine={"evaluations": 5},
    )
    assert [site.name for site in found.swap_report.replaced] == ["model.blocks.0.act", "model.blocks.1.act"]
    assert [s.skipped for s in snapshots] == [0, 0, 0]
    assert snapshots[-1].learning_rates["weights"] == pytest.approx(1e-4)  # the schedule by the step came to its end
    assert snapshots[-1].losses["train"] < snapshots[0].losses["train"]
    retrained = task()
    actsearch.swap(retrained, found.genotype)
    batch = next(iter(module.train_dataloader()))
    loss = retrained.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
