"""The Python and YAML on the pages of the site does what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from actsearch.space import SearchSpace

ROOT = Path(__file__).parent.parent.parent

# What the pages call "my": a task, its data, a model, a loss.
MY = """
import actsearch._torchvision

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset


class MyModel(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


x = torch.randn(64, 3)
y = x.sum(1, keepdim=True).tanh()
points = TensorDataset(x, y)
my_datamodule = pl.LightningDataModule.from_datasets(points, test_dataset=points, batch_size=16)
my_lightning_module = MyModel()
my_model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
my_loss = torch.Tensor.mean
"""
# What makes seconds of minutes.
SHORTER = {
    "epochs=20": "epochs=3",
    "epochs=100": "epochs=3",
    "warm_epochs=20": "warm_epochs=1",
    'space="smooth_c2"': 'space="taafs"',
    "n_residual=900, n_data=100": "n_residual=40, n_data=10",
    "Budget(10)": "Budget(1)",
    "range(5)": "range(2)",
    'load("grafs")': 'load("tiny")',
    'space="grafs"': 'space="tiny"',
}
RUN = re.compile(r"runs/swish/[\d_-]+")  # the tour's, of which there is one where its commands ran


def blocks(page: str, kind: str = "python") -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"(?<!<!-- varies -->\n)```{kind}\n(.*?)```", text, re.DOTALL)


def run(text: str, folder: Path) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    text = RUN.sub("zoo:mish", text)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SAID = {
    "index.md": "replaced 1 activation site",
    "own_model.md": "The discovered function",
    "trained.md": "replaced 1 activation site",
    "pinns.md": "",
    "tour.md": "",
}


@pytest.mark.slow
def test_the_python_of_the_pages_runs(tmp_path: Path) -> None:
    assert all(map(blocks, SAID))
    # In one process, as most of the time is that of importing torch; each with names of its own.
    pages = {page: "\n".join([MY, *blocks(page)]) for page in SAID}
    every = (
        f"for page, text in {pages!r}.items():\n    print('page', page)\n    exec(text, {{'__name__': '__main__'}})\n"
    )
    printed = dict(part.split("\n", 1) for part in run(every, tmp_path).split("page ")[1:])
    for page, said in SAID.items():
        assert said in printed[page], page


@pytest.mark.slow
def test_an_operation_of_ones_own_is_searched_saved_and_exported_and_a_relaxation_is_a_cells(tmp_path: Path) -> None:
    module, use, relaxation = blocks("own_op.md")
    (tmp_path / "my_ops.py").write_text(module)
    more = """
import json
from actsearch.cli import main
for evaluator in ("table", "dense"):
    result = actsearch.search(MyModel(), my_datamodule, space=space, epochs=4, alpha_lr=0.05, evaluator=evaluator)
found = space.genotype({"u1": "wave", "u2": "softsign", "b1": "add"})
found.save("found.json")
assert actsearch.load("found.json")(torch.ones(1)).item() == torch.ones(1).sin().add(0.5).item()
for form in ("source", "latex", "sympy", "onnx", "torch"):
    assert main(["export", "found.json", "--to", form, "--out", form]) == 0, form
assert main(["export", "found.json", "--to", "numpy", "--out", "numpy"]) == 2
"""
    more_of_relaxation = """
assert torch.allclose(cell.relaxation.expected(torch.tensor([0.9, 0.3, -1.0])), torch.tensor([0.8, 0.2, 0.0]))
cell.add_site("here")(torch.randn(5, 3, requires_grad=True)).sum().backward()
assert all(alpha.grad is not None for alpha in cell.alpha.values())
"""
    said = run("\n".join([MY, use, more, relaxation, more_of_relaxation]), tmp_path)
    assert "wave" in said + (tmp_path / "found.json").read_text()
    # Without the module it is unknown, in one line.
    done = subprocess.run(
        [sys.executable, "-m", "actsearch", "show", "found.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "unknown operation 'wave'" in done.stderr


def test_the_space_of_the_page_is_a_space(tmp_path: Path) -> None:
    (text,) = blocks("own_space.md", "yaml")
    space = SearchSpace.load(yaml.safe_load(text))
    assert space.n_candidates == 4 + 4 + 2
    assert space.clip.kind == "smooth"


@pytest.mark.slow
def test_the_python_on_spaces_runs(tmp_path: Path) -> None:
    (text,) = blocks("own_space.md", "yaml")
    (tmp_path / "my_space.yaml").write_text(text)
    (python,) = blocks("own_space.md")
    assert run(python, tmp_path).startswith("32 32")


@pytest.mark.slow
def test_the_python_on_reading_a_run_runs(tmp_path: Path) -> None:
    (python,) = blocks("reading.md")
    search = 'import actsearch\nresult = actsearch.search(my_lightning_module, my_datamodule, space="tiny", epochs=3)'
    said = run("\n".join([MY, search, python.replace('"runs/NAME/DATE"', "result.run_dir")]), tmp_path)
    assert "\nfinished " in said
    assert "(3, 7) [1.9459" in said
    assert "probability" in said
