"""Best of N: whole samples from N starts, the best image kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..settings import Parameters
from ..state import State
from .common import whole_samples


@dataclass(frozen=True)
class BestOfN(Parameters):
    """N is the budget."""

    strategy = "best_of_n"


def best_of_n(run: Run, start: Tensor, settings: BestOfN) -> Iterator[State]:
    yield from whole_samples(run, start)
