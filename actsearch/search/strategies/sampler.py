"""Which function is tried next: Optuna's samplers, asked anew for every trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from actsearch.errors import SettingsError, unknown_name
from actsearch.genotype import Genotype
from actsearch.search.settings import TrialSettings
from actsearch.search.strategies.log import TrialRecord
from actsearch.search.strategies.mapping import distributions, to_genotype
from actsearch.seeds import mix_seed
from actsearch.space import SearchSpace

Sampled = Literal["random", "tpe", "genetic"]
# Draws for one trial: repeats cost no training but bring nothing new. After the sampler's own come random ones.
OWN_DRAWS, DRAWS = 20, 200

_SAMPLERS: dict[str, Callable[[int, TrialSettings], BaseSampler]] = {
    "random": lambda seed, settings: RandomSampler(seed=seed),
    "tpe": lambda seed, settings: TPESampler(n_startup_trials=settings.population, seed=seed),
    "genetic": lambda seed, settings: NSGAIISampler(population_size=settings.population, seed=seed),
}


class Sampler:
    """Asks Optuna for functions.

    For every trial a study is built from the records of those before it, with a sampler seeded by the seed and the
    trial's number. What is asked for so depends on nothing else: a search that is resumed goes on with the same trials.

    Args:
        strategy: random (uniform over the slots' candidates), tpe (tree-structured Parzen estimator; Bergstra et al.
            2011) or genetic (NSGA-II with a single objective; Deb et al. 2002).
        space: the functions.
        settings: of the trials.
        first: steps of the first rung of successive halving (asynchronous; Li et al., arXiv 1810.05934).
        seed: of all draws.

    Raises SettingsError for an unknown strategy.
    """

    def __init__(self, strategy: str, space: SearchSpace, settings: TrialSettings, first: int, seed: int) -> None:
        if strategy not in _SAMPLERS:
            raise SettingsError(unknown_name("strategy", strategy, get_args(Sampled)))
        self.strategy, self.space, self.settings, self.first, self.seed = strategy, space, settings, first, seed
        self._distributions = distributions(space)

    def ask(self, records: Sequence[TrialRecord]) -> tuple[optuna.Study, optuna.Trial, Genotype] | None:
        """The trial after `records`: its study, itself, and its function, which none of them had.

        None if no new function is found.
        """
        met = {to_genotype(self.space, record.params) for record in records}
        for draw in range(DRAWS):
            study = self._study(records, draw)
            trial = study.ask(self._distributions)
            if not self.space.admits({slot.name: trial.params[slot.name] for slot in self.space.slots}):
                continue
            genotype = to_genotype(self.space, trial.params)
            if genotype not in met:
                return study, trial, genotype
        return None

    def tell(self, study: optuna.Study, trial: optuna.Trial, loss: float, pruned: bool) -> dict[str, object]:
        """End a trial with its last loss; what sampler and pruner noted of it, plain data.

        A pruned trial is COMPLETE to the genetic sampler, with the loss that it had: else only the few that are never
        pruned would have offspring.
        """
        if pruned and self.strategy != "genetic":
            frozen = study.tell(trial, state=TrialState.PRUNED)
        else:
            frozen = study.tell(trial, loss)
        return dict(frozen.system_attrs)

    def _study(self, records: Sequence[TrialRecord], draw: int) -> optuna.Study:
        name = self.strategy if draw < OWN_DRAWS else "random"
        seed = mix_seed(self.seed, 52_711, len(records), draw) % 2**32
        told = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce every study
        try:
            study = optuna.create_study(
                sampler=_SAMPLERS[name](seed, self.settings),
                pruner=optuna.pruners.SuccessiveHalvingPruner(self.first, self.settings.reduction),
            )
        finally:
            optuna.logging.set_verbosity(told)
        study.add_trials([self._frozen(record) for record in records])
        return study

    def _frozen(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        pruned = record.pruned and self.strategy != "genetic"
        return optuna.trial.create_trial(
            state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
            value=record.loss,
            params=dict(record.params),
            distributions=self._distributions,
            system_attrs=dict(record.attrs),
            intermediate_values=dict(record.losses),
        )
