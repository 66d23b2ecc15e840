"""Studies over hyper-parameters: what is tuned, where trials are kept, and how workers share them out."""

from actsearch.tune.held_out import HeldOut
from actsearch.tune.plan import Plan
from actsearch.tune.queue import TakenOver, TrialQueue
from actsearch.tune.ranges import Range
from actsearch.tune.results import Results, TrialRow
from actsearch.tune.storage import Place, close, open_storage

__all__ = [
    "HeldOut",
    "Place",
    "Plan",
    "Range",
    "Results",
    "TakenOver",
    "TrialQueue",
    "TrialRow",
    "close",
    "open_storage",
]
