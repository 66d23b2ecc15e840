"""The relaxed activation."""

from actsearch.cell.mixed import MixedCell, MixedSite
from actsearch.cell.relaxation import Dirichlet, Gumbel, Relaxation, Softmax, make_relaxation

__all__ = ["Dirichlet", "Gumbel", "MixedCell", "MixedSite", "Relaxation", "Softmax", "make_relaxation"]
