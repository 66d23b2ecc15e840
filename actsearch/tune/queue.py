"""TrialQueue: the trials of a study as a queue that any number of workers empties, none lost and none done twice.

A study has as many slots as trials were asked for. Each begins as a waiting trial of Optuna's, which one worker takes
by a step that the storage makes for one alone. If that worker dies the trial is failed, and the same values are put
into the queue again, for the same slot. Where two trials came into one slot all the same, since the worker that filled
it died halfway and two others noticed, the one with the lower number counts: numbers are given one after the other, so
all workers see it so, and the other is never run.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from actsearch.errors import RunError, SettingsError
from actsearch.seeds import mix_seed
from actsearch.tune.lease import BEAT, Beat, Watch
from actsearch.tune.plan import Plan
from actsearch.tune.storage import close, patiently

# Attributes of trials, and of the study.
SLOT, REASON, SURPLUS, RETURNED, BROKEN = "slot", "reason", "surplus", "returned", "broken"
WORKER, VALUES = "worker", "values"
IDENTITY, SIZE, ID = "plan", "trials", "id"
RETRIES = 3  # of a trial whose worker died; then it counts as failed
LONGEST_WAIT = 2.0  # seconds between two looks at the queue


class TakenOver(Exception):
    """This worker's trial was given to another one, which took it for dead; what it still computes is not wanted."""


@dataclass
class Slot:
    """The trials of one slot, by number."""

    number: int
    attempts: list[FrozenTrial] = field(default_factory=list)

    @property
    def live(self) -> list[FrozenTrial]:
        return [t for t in self.attempts if t.state in (TrialState.WAITING, TrialState.RUNNING)]

    @property
    def finished(self) -> FrozenTrial | None:
        """The trial that fills it: complete, pruned, or failed by itself; or the last of too many that were lost."""
        for trial in self.attempts:
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or is_failure(trial):
                return trial
        lost = [trial for trial in self.attempts if is_lost(trial) and not trial.user_attrs.get(RETURNED)]
        return lost[-1] if len(lost) > RETRIES and not self.live else None


def is_failure(trial: FrozenTrial) -> bool:
    """Whether it failed by itself, such as by a loss that is not finite."""
    return trial.state == TrialState.FAIL and REASON in trial.user_attrs


def is_lost(trial: FrozenTrial) -> bool:
    """Whether its worker died or was stopped."""
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs and SURPLUS not in trial.user_attrs


class TrialQueue:
    """One worker's view of a study.

    Args:
        storage: of the study; see `open_storage`.
        name: of the study.
        plan: what is tuned.
        settings: what is not tuned, as plain data; all workers must agree.
        epochs: of a trial, which the pruner needs.
        trials: of the whole study; default: as in the plan, or as the study has them.

    Raises SettingsError if the study was begun with other ranges or settings, or has more trials already.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        plan: Plan,
        settings: Mapping[str, Any],
        epochs: int,
        trials: int | None = None,
    ) -> None:
        self.plan = plan
        self.name = name
        self.storage = storage
        self.pruner = make_pruner(plan.pruner, epochs)
        self._poll = min(LONGEST_WAIT, plan.heartbeat)
        self._beats = Watch(plan.grace)
        self._gaps = Watch(plan.grace)
        wanted = json.loads(json.dumps({**plan.identity(), "settings": settings}))  # as it will be read again
        try:
            self.study = patiently(
                lambda: optuna.create_study(storage=storage, study_name=name, directions=[plan.direction])
            )
            self._set(ID, uuid.uuid4().hex)
            self._set(IDENTITY, wanted)
            self.size = trials or plan.trials
            self._set(SIZE, self.size)
        except DuplicatedStudyError:
            self.study = patiently(lambda: optuna.load_study(storage=storage, study_name=name))
            self._agree(wanted)
            self.size = self._join(trials)
        self._study_id = patiently(lambda: storage.get_study_id_from_name(name))
        there = self.slots()
        for slot in range(self.size):
            if slot not in there:
                patiently(partial(self.study.enqueue_trial, {}, user_attrs={SLOT: slot}))

    @property
    def id(self) -> str:
        """Of this study alone, even if another storage has one of the same name. Raises RunError."""
        if (known := self._get(ID)) is None:  # of an older version
            known = uuid.uuid4().hex
            self._set(ID, known)
        return str(known)

    def _get(self, attribute: str) -> Any:
        return patiently(lambda: self.study.user_attrs.get(attribute))

    def _set(self, attribute: str, value: Any) -> None:
        patiently(lambda: self.study.set_user_attr(attribute, value))

    def _agree(self, wanted: Mapping[str, Any]) -> None:
        """Raise SettingsError where the study was begun otherwise."""
        known = self._wait_for(lambda: self._get(IDENTITY))
        if known is None:  # its maker died before it said so
            self._set(IDENTITY, dict(wanted))
            return
        ours, theirs = _by_key(wanted), patiently(lambda: _by_key(known))
        for key in [*ours, *theirs]:
            if ours.get(key) != theirs.get(key):
                raise SettingsError(
                    f"study {self.name} was begun with another {key}: {theirs.get(key)!r}, now {ours.get(key)!r}; "
                    "give it back, or begin another study with --name"
                )

    def _join(self, trials: int | None) -> int:
        """The number of trials of a study that is there, once its maker has put them into the queue."""
        known = self._wait_for(lambda: self._get(SIZE))
        if not isinstance(known, int):
            known = self.plan.trials
        self._wait_for(lambda: len(self.slots()) >= known or None)
        known = max(known, len(self.slots()))
        if trials is not None and trials < known:
            raise SettingsError(f"study {self.name} has {known} trials already; --trials can raise that, not lower it")
        if trials is not None and trials > known:
            self._set(SIZE, trials)
        return max(known, trials or 0)

    def _wait_for(self, what: Callable[[], Any]) -> Any:
        """What is there within the grace, else None."""
        end = time.monotonic() + self.plan.grace
        while (found := what()) is None and time.monotonic() < end:
            time.sleep(min(0.2, self.plan.heartbeat))
        return found

    def close(self) -> None:
        """Leave the storage; the queue is of no use then."""
        close(self.storage)

    # -- what there is ---------------------------------------------------------------------------------------------

    def slots(self) -> dict[int, Slot]:
        """All slots by number; trials that somebody else added to the study belong to none."""
        found: dict[int, Slot] = {}
        for trial in patiently(lambda: self.study.get_trials(deepcopy=False)):
            number = trial.user_attrs.get(SLOT)
            if isinstance(number, int):
                found.setdefault(number, Slot(number)).attempts.append(trial)
        return dict(sorted(found.items()))

    @property
    def n_finished(self) -> int:
        return sum(slot.finished is not None for slot in self.slots().values())

    # -- taking and giving -----------------------------------------------------------------------------------------

    def claims(self, stop: Callable[[], bool]) -> Iterator[Claim]:
        """Trials for this worker, until every slot is filled or `stop()`.

        While the last ones run elsewhere it waits, so that there is someone to take them over.
        """
        while not stop():
            slots = self.slots()
            patiently(partial(self._take_over, slots))
            if len(slots) >= self.size and all(slot.finished for slot in slots.values()):
                return
            claim = patiently(partial(self._claim, slots))
            if claim is None:
                time.sleep(self._poll)
            else:
                yield claim

    def _claim(self, slots: Mapping[int, Slot]) -> Claim | None:
        waiting = [t for slot in slots.values() for t in slot.attempts if t.state == TrialState.WAITING]
        for frozen in sorted(waiting, key=lambda trial: trial.number):
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._study_id, frozen.number)
            try:
                if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    continue
            except RuntimeError:  # somebody was quicker, and has finished it
                continue
            slot = int(frozen.user_attrs[SLOT])
            others = self.slots()[slot]
            if any(t.number < frozen.number for t in others.live) or others.finished is not None:
                self.storage.set_trial_user_attr(trial_id, SURPLUS, True)
                self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                continue
            return Claim(self, trial_id, frozen.number, slot)
        return None

    def _take_over(self, slots: Mapping[int, Slot]) -> None:
        """Fail the trials whose workers died, and put them into the queue again."""
        for slot in slots.values():
            for trial in slot.attempts:
                if trial.state == TrialState.RUNNING and self._beats.is_still(trial.number, trial.user_attrs.get(BEAT)):
                    self._fail_and_retry(trial.number)
            # Whoever failed its last trial died before it put in another.
            if not slot.live and not slot.finished and self._gaps.is_still(slot.number, len(slot.attempts)):
                self._retry(next((t for t in reversed(slot.attempts) if is_lost(t)), slot.attempts[-1]))

    def _fail_and_retry(self, number: int) -> None:
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        try:
            if not self.storage.set_trial_state_values(trial_id, TrialState.FAIL):
                return
        except RuntimeError:  # another worker was quicker, or it is not dead
            return
        self._retry(self.storage.get_trial(trial_id))

    def _retry(self, trial: FrozenTrial) -> None:
        number = int(trial.user_attrs[SLOT])
        slot = self.slots()[number]
        if slot.live or slot.finished is not None:
            return
        values = {**trial.user_attrs.get(VALUES, {}), **trial.params}  # it may have died before it drew any
        self.study.enqueue_trial(values, user_attrs={SLOT: number, "retry_of": trial.number, VALUES: values})


class Claim:
    """A trial that this worker runs. Within it, it gives signs of life.

    Attributes:
        number, slot: of the trial.
        values: by dotted key, once it is entered.
    """

    def __init__(self, queue: TrialQueue, trial_id: int, number: int, slot: int) -> None:
        self.number, self.slot = number, slot
        self.values: dict[str, Any] = {}
        self._queue, self._trial_id = queue, trial_id
        self._beat = Beat(queue.storage, trial_id, queue.plan.heartbeat)

    def __enter__(self) -> Claim:
        """Draw its values. Raises TakenOver, and RunError if the storage cannot be reached."""
        self._beat.__enter__()
        try:
            self._do(self._draw)
        except BaseException as error:
            self._beat.__exit__(None, None, None)
            if not isinstance(error, TakenOver | RunError):  # then nothing can be given back
                self.give_back()
            raise
        return self

    def _draw(self) -> None:
        plan = self._queue.plan
        # Anew, since a study remembers the trials that its sampler saw. The sampler is each slot's own: no two workers
        # draw the same, and nothing depends on who draws, or on being resumed or done again after an outage.
        study = optuna.load_study(
            storage=self._queue.storage,
            study_name=self._queue.name,
            sampler=make_sampler(plan.sampler, mix_seed(plan.seed, self.slot)),
            pruner=self._queue.pruner,
        )
        study.get_trials(deepcopy=False)  # it must have met the trial
        self._trial = Trial(study, self._trial_id)
        self._trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
        self.values = plan.suggest(self._trial)

    def __exit__(self, *of_error: Any) -> None:
        self._beat.__exit__(None, None, None)

    def note(self, **attributes: Any) -> None:
        """Keep plain data with the trial. Raises TakenOver."""
        for name, value in attributes.items():
            self._do(partial(self._queue.storage.set_trial_user_attr, self._trial_id, name, value))

    def report(self, value: float, epoch: int) -> None:
        """Tell the metric after `epoch` (from 1). Raises optuna.TrialPruned if the trial is to end, and TakenOver."""
        if self._beat.taken.is_set():
            raise TakenOver
        self._do(lambda: self._trial.report(value, epoch))
        if patiently(self._trial.should_prune):
            raise optuna.TrialPruned

    def complete(self, value: float) -> None:
        """The trial has its value, a finite number. Raises TakenOver."""
        self._finish(TrialState.COMPLETE, value)

    def prune(self) -> None:
        """The trial was ended early, and keeps the last value that was reported. Raises TakenOver."""
        self._finish(TrialState.PRUNED)

    def fail(self, reason: str) -> None:
        """The trial cannot have a value, whoever runs it. Raises TakenOver."""
        self.note(**{REASON: reason})
        self._finish(TrialState.FAIL)

    def give_back(self) -> None:
        """Put it into the queue again: this worker was stopped. Does nothing if that was done already."""
        self._again(**{RETURNED: True})

    def break_off(self, reason: str) -> None:
        """Put it into the queue again as if this worker had died: of too many such attempts the last one fails."""
        self._again(**{BROKEN: reason})

    def _again(self, **attributes: Any) -> None:
        try:
            self.note(**attributes)
        except TakenOver:
            return
        patiently(partial(self._queue._fail_and_retry, self.number))

    def _finish(self, state: TrialState, value: float | None = None) -> None:
        def tell() -> FrozenTrial:
            return self._queue.study.tell(self.number, value, state=state, skip_if_finished=True)

        # Told twice if the connection broke between: then it is finished, as it was told.
        told = self._do(tell)
        if told.state != state or (value is not None and told.value != value):
            raise TakenOver

    def _do(self, action: Callable[[], Any]) -> Any:
        try:
            return patiently(action)
        except RuntimeError:  # the trial is finished
            raise TakenOver from None


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name."""
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return kinds[name](seed=seed % 2**32)


def make_pruner(name: str, epochs: int) -> optuna.pruners.BasePruner:
    """The pruner of that name, for trials of so many epochs, of which it leaves everyone a quarter.

    A search tells little before its warm start is over.
    """
    spared = -(-epochs // 4)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=spared, max_resource=epochs, reduction_factor=3)
    return optuna.pruners.MedianPruner(n_warmup_steps=spared) if name == "median" else optuna.pruners.NopPruner()


def _by_key(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, by the names that the user knows: keys of settings, and of what is tuned."""
    rest = {key: value for key, value in identity.items() if key not in ("parameters", "settings")}
    ranges = {f"range of {key}": value for key, value in identity["parameters"].items()}
    return {**rest, **dict(_flat(identity["settings"])), **ranges}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
