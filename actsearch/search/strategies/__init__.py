"""Strategies beside the gradient: functions are drawn, each is trained from scratch, and the best is kept.

Random search, TPE and a genetic sampler, all Optuna's, by ask-and-tell over the same SearchSpace, with successive
halving over rungs of training steps, for the budget of the gradient search with the same settings.
"""

from actsearch.search.strategies.budget import StepBudget, rungs
from actsearch.search.strategies.log import TrialLog, TrialRecord
from actsearch.search.strategies.loop import sample
from actsearch.search.strategies.mapping import distributions, to_genotype, to_params
from actsearch.search.strategies.sampler import Sampler
from actsearch.search.strategies.training import TrialTraining, pairs

__all__ = [
    "Sampler",
    "StepBudget",
    "TrialLog",
    "TrialRecord",
    "TrialTraining",
    "distributions",
    "pairs",
    "rungs",
    "sample",
    "to_genotype",
    "to_params",
]
