"""The bilevel search: weights on one part of the training set, α on the other, in turn.

    minimise over α   L_arch(w*(α), α)    with    w*(α) = argmin_w L_train(w, α)

First order as in DARTS (Liu et al., arXiv 1806.09055) and GRAFS (Strack et al., arXiv 2408.06820): one α step on a
batch of one part, one weight step on a batch of the other. Gradients are taken by `torch.autograd.grad` for each level,
so neither level can leave anything in the other's `.grad`.
"""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import actsearch._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from actsearch.cell.mixed import MixedCell
from actsearch.errors import EvaluatorError, NonFiniteError, RunError, SettingsError, TaskError
from actsearch.ops.spec import registry
from actsearch.ranks import rank_and_world
from actsearch.search.agreement import check_agreement
from actsearch.search.averages import Averages
from actsearch.search.gate import Gate
from actsearch.search.late import LateReadings
from actsearch.search.loss import mean_loss, task_loss, to_device
from actsearch.search.monitor import Observer, Snapshot, locate_non_finite, recorded_inputs, snapshot_cell
from actsearch.search.optimizers import all_agree, all_reduce_mean, one_optimizer
from actsearch.search.schedule import drop_times
from actsearch.search.settings import SearchSettings
from actsearch.search.statistics import batch_statistics, frozen_statistics, statistics_layers
from actsearch.search.unrolled import unrolled_gradients
from actsearch.seeds import seed_all

Parameters = Sequence[nn.Parameter]


CellChoices = Mapping[str, Mapping[str, str]]


class BilevelSearch(pl.LightningModule):
    """Drives any LightningModule whose `training_step` returns a loss, and whose activations were swapped for cells.

    Three disjoint groups of parameters: the task's weights (by the task's own optimiser and schedulers), α (Adam), and
    the parameters of operations (Adam without weight decay, each at the level that `settings.op_parameters` says).

    A step whose loss or gradient is not finite in any process changes neither parameters nor the state of optimisers,
    is counted (`skipped`), and too many end the search. A CPU decides on the host. On CUDA nothing is waited for
    (`deferred`): the device decides, by a Gate, and the host learns of it some steps later. Two things differ then:
    where the NaN came up is looked for with the weights of a later step, and schedulers by step, which a skipped step
    holds up on a CPU, go on.

    Args:
        task: the wrapped module; its sites hold cells without registering them.
        cells: the mixed cells by name of what they are shared in (`network` for the published sharing).
        settings: of the search.
        validation: batches on which the discretised cell is measured after each epoch; not from the weights' part.
        observers: told a Snapshot after each epoch.
    """

    steps: Tensor
    epochs_done: Tensor
    skipped: Tensor

    def __init__(
        self,
        task: pl.LightningModule,
        cells: Mapping[str, MixedCell],
        settings: SearchSettings,
        validation: Iterable[Any] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.task = task
        self.cells = nn.ModuleDict(cells)
        self.settings = settings
        self.validation = validation
        self.observers = list(observers)
        self.alphas: list[nn.Parameter] = [a for cell in cells.values() for a in cell.alpha.values()]
        self.op_parameters: list[nn.Parameter] = [p for cell in cells.values() for p in cell.op_parameters.values()]
        self._with_alpha: list[nn.Parameter] = []
        self._with_weights: list[nn.Parameter] = []
        for cell in cells.values():
            for key, parameter in cell.op_parameters.items():
                spec = cell.op_parameters.spec_of(key)
                (self._with_alpha if settings.level_of(spec) == "alpha" else self._with_weights).append(parameter)
        self.weights: list[nn.Parameter] = [p for p in task.parameters() if p.requires_grad]
        self._check_disjoint()
        for cell in cells.values():
            cell.evaluator.keeps_input = False  # see _with_inputs
        self._drops: list[tuple[int, ...]] = [() for _ in cells]
        # Counters live in buffers: they are part of every checkpoint.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epochs_done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self._n_steps = 0
        self._pending_gradients: dict[str, Tensor] = {}
        self._averages = Averages()
        # None: on CUDA. To be set before the fit.
        self.deferred: bool | None = None
        self._late = LateReadings()
        self._usable: dict[str, Tensor] = {}  # by level: whether a batch of the step under way has a finite loss
        self._upper: list[Gate] = []
        self._lower: list[Gate] = []
        self._statistics_layers = statistics_layers(task)
        self._settled_at: tuple[tuple[int, ...], bool] | None = None
        self._seconds = 0.0
        self._schedulers_loaded: int | None = None
        self.started = False  # whether all that a checkpoint holds is restored

    def _check_disjoint(self) -> None:
        groups = {"weights": self.weights, "α": self.alphas, "op parameters": self.op_parameters}
        owner: dict[int, str] = {}
        for name, parameters in groups.items():
            for parameter in parameters:
                if id(parameter) in owner:
                    raise TaskError(
                        f"a parameter is among both {owner[id(parameter)]} and {name}; register the cell in one place"
                    )
                owner[id(parameter)] = name

    def meet(self, batch: Any) -> None:
        """Run the task once, in the standard activation, so that parameters by channel take their number.

        It must be done before a fit if there are such; nothing else is changed.
        """
        modes = [cell.mode for cell in self._cells()]
        self._set_mode("warm")
        with torch.no_grad(), frozen_statistics(self._statistics_layers):
            self._loss(self._to_device(batch), 0, None)
        for cell, mode in zip(self._cells(), modes, strict=True):
            cell.mode = mode

    # -- optimisers ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The task's optimiser and schedulers, α's Adam, and that of operations' parameters.

        A task whose weights are all frozen needs no optimiser: only the function is searched.
        """
        s = self.settings
        optimizers: dict[str, Optimizer] = {}
        schedulers: list[Any] = []
        if self.weights:
            optimizers["weights"], schedulers = one_optimizer(self.task.configure_optimizers())
            upper = {id(p) for p in (*self.alphas, *self.op_parameters)}
            if any(id(p) in upper for group in optimizers["weights"].param_groups for p in group["params"]):
                raise TaskError("the task's optimizer holds α or op parameters; give it the task's own parameters only")
        optimizers["alpha"] = torch.optim.Adam(
            self.alphas, lr=s.alpha_lr, betas=s.alpha_betas, weight_decay=s.alpha_weight_decay
        )
        if self._with_alpha:
            lr = s.op_parameter_lr or s.alpha_lr
            optimizers["op_parameters"] = torch.optim.Adam(self._with_alpha, lr=lr, betas=s.alpha_betas)
        if self._with_weights:
            lr = s.op_parameter_lr or OP_PARAMETER_LR
            optimizers["op_parameters_with_weights"] = torch.optim.Adam(self._with_weights, lr=lr)
        self._optimizer_names = list(optimizers)
        return list(optimizers.values()), schedulers

    def _named_optimizers(self) -> dict[str, Any]:
        optimizers = self.optimizers()
        return dict(
            zip(self._optimizer_names, optimizers if isinstance(optimizers, list) else [optimizers], strict=True)
        )

    def _make_gates(self) -> None:
        """The optimisers of either level, each behind a gate, now that their state is loaded."""
        gates = {name: Gate(optimizer) for name, optimizer in self._named_optimizers().items()}
        upper = ("alpha", "op_parameters")
        self._upper = [gate for name, gate in gates.items() if name in upper]
        self._lower = [gate for name, gate in gates.items() if name not in upper]

    def _apply_gradients(self, level: str, parameters: Parameters, gates: Sequence[Gate]) -> Tensor:
        """Reduce, check, clip and apply the accumulated gradients if they are finite; whether they are (0-d, bool)."""
        s = self.settings
        with_gradient = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in with_gradient if p.grad is not None]
        if s.accumulate > 1:
            for gradient in gradients:
                gradient /= s.accumulate
        all_reduce_mean(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = norm.isfinite()
        if self.deferred or bool(finite):
            greatest = s.weight_clip if level == "train" else s.alpha_clip
            if greatest is not None:
                torch.nn.utils.clip_grads_with_norm_(with_gradient, greatest, norm)
            for gate in gates:
                gate.step(finite & self._usable[level] if self.deferred else None)
        for p in parameters:
            p.grad = None
        return finite

    # -- one step --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """One α step and one weight step on `batch["arch"]` and `batch["weights"]`; with accumulation, part of each."""
        s = self.settings
        started = time.perf_counter()
        self._read_late(self._n_steps)
        seed_all(s.seed, self.current_epoch, batch_idx)
        full = (self._n_steps + 1) % s.accumulate == 0
        if self._weight_steps % s.arch_every == 0 and not self._settled:
            self._arch_step(batch["arch"], batch["weights"], batch_idx, full)
        if self._lower:
            self._weight_step(batch["weights"], batch_idx, full)
        self._n_steps += 1
        self.steps.fill_(self._n_steps)
        if s.shrink and s.shrink_unit == "step":
            self._shrink(self._weight_steps)
        if self._n_steps % s.check_ranks == 0:
            self._check_agreement()
        self._seconds += time.perf_counter() - started

    def _check_agreement(self) -> None:
        """Raise RankError if processes that share this search do not hold the same."""
        check_agreement(
            {"α": self.alphas, "parameters of operations": self.op_parameters, "weights": self.weights},
            {
                "surviving candidates": repr([cell.survivors for cell in self._cells()]),
                "epochs and steps done": f"{int(self.epochs_done)} {self._n_steps}",
            },
            self.device,
            self._n_steps,
        )

    @property
    def _weight_steps(self) -> int:
        """Steps of the weights' optimiser so far; `steps` counts batches."""
        return self._n_steps // self.settings.accumulate

    @property
    def _settled(self) -> bool:
        """Whether nothing is left for α steps: every slot is decided, and by an operation without parameters of α's."""
        survivors = tuple(cell.n_survivors for cell in self._cells())
        if self._settled_at is None or self._settled_at[0] != survivors:
            settled = all(cell.is_discrete and not self._trains_with_alpha(cell) for cell in self._cells())
            self._settled_at = survivors, settled
        return self._settled_at[1]

    def _trains_with_alpha(self, cell: MixedCell) -> bool:
        """Whether the function of a discrete cell depends on parameters that are trained with α."""
        return any(
            self.settings.level_of(p) == "alpha" for op in cell.genotype().tree.ops() for p in registry[op].parameters
        )

    @property
    def accumulate(self) -> int:
        """Batches that make one step of either level."""
        return self.settings.accumulate

    @property
    def upper_parameters(self) -> list[nn.Parameter]:
        """What α steps train."""
        return self.alphas + self._with_alpha

    @property
    def lower_parameters(self) -> list[nn.Parameter]:
        """What weight steps train."""
        return self.weights + self._with_weights

    def _arch_step(self, batch: Any, train_batch: Any, index: int, full: bool) -> None:
        parameters = self.upper_parameters
        self._set_mode("mixed")
        self._resample()

        def first_order() -> tuple[Tensor, Sequence[Tensor | None]]:
            # Without this the graph reaches back to the first layer, and each keeps what its own gradient needs.
            with _constant(self.lower_parameters):
                loss = self._loss(batch, index, "arch")
                return loss, self._arch_gradients(loss + self._anchor(), parameters)

        def second_order() -> tuple[Tensor, Sequence[Tensor | None]]:
            return self._unrolled(batch, train_batch, index, parameters)

        with frozen_statistics(self._statistics_layers):
            loss, gradients = self._with_inputs(first_order if self.settings.order == 1 else second_order)
            self._accumulate("arch", loss, gradients, parameters, self._upper, full, batch, index)

    def _arch_gradients(self, loss: Tensor, parameters: Parameters) -> Sequence[Tensor | None]:
        if not loss.requires_grad and all(cell.is_discrete for cell in self._cells()):
            return [None] * len(parameters)  # parameters are left to train only in cells that this batch did not reach
        return self._gradients(loss, parameters)

    def _weight_step(self, batch: Any, index: int, full: bool) -> None:
        parameters = self.lower_parameters
        self._set_mode("warm" if self._warming else "mixed")

        def first_order() -> tuple[Tensor, Sequence[Tensor | None]]:
            loss = self._loss(batch, index, "train")
            return loss, self._gradients(loss + self._slope_recovery(), parameters)

        with _constant(self.upper_parameters):
            self._resample()
            loss, gradients = self._with_inputs(first_order)
        applied = self._accumulate("train", loss, gradients, parameters, self._lower, full, batch, index)
        if applied:
            self._step_schedulers("step")

    def _with_inputs(
        self, compute: Callable[[], tuple[Tensor, Sequence[Tensor | None]]]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Loss and gradients by `compute`, where tables do without their inputs until a second derivative is asked for.

        Then they keep them from now on, and this step is computed once more.
        """
        logged = self._averages.copy()
        try:
            return compute()
        except EvaluatorError:
            self._averages = logged
            for cell in self._cells():
                cell.evaluator.keeps_input = True
            self._resample(repeat=True)
            return compute()

    def _gradients(self, loss: Tensor, parameters: Parameters) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(self._checked(loss), parameters, allow_unused=True)

    def _checked(self, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise TaskError("the loss does not depend on what is trained; was the swapped model used in training_step?")
        return loss

    def _accumulate(
        self,
        level: str,
        loss: Tensor,
        gradients: Sequence[Tensor | None],
        parameters: Parameters,
        gates: Sequence[Gate],
        full: bool,
        batch: Any,
        index: int,
    ) -> bool:
        """Add the gradients to those of the step, and apply them when it is `full`.

        Returns whether an optimiser stepped; where only the device knows, whether one was to.
        """
        loss = loss.detach()
        finite = all_agree(loss.isfinite())
        if self.deferred:
            self._usable[level] = finite | self._usable.get(level, finite)
            self._averages.add(f"loss/{level}", loss.where(finite, 0.0), finite)
            if self.settings.accumulate > 1:
                gradients = [g if g is None else g.where(finite, 0.0) for g in gradients]
        elif bool(finite):
            self._averages.add(f"loss/{level}", loss)
        else:
            self._skip(level, _why(float(loss)), batch, index)
            gradients = [None] * len(gradients)
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                p.grad = g.detach().to(p.dtype) if p.grad is None else p.grad + g
        applied = full and any(p.grad is not None for p in parameters)
        whole = self._apply_gradients(level, parameters, gates) if applied else torch.ones_like(finite)
        if self.deferred:
            usable = self._usable.pop(level) if full else self._usable[level]
            lost = usable & ~whole
            self.skipped += ~finite
            self.skipped += lost
            values = torch.stack([v.double() for v in (loss, finite, lost, self.skipped)])
            self._late.add(self._n_steps, (level, self._n_steps, batch, index), values)
        elif not bool(whole):
            self._skip(level, _NO_GRADIENT, batch, index)
            return False
        return applied

    def _unrolled(
        self, batch: Any, train_batch: Any, index: int, parameters: Parameters
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        rate = self.settings.inner_lr or float(self._named_optimizers()["weights"].param_groups[0]["lr"])

        def train_loss() -> Tensor:
            # The difference of two of them is divided by a small number: they must see the same dropout.
            seed_all(self.settings.seed, self.current_epoch, index, 1)
            self._resample(repeat=True)
            return self._checked(self._loss(train_batch, index, None))

        def arch_loss() -> tuple[Tensor, Tensor]:
            self._resample(repeat=True)
            loss = self._checked(self._loss(batch, index, "arch"))
            return loss, loss + self._anchor()

        return unrolled_gradients(self.weights, parameters, rate, train_loss, arch_loss, waits=not self.deferred)

    # -- what the levels share -------------------------------------------------------------------------------------

    def _loss(self, batch: Any, index: int, level: str | None) -> Tensor:
        """The loss of the task's training_step. Raises TaskError if there is none."""
        with self._averages.recording(self.task, f"{level}/" if level else None):
            return task_loss(self.task, batch, index)

    def _anchor(self) -> Tensor | float:
        if self.settings.anchor == 0:
            return 0.0
        return self.settings.anchor * torch.stack([cell.anchor() for cell in self._cells()]).sum()

    def _slope_recovery(self) -> Tensor | float:
        """The slope-recovery term of all cells, where slopes take part."""
        if self.settings.slope_recovery == 0 or self._warming:
            return 0.0
        terms = [term for cell in self._cells() if (term := cell.slope_recovery()) is not None]
        if not terms:
            return 0.0
        total = torch.stack(terms).sum()
        self._averages.add("slope_recovery", total.detach())
        return self.settings.slope_recovery * total

    def _cells(self) -> Iterator[MixedCell]:
        for cell in self.cells.values():
            assert isinstance(cell, MixedCell)
            yield cell

    def _set_mode(self, mode: Any) -> None:
        for cell in self._cells():
            cell.mode = mode

    def _resample(self, repeat: bool = False) -> None:
        for cell in self._cells():
            cell.resample(repeat)

    @property
    def _warming(self) -> bool:
        s = self.settings
        return self._weight_steps < s.warm_steps if s.warm_steps is not None else self.current_epoch < s.warm_epochs

    @property
    def phase(self) -> str:
        """`warm start`, `search`, `shrinking` or `discrete`."""
        cells = list(self._cells())
        if self._warming:
            return "warm start"
        if all(cell.is_discrete for cell in cells):
            return "discrete"
        return "search" if all(cell.n_survivors == cell.space.n_candidates for cell in cells) else "shrinking"

    def _skip(self, level: str, what: str, batch: Any, index: int) -> None:
        """Count a step that is not taken, and tell."""
        self.skipped += 1
        self._tell_skipped(int(self.skipped), level, self._n_steps, what, batch, index)

    def _tell_skipped(self, count: int, level: str, step: int, what: str, batch: Any, index: int) -> None:
        """Say what was not finite, and where; stop the search when `count` of such steps are too many."""
        where = locate_non_finite(self.task, lambda: self._loss(batch, index, None))
        message = f"{level} step {step}: {what}; {where}"
        if count > self.settings.max_skipped:
            raise NonFiniteError(
                f"stopped after {count} steps that were not finite (max_skipped); {message}; lower the "
                "learning rate, or look at the data"
            )
        pl.utilities.rank_zero_info(f"skipped a step: {message}")

    def _read_late(self, step: int | None) -> None:
        """Tell of the skipped steps that the host can know of at `step`; without it, of all."""
        for (level, n, batch, index), (loss, finite, lost, count) in self._late.due(step):
            for what in [_why(loss)] * (not finite) + [_NO_GRADIENT] * bool(lost):
                with frozen_statistics(self._statistics_layers):
                    self._tell_skipped(int(count), level, n, what, batch, index)

    # -- an epoch --------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self.trainer.precision in ("16-mixed", "16-true"):
            raise SettingsError("float16 needs loss scaling, which two levels do not share; use precision bf16-mixed")
        if self.trainer.precision == "bf16-true":
            raise SettingsError("in bfloat16 α is rounded to 8 bits, and most of its steps are lost; use bf16-mixed")

    def on_train_start(self) -> None:
        if self.deferred is None:
            self.deferred = self.device.type == "cuda"
        self._check_restored()
        self._make_gates()
        self._begin_epoch()  # a search that is resumed within an epoch is not told that it starts
        self._n_steps = int(self.steps)
        self._check_agreement()  # as when one process found a checkpoint, and another did not
        s = self.settings
        batches = int(self.trainer.num_training_batches) * s.epochs
        length = s.epochs if s.shrink_unit == "epoch" else batches // s.accumulate
        if s.shrink:
            self._drops = [
                drop_times(cell.space.n_candidates, len(cell.space.slots), length, s.shrink_start)
                for cell in self._cells()
            ]
        # Not earlier: the trainer clears gradients before this hook.
        for name, parameter in self.named_parameters():
            if name in self._pending_gradients:
                parameter.grad = self._pending_gradients.pop(name).to(parameter.device)
        self._usable = {level: flag.to(self.device) for level, flag in self._usable.items()}
        self.started = True

    def _check_restored(self) -> None:
        """Raises RunError if what was loaded does not fit: the trainer itself takes what is there, and is silent."""
        done, n = int(self.epochs_done), len(self.trainer.lr_scheduler_configs)
        if self._schedulers_loaded not in (None, n) or done - self.current_epoch not in (0, 1):
            raise RunError(
                f"the checkpoint is not whole: it is of {done} epochs, and the trainer stands at {self.current_epoch}; "
                f"it holds {self._schedulers_loaded} schedulers of {n}; delete it, or start the run again"
            )
        for name, optimizer in self._named_optimizers().items():
            for p, state in optimizer.state.items():
                for key in _LIKE_PARAMETER:
                    if isinstance(state.get(key), Tensor) and state[key].shape != p.shape:
                        raise RunError(
                            f"the checkpoint's state of the optimizer of {name} does not fit: {key} is of shape "
                            f"{tuple(state[key].shape)}, not {tuple(p.shape)}; delete it, or start the run again"
                        )

    def on_train_epoch_start(self) -> None:
        seed_all(self.settings.seed, self.current_epoch)
        self._forward_hook("on_train_epoch_start")
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        for cell in self._cells():
            cell.relaxation.at_epoch(self.current_epoch, self.settings.epochs)
        self._statistics_layers = statistics_layers(self.task)

    def on_train_epoch_end(self) -> None:
        """Shrink, measure the discretised cell, tell the observers."""
        epoch = self.current_epoch + 1
        if int(self.epochs_done) >= epoch:  # resumed from a checkpoint written after this was done
            return
        self._read_late(None)
        self._forward_hook("on_train_epoch_end")
        self._check_agreement()
        if self.settings.shrink_unit == "epoch":
            self._shrink(epoch)
        snapshot = self.measure(epoch)
        self._step_schedulers("epoch", snapshot.metrics)
        self.epochs_done.fill_(epoch)
        self._averages.clear()
        for observer in self.observers:
            observer(snapshot)

    def _forward_hook(self, name: str) -> None:
        with self._averages.recording(self.task, None):
            getattr(self.task, name)()

    def _shrink(self, time_now: int) -> None:
        for cell, drops in zip(self._cells(), self._drops, strict=True):
            due = sum(t <= time_now for t in drops)
            while cell.space.n_candidates - cell.n_survivors < due and cell.drop_weakest():
                continue

    def _step_schedulers(self, interval: str, metrics: Mapping[str, float] | None = None) -> None:
        for config in self.trainer.lr_scheduler_configs:
            count = self._n_steps + 1 if interval == "step" else self.current_epoch + 1
            if config.interval != interval or count % config.frequency:
                continue
            if isinstance(config.scheduler, ReduceLROnPlateau):
                key = config.monitor or "loss/val"
                if metrics is None or key not in metrics:
                    raise TaskError(
                        f"the scheduler watches {key!r}, which is not measured; known: {sorted(metrics or {})}"
                    )
                config.scheduler.step(metrics[key])
            else:
                config.scheduler.step()

    # -- measuring -------------------------------------------------------------------------------------------------

    def score(self, ops: CellChoices | None = None, batches: Iterable[Any] | None = None) -> float:
        """Mean loss of discrete cells under the present weights over validation batches; NaN without batches.

        `ops` gives the operation of every slot by cell; a cell that it leaves out is at its best choice.
        Normalisation layers use the statistics of each batch, which the discrete cell changes; dropout is off.
        """
        with self._measuring(ops):
            return mean_loss(self.task, self.validation if batches is None else batches, self.device)

    def measure(self, epoch: int) -> Snapshot:
        """Everything that there is to tell at the end of `epoch`.

        Processes share the validation batches; losses and what the task logs are means over all of them.
        """
        seed_all(self.settings.seed, epoch, -1)
        rank, world = rank_and_world()
        pre_activations: dict[str, Tensor] = {}
        is_first = True
        with self._measuring(None):
            for index, batch in islice(enumerate(self.validation), rank, None, world):
                batch = self._to_device(batch)
                with recorded_inputs(self.task) if is_first else _nothing() as found:
                    self._averages.add("loss/val", self._loss(batch, index, None))
                pre_activations = found or pre_activations
                is_first = False
                self._user_validation(batch, index)
        sites = {
            name: [pre_activations[s] for s in cell.site_names if s in pre_activations]
            for name, cell in zip(self.cells, self._cells(), strict=True)
        }
        self._averages.gather()
        averages = self._averages.means()
        return Snapshot(
            epoch=epoch,
            epochs=self.settings.epochs,
            step=self._n_steps,
            phase=self.phase,
            cells={
                name: snapshot_cell(cell, torch.cat(sites[name]).to(cell.draws.device) if sites[name] else None)
                for name, cell in zip(self.cells, self._cells(), strict=True)
            },
            losses={name.removeprefix("loss/"): v for name, v in averages.items() if name.startswith("loss/")},
            metrics=averages,
            learning_rates={
                name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self._named_optimizers().items()
            },
            skipped=int(self.skipped),
            seconds=self._seconds,
            pre_activations=pre_activations,
        )

    def _user_validation(self, batch: Any, index: int) -> None:
        if type(self.task).validation_step is not pl.LightningModule.validation_step:
            with self._averages.recording(self.task, ""):
                self.task.validation_step(batch, index)

    @contextmanager
    def _measuring(self, ops: CellChoices | None) -> Iterator[None]:
        cells = zip(self.cells, self._cells(), strict=True)
        with (
            torch.no_grad(),
            batch_statistics(self.task),
            _all(cell.discrete((ops or {}).get(name)) for name, cell in cells),
        ):
            yield

    def _to_device(self, batch: Any) -> Any:
        return to_device(self.task, batch, self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Each half of a pair goes the way that the task prescribes."""
        if isinstance(batch, Mapping) and set(batch) == {"weights", "arch"}:
            return {name: self.transfer_batch_to_device(half, device, dataloader_idx) for name, half in batch.items()}
        batch = self.task.on_before_batch_transfer(batch, dataloader_idx)
        batch = self.task.transfer_batch_to_device(batch, device, dataloader_idx)
        return self.task.on_after_batch_transfer(batch, dataloader_idx)

    def test_step(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a search never sees the test set."""
        raise TaskError("a search never sees the test set; retrain the discovered activation and test that")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def objection(self, checkpoint: Mapping[str, Any]) -> str:
        """Why a checkpoint is not one of this search, in words that follow its name; empty if it is."""
        extra = checkpoint["actsearch"]
        for what, own in self._conditions().items():
            there = extra.get(what, own)
            # What older checkpoints do not tell is taken to be the same.
            if not isinstance(there, Mapping) or {**own, **there} != own:
                return f"was written {_other(what, there, own)}"
        own_state, state = self.state_dict(), checkpoint["state_dict"]
        if odd := sorted(set(own_state) ^ set(state), key=str):
            where = "the checkpoint" if odd[0] in own_state else "this search"
            return f"does not fit this search: {where} has no {odd[0]!r}"
        for name, tensor in own_state.items():
            shape = getattr(state[name], "shape", None)
            if shape != tensor.shape:
                got = "no tensor" if shape is None else f"of shape {tuple(shape)}"
                return f"does not fit this search: {name!r} is {got} there, of shape {tuple(tensor.shape)} here"
        n = sum(map(bool, (self.weights, self.alphas, self._with_alpha, self._with_weights)))
        if len(checkpoint["optimizer_states"]) != n:
            return f"does not fit this search: it holds {len(checkpoint['optimizer_states'])} optimizers, not {n}"
        return ""

    def _conditions(self) -> dict[str, Any]:
        """What must be the same when a search goes on."""
        spaces = {name: cell.space.hash for name, cell in zip(self.cells, self._cells(), strict=True)}
        return {"settings": self.settings.to_dict(), "spaces": spaces}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["actsearch"] = {
            **self._conditions(),
            "gradients": {n: p.grad.cpu() for n, p in self.named_parameters() if p.grad is not None},
            "sums": self._averages.state(),
            "seconds": self._seconds,
            "usable": {level: flag.cpu() for level, flag in self._usable.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["actsearch"]
        self._schedulers_loaded = len(checkpoint["lr_schedulers"])
        self._pending_gradients = dict(state["gradients"])
        self._averages.load(state["sums"])
        self._seconds = float(state["seconds"])
        self._usable = dict(state.get("usable", {}))


OP_PARAMETER_LR = 1e-3  # of those trained with the weights, by Adam

_NO_GRADIENT = "its gradient is not finite"

# What torch's optimisers keep in the shape of a parameter.
_LIKE_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta")


def _other(what: str, there: Any, own: Any) -> str:
    """In words, which other settings or space a checkpoint was written with."""
    if what == "settings" and isinstance(there, Mapping):
        different = [name for name in own if there.get(name, own[name]) != own[name]]
        if different:
            listed = (f"{name} {reprlib.repr(there[name])}, not {reprlib.repr(own[name])}" for name in different[:3])
            return f"with other settings ({'; '.join(listed)})"
    return f"with other {what}"


def _why(loss: float) -> str:
    """In words, why a step with this loss is skipped."""
    return "the loss of another process is not finite" if math.isfinite(loss) else f"the loss is {loss}"


@contextmanager
def _constant(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it, the parameters need no gradient, so nothing is kept or computed for them."""
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def _nothing() -> Iterator[dict[str, Tensor]]:
    yield {}


@contextmanager
def _all(contexts: Iterable[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
