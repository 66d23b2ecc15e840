"""Deep Potential `se_e2_a`: Zhang et al. 2018 (arXiv 1805.09003), as in DeePMD-kit (2023, arXiv 2304.09409).

An atom sees each neighbour as a row (s, s x/r, s y/r, s z/r) with s = w(r)/r. An embedding network turns s into M
numbers, G. Sums of rows times G over the neighbours, contracted with themselves, do not change under rotation; a
fitting network per element turns them into the atom's energy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from actsearch.errors import MissingPackageError, SettingsError
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField, sum_by_frame

DENSITY = 0.1  # atoms/Å³, of water; how many neighbours there are where no sample tells


class DeepPotential(ForceField):
    """Smooth Deep Potential, two-body embedding of all of an atom's environment.

    DeePMD-kit gives every atom `sel` slots for neighbours of each element and fills those left over with a neighbour
    at the cutoff. After normalisation such a row is not 0, so it counts, and it is what makes the energy smooth where
    a neighbour comes in. Here no slot exists: what the empty ones would add is added as one term. An atom may have
    more neighbours than `sel`; DeePMD-kit would drop the farthest.

    Activations are modules `embedding.O-H.act1` (centre O, neighbour H; `embedding.H.act1` if one-sided) and
    `fitting.O.act1`.

    Args:
        elements, cutoff, references: see ForceField.
        sample: frames whose rows give mean and standard deviation, as DeePMD-kit computes them, and `sel`. Without
            it they are 0 and 1, to be loaded by `load_state_dict`.
        smooth_from: Å; up to here w = 1, from here it falls to 0 at the cutoff.
        embedding: widths of the embedding networks' layers. A layer as wide as its input, or twice as wide, adds it.
        axis: how many of the M columns of G the descriptor is contracted with.
        fitting: widths of the fitting networks' hidden layers.
        sel: neighbours of each element, in the order of `elements`; default: 1.1 times the most in the sample, up to a
            multiple of 4. A normalisation: changing it later changes the energy.
        type_one_side: one embedding network for each element of the neighbour, rather than for each pair of elements.
        resnet_dt: layers of the fitting networks that add their input have a trained step for what they add to it.
        atomic_references: take away what an atom without neighbours has, so that its energy is its reference.

    Raises SettingsError for sizes that do not fit, and MissingPackageError without ase, which names the elements.
    """

    mean: Tensor
    deviation: Tensor
    sel: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float,
        references: Mapping[int, float] | None = None,
        sample: FrameBatch | None = None,
        *,
        smooth_from: float = 0.5,
        embedding: Sequence[int] = (25, 50, 100),
        axis: int = 16,
        fitting: Sequence[int] = (240, 240, 240),
        sel: Sequence[int] | None = None,
        type_one_side: bool = False,
        resnet_dt: bool = True,
        atomic_references: bool = False,
    ) -> None:
        super().__init__(elements, cutoff, references)
        if not 0 <= smooth_from < cutoff:
            raise SettingsError(f"smooth_from must be from 0 to below the cutoff {cutoff:g} Å, not {smooth_from:g}")
        if not embedding or not fitting or min(*embedding, *fitting) < 1:
            raise SettingsError("embedding and fitting need at least one layer, and layers at least one unit")
        if not 1 <= axis <= embedding[-1]:
            raise SettingsError(f"axis must be from 1 to the embedding's last width {embedding[-1]}, not {axis}")
        if sel is not None and (len(sel) != len(self.elements) or min(sel) < 0 or sum(sel) < 1):
            raise SettingsError(f"sel must give a number of neighbours for each of {len(self.elements)} elements")
        self.smooth_from, self.axis, self.width = float(smooth_from), axis, embedding[-1]
        self.type_one_side, self.atomic_references = type_one_side, atomic_references
        symbols = _symbols(self.elements)
        pairs = symbols if type_one_side else [f"{centre}-{neighbour}" for centre in symbols for neighbour in symbols]
        self.embedding = nn.ModuleDict({pair: Network([1, *embedding]) for pair in pairs})
        widths = [self.width * axis, *fitting]
        self.fitting = nn.ModuleDict({symbol: Network(widths, head=True, steps=resnet_dt) for symbol in symbols})
        kinds = len(self.elements)
        self.register_buffer("sel", torch.ones(kinds))
        self.register_buffer("mean", torch.zeros(kinds))  # of s; directions have mean 0
        self.register_buffer("deviation", torch.ones(kinds, 2))  # of s, and of the other three columns
        self._choose_sel(sel, sample)
        if sample is not None:
            self._measure(sample)

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        kinds = self.kinds(batch)
        descriptors, alone = self.descriptors(kinds, batch, vectors)
        energies = descriptors.new_zeros(len(kinds))
        for kind, network in enumerate(self.fitting.values()):
            atoms = (kinds == kind).nonzero().squeeze(1)
            if len(atoms):
                of_kind = network(descriptors[atoms]).squeeze(1)
                if self.atomic_references:
                    of_kind = of_kind - network(alone[kind : kind + 1]).squeeze(1)
                energies = energies.index_add(0, atoms, of_kind)
        return sum_by_frame(energies, batch)

    def descriptors(self, kinds: Tensor, batch: FrameBatch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """D = (1/sel²) (Gᵀ R)(Gᵀ R)ᵀ, its first `axis` columns, of each atom, (N, M · axis), and of an atom without
        neighbours of each kind, (K, M · axis)."""
        centre, rows, block = self._pairs(kinds, batch, vectors)
        embedded, empty = self._embed(rows[:, 0], block)
        sums = _sums_of_products(rows, embedded, centre, len(kinds))
        known = len(self.elements)
        neighbours = torch.bincount(centre * known + block % known, minlength=len(kinds) * known).view(-1, known)
        descriptors = self._contract(sums, self.sel - neighbours, kinds, empty)
        every = torch.arange(known, device=kinds.device)
        nothing = sums.new_zeros(known, 4, self.width)
        return descriptors, self._contract(nothing, self.sel.expand(known, -1), every, empty)

    def _pairs(self, kinds: Tensor, batch: FrameBatch, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the pairs within the cutoff, sorted by the network that embeds them: centre (E,), normalised rows (E, 4),
        and block (E,), the centre's kind · number of kinds + the neighbour's."""
        near = (vectors.detach().square().sum(1) < self.cutoff**2).nonzero().squeeze(1)
        block = kinds[batch.centre[near]] * len(self.elements) + kinds[batch.neighbour[near]]
        order = torch.argsort(block % len(self.elements) if self.type_one_side else block, stable=True)
        chosen, block = near[order], block[order]
        centre = batch.centre[chosen]
        rows = environment(vectors[chosen], self.smooth_from, self.cutoff)
        of_centre = kinds[centre]
        deviation = self.deviation[of_centre]
        s = (rows[:, :1] - self.mean[of_centre, None]) / deviation[:, :1]
        return centre, torch.cat([s, rows[:, 1:] / deviation[:, 1:]], 1), block

    def _embed(self, s: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """G of each pair, (E, M), and of an empty slot by kinds of centre and neighbour, (K, K, M)."""
        known = len(self.elements)
        empty = self._empty_row()
        counts = torch.bincount(block, minlength=known * known).view(known, known)
        # The empty slots' rows go through the same call, so a network runs once a batch, also where it has no pair.
        if self.type_one_side:
            parts = [
                network(torch.cat([part, empty])[:, None])
                for network, part in zip(self.embedding.values(), s.split(counts.sum(0).tolist()), strict=True)
            ]
            return torch.cat([p[:-known] for p in parts]), torch.stack([p[-known:] for p in parts], 1)
        parts = [
            network(torch.cat([part, empty[number // known].view(1)])[:, None])
            for number, (network, part) in enumerate(
                zip(self.embedding.values(), s.split(counts.flatten().tolist()), strict=True)
            )
        ]
        return torch.cat([p[:-1] for p in parts]), torch.cat([p[-1:] for p in parts]).view(known, known, -1)

    def _contract(self, sums: Tensor, free: Tensor, kinds: Tensor, empty: Tensor) -> Tensor:
        # An empty slot has s alone: nothing points anywhere.
        slots = (free * self._empty_row()[kinds, None])[:, None, :] @ empty[kinds]
        sums = torch.cat([sums[:, :1] + slots, sums[:, 1:]], 1) / self.sel.sum()
        return (sums.mT @ sums[:, :, : self.axis]).flatten(1)

    def _empty_row(self) -> Tensor:
        """The normalised s of a slot without neighbour, for each kind of centre, (K,)."""
        return -self.mean / self.deviation[:, 0]

    def _choose_sel(self, sel: Sequence[int] | None, sample: FrameBatch | None) -> None:
        known = len(self.elements)
        if sel is not None:
            self.sel.copy_(torch.tensor([float(n) for n in sel]))
        elif sample is not None:
            kinds = self.kinds(sample)
            near = sample.vectors().square().sum(1) < self.cutoff**2
            which = sample.centre[near] * known + kinds[sample.neighbour[near]]
            most = torch.bincount(which, minlength=len(kinds) * known).view(-1, known).amax(0)
            self.sel.copy_(((most * 1.1).ceil() / 4).ceil().clamp(min=1) * 4)
        else:
            self.sel.fill_(max(1, math.ceil(DENSITY * 4 / 3 * math.pi * self.cutoff**3 / known)))

    @torch.no_grad()
    def _measure(self, sample: FrameBatch) -> None:
        """Mean and deviation over the slots of all centres of an element; empty slots count as 0."""
        vectors = sample.vectors().double()
        near = vectors.square().sum(1) < self.cutoff**2
        rows = environment(vectors[near], self.smooth_from, self.cutoff)
        kinds = self.kinds(sample)
        known = len(self.elements)
        slots = torch.bincount(kinds, minlength=known) * self.sel.double().sum()
        # Of s, and of the other three columns together.
        columns = torch.stack([rows[:, 0], rows[:, 1:].mean(1)], 1)
        squares = torch.stack([rows[:, 0].square(), rows[:, 1:].square().mean(1)], 1)
        of_centre = kinds[sample.centre[near]]
        mean, square = (
            columns.new_zeros(known, 2).index_add(0, of_centre, values) / slots[:, None].clamp(min=1)
            for values in (columns, squares)
        )
        deviation = (square - mean**2).clamp(min=0).sqrt().clamp(min=0.01)
        self.mean.copy_(mean[:, 0])
        self.deviation.copy_(torch.where(slots[:, None] > 0, deviation, 0.1))


class Network(nn.Module):
    """Layers act(fc(x)) that add their input where they are as wide as it, or twice as wide (then it stands twice).

    Args:
        widths: of the input and of each layer.
        head: a linear layer to one number follows.
        steps: layers that add their input multiply the activation by a trained vector.
    """

    def __init__(self, widths: Sequence[int], head: bool = False, steps: bool = False) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        for i, (n, m) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{i}", _linear(n, m))
            self.add_module(f"act{i}", nn.Tanh())
            step = nn.Parameter(torch.empty(m).normal_(0.1, 0.001)) if steps and m in (n, 2 * n) else None
            self.register_parameter(f"step{i}", step)
        self.head = _linear(widths[-1], 1) if head else None

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.depth + 1):
            y = getattr(self, f"act{i}")(getattr(self, f"fc{i}")(x))
            step = getattr(self, f"step{i}")
            if step is not None:
                y = y * step
            if y.shape[1] == x.shape[1]:
                y = y + x
            elif y.shape[1] == 2 * x.shape[1]:
                y = y + torch.cat([x, x], 1)
            x = y
        return x if self.head is None else self.head(x)


def _sums_of_products(left: Tensor, right: Tensor, centre: Tensor, atoms: int) -> Tensor:
    """Of each atom Σ leftᵀ right over its pairs, (atoms, 4, M); left (E, 4), right (E, M).

    By one product of matrices an atom, whose rows without pair are 0: products of single pairs, (E, 4, M), take most
    of a training step's time and memory.
    """
    order = torch.argsort(centre, stable=True)
    counts = torch.bincount(centre, minlength=atoms)
    most = int(counts.max()) if len(centre) else 0
    starts = (counts.cumsum(0) - counts)[centre[order]]
    place = torch.empty_like(order)
    place[order] = centre[order] * most + torch.arange(len(order), device=order.device) - starts

    def spread(values: Tensor) -> Tensor:
        columns = values.shape[1]
        return values.new_zeros(atoms * most, columns).index_copy(0, place, values).view(atoms, most, columns)

    return spread(left).mT @ spread(right)


def environment(vectors: Tensor, smooth_from: float, cutoff: float) -> Tensor:
    """Rows (s, s x/r, s y/r, s z/r) with s = w(r)/r, of vectors (E, 3): (E, 4) 1/Å."""
    r = vectors.square().sum(1, keepdim=True).sqrt()
    s = switch(r, smooth_from, cutoff) / r
    return torch.cat([s, s / r * vectors], 1)


def switch(r: Tensor, smooth_from: float, cutoff: float) -> Tensor:
    """w(r): 1 up to `smooth_from`, 0 from `cutoff` on, 1 - 10 u³ + 15 u⁴ - 6 u⁵ between, which is C² at both ends.

    DeePMD-kit's; arXiv 1805.09003 has a cosine there, which is only C¹.
    """
    u = ((r - smooth_from) / (cutoff - smooth_from)).clamp(0, 1)
    return 1 + u * u * u * (u * (15 - 6 * u) - 10)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """DeePMD-kit's start: weights of variance 1 / (inputs + outputs), biases of variance 1."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=(inputs + outputs) ** -0.5)
    nn.init.normal_(layer.bias)
    return layer


def _symbols(elements: Sequence[int]) -> list[str]:
    try:
        from ase.data import chemical_symbols
    except ImportError:
        raise MissingPackageError("ase", "forcefield", "the names of the elements") from None
    return [chemical_symbols[z] for z in elements]
