"""A search on one's own model and data, 569 tumours with 30 measures each. Only the last lines know actsearch."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch.utils.data import TensorDataset

import actsearch
from actsearch.compare import Budget, compare, of_genotype, standard_contestants


class Tumours(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (torch.nn.Linear(n, m) for n, m in ((30, 32), (32, 32), (32, 2)))

    def forward(self, x):
        return self.last(F.gelu(self.second(F.gelu(self.first(x)))))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    x, y = (torch.tensor(values) for values in load_breast_cancer(return_X_y=True))
    x = ((x - x[:400].mean(0)) / x[:400].std(0)).float()
    parts = TensorDataset(x[:400], y[:400]), TensorDataset(x[400:], y[400:])
    data = pl.LightningDataModule.from_datasets(parts[0], test_dataset=parts[1], batch_size=16)
    result = actsearch.search(Tumours(), data, space="swish", epochs=20, alpha_lr=0.02, warm="gelu")
    controls = standard_contestants(["relu", "gelu", "silu"], actsearch.SearchSpace.load("swish"), random=2)
    functions = [of_genotype(result.genotype, "discovered"), *controls]
    print(compare(Tumours, data, functions, seeds=range(5), budget=Budget(20), directory=result.run_dir).verdict())
    print(actsearch.swap(Tumours(), result.activation))
