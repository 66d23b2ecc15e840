"""ANI-2: atomic environment vectors and one network for each element, by torchani (MIT).

Devereux et al., "Extending the applicability of the ANI deep learning molecular potential to sulfur and halogens",
J. Chem. Theory Comput. 16 (2020) 4192. Smith, Isayev, Roitberg, Chem. Sci. 8 (2017) 3192, for the vectors.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actsearch.errors import MissingPackageError, SettingsError, UnknownNameError
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField, sum_by_frame

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"celu": lambda: nn.CELU(0.1), "gelu": nn.GELU}


class ANI2(ForceField):
    """The architecture of ANI-2x (Devereux et al. 2020) by torchani, for any elements, with new weights.

    Energies are in eV, and there are no self energies beside `references`. Neighbours and vectors are those of the
    batch, so periodic cells of any size and stress work.

    Its activations are the sites `networks.atomics.C.layers.act1`, `….act2`, …, one for each layer of each element; in
    torchani itself one instance is shared by all of them. The default is ANI's own CELU(0.1), which is C¹ only: its
    second derivative jumps at 0. So forces are continuous with kinks, and training on them works but is not smooth.
    "gelu", which torchani's newer models use, is C^∞. The cosine cutoff functions are C¹ as well.

    Args:
        elements, references: see ForceField.
        cutoff: of the radial terms, Å; ANI-2x has 5.1.
        hidden: sizes of the hidden layers of every element's network; None: those of ANI-2x, (256, 192, 160) for H to
            (160, 128, 96) for elements that it lacks.
        angular_cutoff: of the angular terms, Å.
        activation: "celu" or "gelu".

    Raises SettingsError as ForceField does, for a size below 1 or an angular cutoff that is not below `cutoff`;
    UnknownNameError; MissingPackageError without torchani.
    """

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.1,
        references: Mapping[int, float] | None = None,
        hidden: Sequence[int] | None = None,
        angular_cutoff: float = 3.5,
        activation: Literal["celu", "gelu"] = "celu",
    ) -> None:
        super().__init__(elements, cutoff, references)
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation of ANI", activation, ACTIVATIONS)
        if not 0 < angular_cutoff < self.cutoff:
            raise SettingsError(
                f"ANI's angular cutoff must be above 0 and below the radial cutoff, {self.cutoff:g} Å, "
                f"not {angular_cutoff:g} Å"
            )
        if hidden is not None and (not hidden or min(hidden) < 1):
            raise SettingsError(f"ANI's networks need layers of at least one unit, not {list(hidden)}")
        library = _torchani()
        symbols = [library.constants.PERIODIC_TABLE[z] for z in self.elements]
        # pyaev: the library's CUDA kernels have no second derivative.
        self.environment = library.aev.AEVComputer.like_2x(
            len(symbols), "pyaev", radial_cutoff=self.cutoff, angular_cutoff=float(angular_cutoff)
        )
        size, made = self.environment.out_dim, ACTIVATIONS[activation]()
        container = library.nn.ANINetworks
        if hidden is None:
            networks = container.like_2x(symbols, size, activation=made)
        else:
            networks = container.build(symbols, size, {}, activation=made, bias=True, default_dims=tuple(hidden))
        self.networks = container({symbol: _with_sites(network) for symbol, network in networks.atomics.items()})

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        pairs = _torchani().neighbors.Neighbors
        distances = torch.linalg.vector_norm(vectors, dim=1)
        once = (_is_first_of_two(batch) & (distances < self.cutoff)).nonzero().squeeze(1)
        indices = torch.stack([batch.centre[once], batch.neighbour[once]])
        # All atoms are handed over as one molecule: which of them belong together is told by the pairs alone.
        kinds = self.kinds(batch)[None]
        features = self.environment.compute_from_neighbors(
            kinds, vectors.new_empty(0), pairs(indices, distances[once], vectors[once])
        )
        return sum_by_frame(self.networks(kinds, features, atomic=True)[0], batch)


def _torchani() -> Any:
    # Read when the library is first imported: it warns that its CUDA extensions, which are not used here, are missing.
    os.environ.setdefault("TORCHANI_NO_WARN_EXTENSIONS", "1")
    try:
        import torchani
        import torchani.aev
        import torchani.constants
        import torchani.neighbors
        import torchani.nn
    except ImportError:
        raise MissingPackageError("torchani", "forcefield", "ANI-2") from None
    return torchani


def _with_sites(network: Any) -> nn.Sequential:
    """The same layers as torchani's network of an element, each hidden one with an activation of its own.

    torchani's containers read "layers" and "final_layer" in the names of their state.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, layer in enumerate(network.layers, start=1):
        layers[f"fc{i}"] = layer
        layers[f"act{i}"] = copy.deepcopy(network.activation)
    return nn.Sequential(OrderedDict(layers=nn.Sequential(layers), final_layer=network.final_layer))


def _is_first_of_two(batch: FrameBatch) -> Tensor:
    """Whether a pair is the one of its two directions that torchani is given, (E,)."""
    x, y, z = batch.shift.unbind(1)
    zero = torch.zeros_like(x)
    forward = torch.where(x != zero, x, torch.where(y != zero, y, z)) > 0
    own_image = batch.centre == batch.neighbour
    return torch.where(own_image, forward, batch.centre < batch.neighbour)
