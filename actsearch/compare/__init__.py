"""compare: retrain discovered and standard activations over seeds, and say honestly what came of it."""

from actsearch.compare.adapted import OWN
from actsearch.compare.check import check_smoothness
from actsearch.compare.comparison import Comparison, Row, Test
from actsearch.compare.contestants import (
    ADAPTED,
    DISCOVERED,
    REFERENCES,
    TORCH_NAMES,
    Contestant,
    contestant,
    of_genotype,
    standard_contestants,
)
from actsearch.compare.retrain import Budget, Retrainer, Retraining, fresh_task
from actsearch.compare.saved import load_model, save_model
from actsearch.compare.statistics import Paired, detectable, holm, paired
from actsearch.compare.study import compare

__all__ = [
    "ADAPTED",
    "DISCOVERED",
    "OWN",
    "REFERENCES",
    "TORCH_NAMES",
    "Budget",
    "Comparison",
    "Contestant",
    "Paired",
    "Retrainer",
    "Retraining",
    "Row",
    "Test",
    "check_smoothness",
    "compare",
    "contestant",
    "detectable",
    "fresh_task",
    "holm",
    "load_model",
    "of_genotype",
    "paired",
    "save_model",
    "standard_contestants",
]
