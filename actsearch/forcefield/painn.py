"""PaiNN, the polarizable atom interaction network: messages of scalars and vectors.

Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial properties and molecular
spectra", ICML 2021, arXiv 2102.03150.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from actsearch.errors import SettingsError
from actsearch.forcefield.frames import FrameBatch
from actsearch.forcefield.potential import ForceField, sum_by_frame

# Added to a feature vector's squared length: small beside any that matters, large enough for float32.
EPSILON = 1e-8


class PaiNN(ForceField):
    """PaiNN, its energies of atoms summed over each frame. The published sizes are the defaults.

    Each atom has F scalars s, at first those of its element, and F vectors v, at first 0. Weights start as Glorot's and
    Bengio's, biases at 0.

    Its activations, SiLU, are the sites `message1.act`, `update1.act`, …, and `readout.act`.

    The network's energies of atoms are multiplied by `scale`, the root mean square of the force components of `sample`,
    taken as a number of eV (1 without a sample), so that it need not learn how large energies are. It is a buffer.

    The published cosine envelope is C¹ at the cutoff: forces are continuous, with a kink where a neighbour comes within
    reach. Training on forces bears that, as it differentiates forces by weights. Molecular dynamics conserves energy
    better without: `smooth_cutoff` takes the square of the envelope, which is C³ there.

    Args:
        elements, cutoff, references: see ForceField.
        sample: frames for `scale`.
        features: F, an atom's scalars, and vectors.
        layers: of one message and one update block each.
        radial: functions of the radial basis.
        smooth_cutoff: the square of the envelope.

    Raises SettingsError as ForceField does, or for sizes that are too small.
    """

    scale: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.0,
        references: Mapping[int, float] | None = None,
        sample: FrameBatch | None = None,
        features: int = 128,
        layers: int = 3,
        radial: int = 20,
        smooth_cutoff: bool = False,
    ) -> None:
        super().__init__(elements, cutoff, references)
        if features < 2 or min(layers, radial) < 1:
            raise SettingsError(
                f"PaiNN needs at least 2 features, 1 layer and 1 radial function, not {features}, {layers} and {radial}"
            )
        self.layers = layers
        self.embedding = nn.Embedding(len(self.elements), features)
        self.basis = RadialBasis(self.cutoff, radial, smooth_cutoff)
        for i in range(1, layers + 1):
            self.add_module(f"message{i}", Message(features, radial))
            self.add_module(f"update{i}", Update(features))
        self.readout = Readout(features)
        scale = 1.0 if sample is None else force_scale(sample)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.get_default_dtype()))

    def interaction(self, batch: FrameBatch, vectors: Tensor) -> Tensor:
        distances = torch.linalg.vector_norm(vectors, dim=1)
        near = (distances < self.cutoff).nonzero().squeeze(1)
        centre, neighbour = batch.centre[near], batch.neighbour[near]
        distances, vectors = distances[near], vectors[near]
        basis, envelope = self.basis(distances)
        directions = vectors / distances[:, None]
        s = self.embedding(self.kinds(batch))
        v = s.new_zeros(len(s), 3, s.shape[1])
        for i in range(1, self.layers + 1):
            s, v = self.get_submodule(f"message{i}")(s, v, centre, neighbour, basis, envelope, directions)
            s, v = self.get_submodule(f"update{i}")(s, v)
        return sum_by_frame(self.scale * self.readout(s), batch)


class RadialBasis(nn.Module):
    """sin(nπr/r_c)/r for n = 1, …, and the cosine envelope ½(1 + cos(πr/r_c)); or, smoother, the square of that."""

    def __init__(self, cutoff: float, n_functions: int, smooth: bool) -> None:
        super().__init__()
        self.cutoff, self.n_functions, self.smooth = cutoff, n_functions, smooth

    def forward(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Of distances (E,) the functions (E, n), and the envelope (E, 1)."""
        x = distances[:, None] / self.cutoff
        n = torch.arange(1, self.n_functions + 1, device=x.device, dtype=x.dtype)
        # sinc has the limit at r = 0, nπ/r_c.
        functions = torch.sinc(n * x) * (n * (math.pi / self.cutoff))
        envelope = (1 + torch.cos(math.pi * x)) / 2
        return functions, envelope**2 if self.smooth else envelope


class Message(nn.Module):
    """What an atom hears of its neighbours (fig. 2b)."""

    def __init__(self, features: int, radial: int) -> None:
        super().__init__()
        self.inner = _linear(features, features)
        self.act = nn.SiLU()
        self.outer = _linear(features, 3 * features)
        self.filter = _linear(radial, 3 * features)

    def forward(
        self,
        s: Tensor,
        v: Tensor,
        centre: Tensor,
        neighbour: Tensor,
        basis: Tensor,
        envelope: Tensor,
        directions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        passed = self.outer(self.act(self.inner(s)))[neighbour] * self.filter(basis) * envelope
        to_s, keep_v, along = passed.chunk(3, dim=1)
        to_v = v[neighbour] * keep_v[:, None] + directions[:, :, None] * along[:, None]
        return s.index_add(0, centre, to_s), v.index_add(0, centre, to_v)


class Update(nn.Module):
    """What an atom makes of its own scalars and vectors (fig. 2c)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mix = _linear(features, 2 * features, bias=False)
        self.inner = _linear(2 * features, features)
        self.act = nn.SiLU()
        self.outer = _linear(features, 3 * features)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        u, w = self.mix(v).chunk(2, dim=-1)
        # The norm has no derivative at 0, where a symmetric surrounding puts every vector; with ε inside the root
        # energy, forces, and their derivatives by the weights are finite there.
        length = (w.square().sum(1) + EPSILON).sqrt()
        of_s, of_product, of_v = self.outer(self.act(self.inner(torch.cat([s, length], dim=1)))).chunk(3, dim=1)
        return s + of_s + of_product * (u * w).sum(1), v + of_v[:, None] * u


class Readout(nn.Module):
    """Energy of each atom: (N, F) → (N,)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner = _linear(features, features // 2)
        self.act = nn.SiLU()
        self.outer = _linear(features // 2, 1)

    def forward(self, s: Tensor) -> Tensor:
        return self.outer(self.act(self.inner(s))).squeeze(1)


def force_scale(sample: FrameBatch) -> float:
    """Root mean square of the known force components, eV/Å; 1 if none is known, or all are 0."""
    known = sample.forces[sample.forces.isfinite()].double()
    mean_square = known.square().mean().item() if len(known) else 0.0
    return math.sqrt(mean_square) or 1.0


def _linear(n: int, m: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n, m, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
