"""Random, TPE and genetic search: what they draw, what they spend, and that a killed one goes on as if nothing was."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from actsearch import api
from actsearch.activation import Activation
from actsearch.compare import fresh_task, of_genotype
from actsearch.errors import ActsearchError, GenotypeError, RunError, SettingsError, SmoothnessError
from actsearch.genotype import Genotype
from actsearch.ops.spec import registry
from actsearch.search.bilevel import BilevelSearch
from actsearch.search.settings import SearchSettings, TrialSettings
from actsearch.search.split import split
from actsearch.search.strategies import (
    Sampler,
    StepBudget,
    TrialLog,
    TrialRecord,
    distributions,
    rungs,
    sample,
    to_genotype,
    to_params,
)
from actsearch.search.strategies.loop import Judge
from actsearch.space import SearchSpace
from actsearch.trials import TrialsResult, gradient_steps, search_by_trials

STRATEGIES = ("random", "tpe", "genetic")
TINY = SearchSpace.load("tiny")
RUNGS = (2, 6, 18)
PLAIN = SearchSpace.from_dict(
    {
        "name": "plain",
        "cell": {
            "u1": {"inputs": "x", "candidates": ["identity", "relu", "tanh"]},
            "u2": {"inputs": "x", "candidates": ["relu", "sigmoid", "beta"]},
            "b1": {"inputs": ["u1", "u2"], "candidates": ["add", "mul", "left"]},
        },
    }
)
WITHOUT_BETA = SearchSpace.from_dict(
    {
        "name": "without_beta",
        "cell": {
            "u1": {"inputs": "x", "candidates": ["identity", "relu", "tanh"]},
            "u2": {"inputs": "x", "candidates": ["relu", "sigmoid"]},
            "b1": {"inputs": ["u1", "u2"], "candidates": ["add", "mul", "left"]},
        },
    }
)


# -- genotype and trial ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SearchSpace.names())
def test_a_trial_and_its_genotype_mean_the_same(name: str) -> None:
    space = SearchSpace.load(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        params = study.ask(distributions(space)).params
        genotype = to_genotype(space, params)
        again = to_params(space, genotype)
        assert again.keys() == params.keys()
        assert to_genotype(space, again) == genotype
        chosen = {slot.name: params[slot.name] for slot in space.slots}
        assert {slot: choice.op for slot, choice in genotype.slots.items()} == chosen
        for key, value in params.items():
            slot, *own = key.split(".")
            if own and chosen[slot] == own[0]:
                assert genotype.slots[slot].parameters[own[1]] == value == again[key]


@pytest.mark.parametrize("name", SearchSpace.names())
def test_a_random_genotype_comes_back_but_for_what_each_trial_trains(name: str) -> None:
    space = SearchSpace.load(name)
    for seed in range(20):
        genotype = space.random(seed)
        back = to_genotype(space, to_params(space, genotype))
        for slot, choice in genotype.slots.items():
            assert back.slots[slot].op == choice.op
            for p in registry[choice.op].parameters:
                kept = p.trained_with == "alpha"
                assert back.slots[slot].parameters[p.name] == (choice.parameters[p.name] if kept else p.mean)
        assert back.clip == genotype.clip
        assert back.space == genotype.space


def test_a_function_of_another_space_has_no_trial() -> None:
    with pytest.raises(GenotypeError, match="is no function of space tiny: see slot 'u1'"):
        to_params(TINY, Genotype.of_op("erf"))
    with pytest.raises(GenotypeError, match="chooses nothing for slot 'b1'"):
        to_genotype(TINY, {"u1": "relu", "u2": "relu"})
    with pytest.raises(ActsearchError, match="candidate of slot u1"):
        to_genotype(TINY, {"u1": "erf", "u2": "relu", "b1": "add"})


# -- the budget --------------------------------------------------------------------------------------------------------


class Toy(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        self.steps_in_training = 0

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        self.steps_in_training += torch.is_grad_enabled()
        x, y = batch
        return nn.functional.mse_loss(self.model(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class ToyData(pl.LightningDataModule):
    """40 examples; of the test set nobody may ask."""

    def __init__(self) -> None:
        super().__init__()
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        self.train = TensorDataset(x, x.tanh().sum(1, keepdim=True))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=4, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        raise AssertionError("a search never sees the test set")


@pytest.mark.parametrize(
    ("space", "changes"),
    [
        (WITHOUT_BETA, {}),
        (WITHOUT_BETA, {"shrink": False}),
        (WITHOUT_BETA, {"accumulate": 3, "arch_every": 2}),
        (WITHOUT_BETA, {"shrink_unit": "step", "shrink_start": 3, "arch_every": 3}),
        (WITHOUT_BETA, {"epoch_batches": 5, "accumulate": 2}),
        (WITHOUT_BETA, {"order": 2}),
        (PLAIN, {}),
    ],
    ids=["default", "no-shrinking", "accumulate", "by-step", "short-epochs", "second-order", "with-beta"],
)
def test_the_budget_is_what_a_gradient_search_takes(
    space: SearchSpace, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"train": 0, "arch": 0}
    apply = BilevelSearch._apply_gradients

    def counted(self: BilevelSearch, level: str, *arguments: Any) -> Tensor:
        taken[level] += 1
        return apply(self, level, *arguments)

    monkeypatch.setattr(BilevelSearch, "_apply_gradients", counted)
    settings = SearchSettings(**{"epochs": 4, "warm_epochs": 0, "evaluator": "dense"} | changes)
    settings.refine.enabled = False
    result = api.search(
        Toy(),
        ToyData(),
        space=space,
        run_root=tmp_path,
        observers=[],
        callbacks=[],
        trainer={"accelerator": "cpu"},
        **settings.to_dict(),
    )
    uses_beta = any(p.trained_with == "alpha" for op in result.genotype.tree.ops() for p in registry[op].parameters)
    expected = gradient_steps(ToyData().train_dataloader(), settings, space, to_the_end=uses_beta)
    assert taken["train"] == expected.weights
    assert taken["arch"] * (4 if settings.order == 2 else 1) == expected.alpha
    assert expected.total == expected.weights + expected.alpha


def test_rungs_are_shares_of_the_weight_steps() -> None:
    budget = StepBudget(weights=162, alpha=162)
    assert rungs(TrialSettings(), budget) == (6, 18, 54)
    assert rungs(TrialSettings(rungs=1, length=1.0), budget) == (162,)
    assert rungs(TrialSettings(rungs=3, reduction=2, length=0.5), budget) == (20, 40, 80)
    assert rungs(TrialSettings(), StepBudget(4, 4)) == (1, 3, 9)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"length": 0.0}, "trials.length"),
        ({"length": 1.5}, "trials.length"),
        ({"rungs": 0}, "trials.rungs"),
        ({"reduction": 1}, "trials.reduction"),
        ({"population": 1}, "trials.population"),
    ],
)
def test_settings_of_trials_out_of_range_are_refused(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(SettingsError, match=hint):
        TrialSettings(**changes)


# -- trials, with losses that are made up ------------------------------------------------------------------------------


def made_up_loss(genotype: Genotype, step: int) -> float:
    """Falls with the steps; orders functions by chance, the same way at every step."""
    return zlib.crc32(genotype.formula.encode()) / 2**32 + 1 / step


def train(genotype: Genotype, within: Sequence[int], judge: Judge) -> None:
    for step in within:
        if not judge(step, made_up_loss(genotype, step)):
            return


def run(
    strategy: str, directory: Path, budget: int = 110, seed: int = 0, space: SearchSpace = TINY, training: Any = train
) -> list[TrialRecord]:
    log = TrialLog(directory, {"strategy": strategy, "seed": seed})
    sample(Sampler(strategy, space, TrialSettings(), RUNGS[0], seed), training, RUNGS, budget, log)
    return log.records


def essence(records: Sequence[TrialRecord]) -> list[Any]:
    return [(r.number, r.params, r.formula, r.losses, r.steps, r.pruned, r.attrs) for r in records]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [1, 2, 37, 150])
def test_all_trials_together_spend_the_budget_to_less_than_a_rung(strategy: str, budget: int, tmp_path: Path) -> None:
    records = run(strategy, tmp_path, budget)
    spent = sum(r.steps for r in records)
    assert spent <= budget
    assert budget - spent < RUNGS[0]
    for r in records:
        assert r.steps in RUNGS
        assert list(r.losses) == [step for step in RUNGS if step <= r.steps]
        assert r.losses == {s: pytest.approx(made_up_loss(to_genotype(TINY, r.params), s)) for s in r.losses}


def test_halving_stops_a_trial_that_is_worse_than_its_rivals_at_the_same_steps(tmp_path: Path) -> None:
    budget, at_first, stopped = 400, [], 0
    for record in run("random", tmp_path, budget):
        at_first.append(record.losses[RUNGS[0]])
        keeps = max(1, len(at_first) // TrialSettings().reduction)
        if record.losses[RUNGS[0]] > sorted(at_first)[keeps - 1]:
            assert record.pruned or budget < RUNGS[1]
            assert record.steps == RUNGS[0]
            stopped += 1
        else:
            assert record.steps > RUNGS[0] or budget < RUNGS[1]  # what was left did not reach further
        budget -= record.steps
    assert 0 < stopped < len(at_first)


def test_a_trial_without_a_finite_loss_ends_and_is_the_worst(tmp_path: Path) -> None:
    def failing(genotype: Genotype, within: Sequence[int], judge: Judge) -> None:
        broken = "relu" in genotype.formula
        for step in within:
            if not judge(step, math.nan if broken else made_up_loss(genotype, step)):
                return

    for strategy in STRATEGIES:
        records = run(strategy, tmp_path / strategy, 80, training=failing)
        broken = [r for r in records if "relu" in r.formula]
        assert broken
        assert all(r.loss == math.inf and r.steps == RUNGS[0] for r in broken)
        log = TrialLog(tmp_path / strategy, {"strategy": strategy, "seed": 0})
        assert essence(log.records) == essence(records)  # infinity too is read back
        assert log.best().loss < math.inf


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_search_goes_on_with_the_same_trials(strategy: str, tmp_path: Path) -> None:
    whole = run(strategy, tmp_path / "whole")
    assert len(whole) > TrialSettings().population + 4  # models and generations take part
    lines = (tmp_path / "whole" / "trials.jsonl").read_text().splitlines(keepends=True)
    for done in (0, 1, len(whole) // 2, len(whole) - 1):
        directory = tmp_path / str(done)
        directory.mkdir()
        # A kill in the middle of a line.
        (directory / "trials.jsonl").write_text("".join(lines[: done + 1]) + lines[done + 1][:17])
        assert essence(run(strategy, directory)) == essence(whole)


def test_a_search_killed_within_a_trial_does_that_trial_again(tmp_path: Path) -> None:
    whole = run("tpe", tmp_path / "whole")
    calls = 0

    def killed(genotype: Genotype, within: Sequence[int], judge: Judge) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            judge(within[0], 0.5)
            raise KeyboardInterrupt
        train(genotype, within, judge)

    with pytest.raises(KeyboardInterrupt):
        run("tpe", tmp_path / "killed", training=killed)
    assert essence(run("tpe", tmp_path / "killed")) == essence(whole)


def test_trials_depend_on_seed_and_strategy_alone(tmp_path: Path) -> None:
    found = {s: essence(run(s, tmp_path / s)) for s in STRATEGIES}
    for s in STRATEGIES:
        torch.manual_seed(5)
        assert essence(run(s, tmp_path / f"{s}-again")) == found[s]
        assert essence(run(s, tmp_path / f"{s}-other", seed=1)) != found[s]
    assert found["random"] != found["tpe"] != found["genetic"] != found["random"]


def test_a_model_of_the_losses_finds_better_functions_than_chance(tmp_path: Path) -> None:
    def easy(genotype: Genotype, within: Sequence[int], judge: Judge) -> None:
        wanted = {"u1": "tanh", "u2": "sigmoid", "b1": "mul"}
        wrong = sum(genotype.slots[slot].op != op for slot, op in wanted.items())
        beta = abs(genotype.slots["u2"].parameters.get("beta", 1.0) - 1.0)
        for step in within:
            if not judge(step, wrong + beta + 1 / step):
                return

    def mean_of_the_last(strategy: str) -> float:
        losses = [
            r.losses[RUNGS[0]]
            for seed in range(3)
            for r in run(strategy, tmp_path / f"{strategy}-{seed}", 260, seed, training=easy)[12:]
        ]
        return sum(losses) / len(losses)

    by_chance = mean_of_the_last("random")
    assert mean_of_the_last("tpe") < by_chance - 0.2
    assert mean_of_the_last("genetic") < by_chance - 0.2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_function_is_tried_twice_and_a_space_can_be_exhausted(strategy: str, tmp_path: Path) -> None:
    few = SearchSpace.from_dict({"cell": {"u1": {"inputs": "x", "candidates": ["relu", "tanh", "sigmoid"]}}})
    records = run(strategy, tmp_path, 10_000, space=few)
    assert sorted(r.formula for r in records) == ["relu(x)", "sigmoid(x)", "tanh(x)"]
    many = run(strategy, tmp_path / "many", 140)
    assert len({to_genotype(TINY, r.params) for r in many}) == len(many)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_function_is_more_complex_than_the_space_allows(strategy: str, tmp_path: Path) -> None:
    data = TINY.to_dict() | {"constraints": {"max_complexity": 2}}
    simple = SearchSpace.from_dict(data)
    assert 0 < simple.size < TINY.size
    records = run(strategy, tmp_path, 60, space=simple)
    assert records
    assert all(simple.admits({slot.name: r.params[slot.name] for slot in simple.slots}) for r in records)


def test_the_best_is_of_those_that_took_the_most_steps(tmp_path: Path) -> None:
    log = TrialLog(tmp_path, {})
    with pytest.raises(RunError, match="holds no trial"):
        log.best()
    for number, losses in enumerate([{2: 0.1}, {2: 0.4, 6: 0.3}, {2: 0.5, 6: 0.2}]):
        log.add(TrialRecord(number, {}, "x", losses, max(losses), number == 0, 0.0))
    assert log.best().number == 2
    assert log.steps == 14


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('{"number": 1}', "line 3 is not trial 1"),
        ("[]", "damaged at line 3"),
        ("nonsense", "damaged at line 3"),
        (None, "line 3 is not trial 1"),  # the first trial twice
    ],
    ids=["incomplete", "list", "no-json", "twice"],
)
def test_a_tampered_log_is_refused_in_one_line(line: str | None, hint: str, tmp_path: Path) -> None:
    run("random", tmp_path, 30)
    path = tmp_path / "trials.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[1] if line is None else line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=hint) as caught:
        run("random", tmp_path)
    assert "\n" not in str(caught.value)


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    run("random", tmp_path, 30)
    with pytest.raises(RunError, match=r"trials of another search \(strategy differ\)"):
        run("tpe", tmp_path, 30)
    with pytest.raises(SettingsError, match="'tpe'"):
        Sampler("tpee", TINY, TrialSettings(), 2, 0)


# -- trials that train -------------------------------------------------------------------------------------------------

SETTINGS = SearchSettings(epochs=4, warm_epochs=0)


def search(root: Path, tasks: list[Toy] | None = None, **changes: Any) -> TrialsResult:
    def build_task(genotype: Genotype) -> pl.LightningModule:
        task = fresh_task(Toy, ToyData(), of_genotype(genotype, "f"), 3)[0]
        if tasks is not None:
            assert isinstance(task, Toy)
            tasks.append(task)
        return task

    arguments: dict[str, Any] = {
        "strategy": "random",
        "space": PLAIN,
        "settings": SETTINGS,
        "trials": TrialSettings(length=0.5, rungs=2),
        "run_root": root,
        "trainer": {"accelerator": "cpu"},
    }
    return search_by_trials(build_task, ToyData(), **(arguments | changes))


def recorded(result: TrialsResult) -> list[TrialRecord]:
    conditions = json.loads((result.run_dir / "trials.jsonl").read_text().splitlines()[0])
    return TrialLog(result.run_dir, conditions).records


def test_a_search_by_trials_trains_every_function_for_the_steps_that_it_counts(tmp_path: Path) -> None:
    tasks: list[Toy] = []
    result = search(tmp_path, tasks)
    records = TrialLog(
        result.run_dir, json.loads((result.run_dir / "trials.jsonl").read_text().splitlines()[0])
    ).records
    trained = tasks[1:]  # the first only shows whether the space is smooth enough
    assert [task.steps_in_training for task in trained] == [r.steps for r in records]
    assert sum(r.steps for r in records) == result.steps <= result.budget.total
    assert all(any(isinstance(m, Activation) for m in task.modules()) for task in trained)
    assert Genotype.load(result.run_dir / "genotype.json") == result.genotype
    assert result.best == min((r for r in records if r.steps == result.best.steps), key=lambda r: r.loss)
    assert len(result.inputs) == 4 * 8  # of the one site, at the first batch


def test_a_loss_is_that_of_the_trained_function_on_the_part_of_alpha(tmp_path: Path) -> None:
    found: list[Toy] = []
    result = search(tmp_path, found)
    task = found[1 + result.best.number]
    _, arch = split(40, SETTINGS.arch_fraction, SETTINGS.seed)
    x, y = (t[torch.from_numpy(arch)] for t in ToyData().train.tensors)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)]
    assert len(x) == 10
    with torch.no_grad():
        whole = float(nn.functional.mse_loss(task.model(x), y))
        parts = [float(nn.functional.mse_loss(task.model(a), b)) for a, b in batches]
    # The mean over batches, in an order of its own, of which the last is short.
    assert min(parts) <= result.best.loss <= max(parts)
    assert result.best.loss == pytest.approx(whole, rel=0.3)


def test_a_search_by_trials_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", strategy="tpe")
    cut = search(tmp_path / "cut", strategy="tpe").run_dir
    lines = (cut / "trials.jsonl").read_text().splitlines(keepends=True)
    (cut / "trials.jsonl").write_text("".join(lines[:3]))
    (cut / "genotype.json").unlink()
    again = search(tmp_path, strategy="tpe", resume=cut)
    assert again.run_dir == cut
    assert again.genotype == whole.genotype
    assert again.best.losses == whole.best.losses
    assert (again.trials, again.steps) == (whole.trials, whole.steps)
    assert torch.equal(again.inputs, whole.inputs)
    with pytest.raises(RunError, match="another space"):
        search(tmp_path, strategy="tpe", resume=cut, space=TINY)


def test_other_functions_are_measured_like_the_best_and_cost_nothing(tmp_path: Path) -> None:
    first = search(tmp_path)
    again = search(tmp_path, measured={"the best": first.genotype, "other": PLAIN.random(3)})
    assert again.losses["the best"] == first.best.loss
    assert again.losses["other"] >= first.best.loss
    assert again.steps == first.steps


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    tasks: list[Toy] = []
    settings = SearchSettings(epochs=4, warm_epochs=0, accumulate=2, weight_clip=1.0, epoch_batches=4)
    result = search(tmp_path, tasks, settings=settings)
    records = TrialLog(
        result.run_dir, json.loads((result.run_dir / "trials.jsonl").read_text().splitlines()[0])
    ).records
    assert result.budget.weights == 8
    assert [task.steps_in_training for task in tasks[1:]] == [2 * r.steps for r in records]


class Demanding(nn.Module):
    least_smoothness = 2

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_what_cannot_be_searched_by_trials_is_told_first(tmp_path: Path) -> None:
    shared = SearchSpace.from_dict(PLAIN.to_dict() | {"sharing": "site"})
    with pytest.raises(SettingsError, match="one for each site"):
        search(tmp_path, space=shared)
    with pytest.raises(SettingsError, match="one device"):
        search(tmp_path, trainer={"devices": 2})

    def build_task(genotype: Genotype) -> pl.LightningModule:
        task = Toy()
        task.model.append(Demanding())
        return fresh_task(lambda: task, ToyData(), of_genotype(genotype, "f"), 0)[0]

    with pytest.raises(SmoothnessError, match=r"needs C\^2.*set search.force to true"):
        search_by_trials(
            build_task,
            ToyData(),
            strategy="tpe",
            space=PLAIN,
            settings=SETTINGS,
            trials=TrialSettings(),
            run_root=tmp_path,
        )
    assert not list(tmp_path.iterdir())
