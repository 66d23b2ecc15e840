"""How a cell computes its mixture: by a table or densely. Nothing outside this file knows which one runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from actsearch.cell.choice import faster
from actsearch.cell.dense import DenseEvaluator
from actsearch.cell.half import INPUTS
from actsearch.cell.knots import SEGMENTS
from actsearch.cell.lookup import Table
from actsearch.cell.parameters import OpParameters
from actsearch.cell.table import DTYPES, TableEvaluator, tabulable
from actsearch.errors import SettingsError, unknown_name
from actsearch.ops.guard import HALF
from actsearch.space import SearchSpace

EvaluatorName = Literal["auto", "table", "dense"]

COMPILE_FROM = 1 << 20  # elements of a pass on a CPU; below, compiling costs more than a thousand steps save

_UNDECIDED, _DENSE, _TABLE = range(3)


class Evaluator(nn.Module):
    """Evaluates the mixture of a cell at its sites.

    Args:
        space: of the cell.
        name: `dense` computes every candidate at every element; `table` looks the cell up, in float32 in a table of
            a few thousand knots that are placed where it is hard, in half precision in an exact one of all inputs;
            `auto` takes the faster. It finds out by a trial on as many elements as the last pass had, and again when
            half of the candidates are gone; before the first pass it takes the table, which needs the least memory.
            A cell without a clip, with float64 inputs, or with parameters by channel is always dense: nothing bounds
            the first beyond the table, the second asks for more digits than it has, and the third is many functions.

    Raises SettingsError for an unknown name.

    State, so that a resumed search goes on as it would have: `elements` and `dtype` (a place in DTYPES) of the last
    pass, the evaluator `chosen` by the last trial, the number of candidates at that time, `chosen_at`, and `keeps`.
    """

    _weights: Mapping[str, Tensor] | None
    _values: OpParameters | None
    _tables: dict[torch.dtype, Sequence[Table]]
    elements: Tensor
    dtype: Tensor
    chosen: Tensor
    chosen_at: Tensor
    keeps: Tensor

    def __init__(self, space: SearchSpace, name: EvaluatorName) -> None:
        super().__init__()
        if name not in get_args(EvaluatorName):
            raise SettingsError(unknown_name("evaluator", name, get_args(EvaluatorName)))
        self.space = space
        self.name = name
        for state in ("elements", "dtype", "chosen", "chosen_at", "keeps"):
            self.register_buffer(state, torch.zeros((), dtype=torch.int64))
        self.keeps_input = True
        self._seen, self._seen_dtype = 0, 0
        self._clear()
        self.refresh({slot.name: range(len(slot.candidates)) for slot in space.slots})
        self.register_state_dict_pre_hook(_write_state)
        self.register_load_state_dict_post_hook(_read_state)

    @property
    def keeps_input(self) -> bool:
        """Whether float32 tables keep their input, four bytes an element beside their own two.

        Without it they cannot be differentiated twice, and say so in an EvaluatorError.
        """
        return self._keeps

    @keeps_input.setter
    def keeps_input(self, keeps: bool) -> None:
        self._keeps = keeps
        self.keeps.fill_(keeps)

    def refresh(self, survivors: Mapping[str, Sequence[int]]) -> None:
        """Leave only these candidates of each slot, by position."""
        self._dense = DenseEvaluator(self.space, survivors)
        self._table = TableEvaluator(self._dense)
        self._n_survivors = sum(map(len, survivors.values()))
        self._write()
        self._read()
        self._clear()

    def at_weights(self, x: Tensor, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """The mixture at `x` for weights (n,) of each slot, densely; half precision is computed in float32."""
        if x.dtype in HALF:
            return self.at_weights(x.float(), weights, parameters).to(x.dtype)
        return self._dense(x, weights, parameters)

    def start(self, weights: Mapping[str, Tensor], parameters: OpParameters) -> None:
        """Begin a step: `at_site` uses these `weights` of each slot, (S, n) for S sites, from now on."""
        self._clear()
        self._weights = weights
        # Not registered: they are the cell's.
        object.__setattr__(self, "_values", parameters)
        self._write()
        if self._seen:
            self._n_elements, self._dtype_code, self._seen = self._seen, self._seen_dtype, 0
        self._uses_table = self._decide()

    def stop(self) -> None:
        """End a step: forget its weights."""
        self._clear()

    @property
    def started(self) -> bool:
        """Whether a step has begun."""
        return self._weights is not None

    def at_site(self, x: Tensor, site: int) -> Tensor:
        """The mixture at `x` (any shape) with the weights of one site."""
        self._seen += x.numel()
        if not self._uses_table or x.dtype not in DTYPES:
            return self.at_weights(x, *self._of_site(site, x.ndim))
        self._seen_dtype = DTYPES.index(x.dtype)
        table = self._tables_for(x.dtype)[site]
        of_site = partial(self._of_site, site, x.ndim)
        return self._table.lookup(x, table, of_site, self.keeps_input, self._compiles(x.device))

    def _of_site(self, site: int, ndim: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The weights of every slot and the parameters, for an input of `ndim` dimensions."""
        assert self._weights is not None
        assert self._values is not None
        return {slot: w[site] for slot, w in self._weights.items()}, self._values.at_site(site, ndim)

    def _tables_for(self, dtype: torch.dtype) -> Sequence[Table]:
        if dtype not in self._tables:
            assert self._weights is not None
            assert self._values is not None
            # Whoever asks first decides nothing for the others: an inference, say, before a training pass.
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(self.elements.device.type, enabled=False),
            ):
                self._tables[dtype] = self._table.tables(self._weights, self._values.of_sites(), dtype)
        return self._tables[dtype]

    def _compiles(self, device: torch.device) -> bool:
        return device.type == "cuda" or self._n_elements >= COMPILE_FROM

    # -- the choice ------------------------------------------------------------------------------------------------

    def _decide(self) -> bool:
        assert self._values is not None
        if self.name == "dense" or not tabulable(self.space.clip) or self._values.by_channel:
            return False
        if self.name == "table" or not self._n_elements:
            return True
        knots = INPUTS if DTYPES[self._dtype_code] in HALF else SEGMENTS
        if self._n_elements < 2 * knots * self._n_sites:  # the table of a site would be larger than its input
            return False
        if self._chosen == _UNDECIDED or self._n_survivors <= self._chosen_at // 2:
            self._try()
        return self._chosen == _TABLE

    def _try(self) -> None:
        assert self._weights is not None
        assert self._values is not None
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.elements.device.type, enabled=False):
            weights = {slot: w.detach().clone().requires_grad_() for slot, w in self._weights.items()}
            parameters, at_first = (
                {name: p.detach().clone().requires_grad_() for name, p in of.items()}
                for of in (self._values.of_sites(), self._values.at_site(0, 1))
            )
            first = {slot: w[0].detach().requires_grad_() for slot, w in weights.items()}
            dtype, device = DTYPES[self._dtype_code], self.elements.device

            def lookup(x: Tensor, table: Table) -> Tensor:
                return self._table.lookup(x, table, lambda: (first, at_first), False, self._compiles(device))

            by_table = faster(
                tables=lambda: self._table.tables(weights, parameters, dtype),
                lookup=lookup,
                dense=lambda x: self.at_weights(x, first, at_first),
                trained=([*weights.values(), *parameters.values()], [*first.values(), *at_first.values()]),
                elements=self._n_elements,
                sites=self._n_sites,
                like=torch.empty((), dtype=dtype, device=device),
            )
        choice = torch.tensor(_TABLE if by_table else _DENSE, device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(choice, 0)
        self.chosen.copy_(choice)
        self.chosen_at.fill_(self._n_survivors)
        self._chosen, self._chosen_at = int(choice), self._n_survivors

    @property
    def _n_sites(self) -> int:
        assert self._weights is not None
        return len(next(iter(self._weights.values())))

    # -- state -----------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._weights = None
        self._values = None
        self._tables = {}
        self._uses_table = False

    def _write(self) -> None:
        if self._seen:
            self.elements.fill_(self._seen)
            self.dtype.fill_(self._seen_dtype)

    def _read(self) -> None:
        # Mirrors on the host, so that a step does not wait for the device.
        self._n_elements, self._dtype_code = int(self.elements), int(self.dtype)
        self._chosen, self._chosen_at = int(self.chosen), int(self.chosen_at)
        self._keeps = bool(self.keeps)
        self._seen = 0

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which cannot hold the graph of a step."""
        return {**self.__dict__, "_weights": None, "_values": None, "_tables": {}}

    def extra_repr(self) -> str:
        return self.name


def _write_state(evaluator: Any, *_: Any) -> None:
    evaluator._write()


def _read_state(evaluator: Any, incompatible_keys: Any) -> None:
    evaluator._read()
