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

    For every trial a study is built from the records of those before it, with samplers seeded by the seed and the
    trial's number. What is asked for depends on nothing else, so a search that is resumed goes on with the same trials.

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
        self._told: list[optuna.trial.FrozenTrial] = []
        self._met: set[Genotype] = set()

    def ask(self, records: Sequence[TrialRecord]) -> tuple[optuna.Study, optuna.Trial, Genotype] | None:
        """The trial after `records`, which grow from call to call: its study, itself, and its function.

        None of them had that function; None if no new one is found.
        """
        for record in records[len(self._told) :]:
            self._told.append(self._frozen(record))
            self._met.add(to_genotype(self.space, record.params))
        study = self._study()
        for draw in range(DRAWS):
            name = self.strategy if draw < OWN_DRAWS else "random"
            study.sampler = _SAMPLERS[name](mix_seed(self.seed, 52_711, len(records), draw) % 2**32, self.settings)
            trial = study.ask(self._distributions)
            if self.space.admits({slot.name: trial.params[slot.name] for slot in self.space.slots}):
                genotype = to_genotype(self.space, trial.params)
                if genotype not in self._met:
                    return study, trial, genotype
            study.tell(trial, state=TrialState.FAIL)  # which samplers do not look at
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

    def _study(self) -> optuna.Study:
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce every study
        try:
            study = optuna.create_study(
                pruner=optuna.pruners.SuccessiveHalvingPruner(self.first, self.settings.reduction)
            )
        finally:
            optuna.logging.set_verbosity(verbosity)
        study.add_trials(self._told)
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
