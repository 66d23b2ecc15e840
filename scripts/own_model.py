"""A search on one's own model and data, 569 tumours with 30 measures each. Only the last lines know actsearch."""

import actsearch._torchvision  # noqa: F401 (for a torchvision that was built for another torch)

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch.utils.data import TensorDataset

from actsearch import SearchSpace, search, swap
from actsearch.compare import Budget, compare, contestant, standard_contestants


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (torch.nn.Linear(n, m) for n, m in ((30, 32), (32, 32), (32, 2)))

    def forward(self, x):
        return self.last(F.gelu(self.second(F.gelu(self.first(x)))))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


x, y = (torch.tensor(values) for values in load_breast_cancer(return_X_y=True))
x = ((x - x[:400].mean(0)) / x[:400].std(0)).float()
train, test = (TensorDataset(x[part], y[part]) for part in (slice(0, 400), slice(400, None)))
data = pl.LightningDataModule.from_datasets(train, test_dataset=test, batch_size=16)
found = search(Net(), data, space="swish", epochs=20, alpha_lr=0.02, warm="gelu")
functions = [*standard_contestants(["relu", "gelu", "silu"], SearchSpace.load("swish"), 2), contestant(found.genotype)]
print(compare(Net, data, functions, seeds=range(5), budget=Budget(10), directory="comparison").verdict())
print(swap(Net(), found.activation))
