"""CHGNet, the crystal Hamiltonian graph network, by the library chgnet (BSD-3-Clause).

Deng et al., "CHGNet as a pretrained universal neural network potential for charge-informed atomistic modelling",
Nature Machine Intelligence 5 (2023) 1031, arXiv 2302.14231.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actsearch.errors import MissingPackageError, SettingsError, UnknownNameError
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField

HEAVIEST = 94
PRETRAINED = ("0.3.0", "r2scan")
# Those of the pretrained models.
SIZES = {"features": 64, "layers": 4, "radial": 31, "angular": 31}
CUTOFF, BOND_CUTOFF = 6.0, 3.0


class CHGNet(ForceField):
    """CHGNet (Deng et al. 2023, arXiv 2302.14231) by its library, with new weights of any size or the library's own.

    Works with and without cells, and for atoms without neighbours.

    Its activations are SiLU, at `network.atom_conv_layers.0.twoBody_atom.activation` and its like; those of the gates'
    inner layers are among them, the gates' sigmoids are not. What cannot act on the energy is taken out of the
    library's network, so that every site is live: an unused SiLU beside each layer, and the last update of the angles.

    Args:
        elements: up to 94; see ForceField.
        cutoff: of the atom graph, Å; a pretrained model has its own, 6, and this must not be below it.
        references: see ForceField.
        features: of each atom, bond and angle, and the width of all layers.
        layers: of atoms; one less of bonds.
        radial, angular: functions of a distance, and of an angle (an odd number).
        bond_cutoff: of the bonds that make angles, Å; at most `cutoff`.
        pretrained: "0.3.0" or "r2scan", weights that the library brings.
        composition: take the library's energies of atoms (its composition model) in place of `references`; by default
            for pretrained models only.

    Raises SettingsError as ForceField does, for sizes that are out of range or not the pretrained model's;
    UnknownNameError; MissingPackageError without chgnet.
    """

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = CUTOFF,
        references: Mapping[int, float] | None = None,
        features: int = 64,
        layers: int = 4,
        radial: int = 31,
        angular: int = 31,
        bond_cutoff: float = BOND_CUTOFF,
        pretrained: str | None = None,
        composition: bool | None = None,
    ) -> None:
        sizes = {"features": features, "layers": layers, "radial": radial, "angular": angular}
        _check(sizes, bond_cutoff, cutoff, pretrained)
        super().__init__(elements, cutoff if pretrained is None else CUTOFF, references)
        if max(self.elements) > HEAVIEST:
            raise SettingsError(f"CHGNet knows elements up to {HEAVIEST}, not {max(self.elements)}")
        self.bond_cutoff = min(float(bond_cutoff), self.cutoff)
        with contextlib.redirect_stdout(io.StringIO()):  # it announces its number of parameters
            self.network = _pretrained(pretrained) if pretrained else _new(sizes, self.cutoff, self.bond_cutoff)
        if pretrained is not None if composition is None else composition:
            self._take_composition(self.network.composition_model or _chgnet("composition_model").AtomRef())
        self.network.composition_model = None
        _make_every_site_live(self.network)

    def _take_composition(self, model: Any) -> None:
        """Energies of atoms from the library's linear model, in float64, in place of the references."""
        if not model.fitted:
            model.initialize_from("MPtrj")
        self.references.copy_(model.fc.weight.detach()[0, torch.tensor(self.elements) - 1])

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        network = self.network
        graph = graph_of(batch, vectors, self.cutoff, self.bond_cutoff)
        angles = network.angle_basis_expansion(*graph.sides) if len(graph.angles) else vectors.new_zeros(0)
        # `_compute` is all of the library's forward beyond making the graph. Forces are made here, not there.
        batched = _chgnet("model").BatchedGraph(
            atomic_numbers=batch.numbers,
            bond_bases_ag=network.bond_basis_expansion.rbf_expansion_ag(graph.lengths),
            bond_bases_bg=network.bond_basis_expansion.rbf_expansion_bg(graph.lengths),
            angle_bases=angles,
            batched_atom_graph=graph.atoms,
            batched_bond_graph=graph.angles,
            atom_owners=batch.frame,
            directed2undirected=graph.bond_of_pair,
            atom_positions=[],
            strains=[],
            volumes=[],
        )
        energy = network._compute(batched)["e"]
        return energy * batch.sizes if network.is_intensive else energy


@dataclass
class Graph:
    """The atom graph and the bond graph of a batch: P pairs, U = P/2 bonds (pairs without direction), and G angles.

    Attributes:
        atoms: (P, 2), centre and neighbour of each pair within the cutoff.
        bond_of_pair: (P,).
        lengths: (U,) Å.
        angles: (G, 3), an atom and two different bonds of it, both ordered ways, each within the bond cutoff.
        sides: (G, 3) and (G, 3), unit vectors from the atom along the two.
    """

    atoms: Tensor
    bond_of_pair: Tensor
    lengths: Tensor
    angles: Tensor
    sides: tuple[Tensor, Tensor]


def graph_of(batch: FrameBatch, vectors: Tensor, cutoff: float, bond_cutoff: float) -> Graph:
    """The graph that the library's own converter makes, up to the order of its rows."""
    bond_of_pair = _bonds(batch)
    # The same of its two pairs for a bond's length and for whether it is near: rounding cannot part them.
    pair_of_bond = _first_of_each(bond_of_pair)
    lengths = torch.linalg.vector_norm(vectors[pair_of_bond], dim=1)
    near = lengths < cutoff
    pairs = near[bond_of_pair].nonzero().squeeze(1)
    bond_of_pair = (near.cumsum(0) - 1)[bond_of_pair[pairs]]
    lengths = lengths[near]
    centre, vectors = batch.centre[pairs], vectors[pairs]
    left, right = _ordered_twos(centre, lengths[bond_of_pair] < bond_cutoff, len(batch.numbers))
    units = vectors / lengths[bond_of_pair][:, None]
    return Graph(
        atoms=torch.stack([centre, batch.neighbour[pairs]], dim=1),
        bond_of_pair=bond_of_pair,
        lengths=lengths,
        angles=torch.stack([centre[left], bond_of_pair[left], bond_of_pair[right]], dim=1),
        sides=(units[left], units[right]),
    )


def _check(sizes: Mapping[str, int], bond_cutoff: float, cutoff: float, pretrained: str | None) -> None:
    if min(sizes.values()) < 1 or sizes["angular"] % 2 == 0:
        raise SettingsError(
            f"CHGNet needs sizes of at least 1, and an odd number of angular functions, not {dict(sizes)}"
        )
    if not bond_cutoff > 0:
        raise SettingsError(f"CHGNet's bond cutoff is a distance in Å above 0, not {bond_cutoff}")
    if pretrained is None:
        return
    if pretrained not in PRETRAINED:
        raise UnknownNameError("pretrained CHGNet", pretrained, PRETRAINED)
    if dict(sizes) != SIZES or bond_cutoff != BOND_CUTOFF:
        raise SettingsError("a pretrained CHGNet has sizes of its own: leave out " + ", ".join([*SIZES, "bond_cutoff"]))
    if cutoff < CUTOFF:
        raise SettingsError(
            f"a pretrained CHGNet needs a cutoff of {CUTOFF:g} Å, not {cutoff:g} Å: set the data's cutoff"
        )


def _chgnet(module: str) -> Any:
    """A module of chgnet.model."""
    try:
        import chgnet.model.composition_model
        import chgnet.model.model
    except ImportError:
        raise MissingPackageError("chgnet", "forcefield", "CHGNet") from None
    return getattr(chgnet.model, module)


def _new(sizes: Mapping[str, int], cutoff: float, bond_cutoff: float) -> Any:
    width = sizes["features"]
    return _chgnet("model").CHGNet(
        atom_fea_dim=width,
        bond_fea_dim=width,
        angle_fea_dim=width,
        composition_model=None,
        num_radial=sizes["radial"],
        num_angular=sizes["angular"],
        n_conv=sizes["layers"],
        atom_conv_hidden_dim=width,
        bond_conv_hidden_dim=width,
        mlp_hidden_dims=(width, width, width),
        atom_graph_cutoff=cutoff,
        bond_graph_cutoff=bond_cutoff,
        graph_converter_algorithm="legacy",  # not used; the other one may be missing, of which it warns
    )


def _pretrained(name: str) -> Any:
    return _chgnet("model").CHGNet.load(model_name=name, use_device="cpu", verbose=False)


class Gated(nn.Module):
    """The library's gated network, σ(core) · sigmoid(gate), without its branches on whether it normalises.

    The code then calls σ once, so that it is one site, also where several calls of one module are made several sites.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.mlp_core, self.mlp_gate = network.mlp_core, network.mlp_gate
        self.activation, self.sigmoid = network.activation, network.sigmoid
        self.bn1, self.bn2 = network.bn1, network.bn2

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn1(self.mlp_core(x))) * self.sigmoid(self.bn2(self.mlp_gate(x)))


def _make_every_site_live(network: Any) -> None:
    for layer in [*network.atom_conv_layers, *network.bond_conv_layers, *network.angle_layers]:
        layer.activation = nn.Identity()  # the library never calls it
        for name, child in layer.named_children():
            if hasattr(child, "mlp_gate"):
                setattr(layer, name, Gated(child))
    if len(network.angle_layers):
        network.angle_layers[-1] = None  # no bond reads the angles after it


def _bonds(batch: FrameBatch) -> Tensor:
    """Of each pair the number of its bond, (E,): pairs i, j, S and j, i, -S are one bond."""
    i, j, shift = batch.centre, batch.neighbour, batch.shift
    reach = int(shift.abs().max()) if len(shift) else 0
    base = 2 * reach + 1
    x, y, z = (shift + reach).unbind(1)
    there, back = (x * base + y) * base + z, ((2 * reach - x) * base + 2 * reach - y) * base + 2 * reach - z
    n = len(batch.numbers)
    key = torch.minimum((i * n + j) * base**3 + there, (j * n + i) * base**3 + back)
    return torch.unique(key, return_inverse=True)[1]


def _first_of_each(group: Tensor) -> Tensor:
    """Of each group 0, 1, … its first member's place."""
    n = int(group.max()) + 1 if len(group) else 0
    places = torch.arange(len(group), device=group.device)
    return places.new_full((n,), len(group)).scatter_reduce(0, group, places, "amin")


def _ordered_twos(centre: Tensor, chosen: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Every ordered two of different chosen pairs that have the same centre; centres ascend."""
    pairs = chosen.nonzero().squeeze(1)
    count = torch.bincount(centre[pairs], minlength=n_atoms)
    others = count[centre[pairs]]
    left = torch.arange(len(pairs), device=centre.device).repeat_interleave(others)
    within = torch.arange(len(left), device=centre.device) - (others.cumsum(0) - others).repeat_interleave(others)
    right = (count.cumsum(0) - count)[centre[pairs[left]]] + within
    different = left != right
    return pairs[left[different]], pairs[right[different]]
