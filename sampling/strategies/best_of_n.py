"""Best of N: whole samples from N starts, the best image kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..settings import Parameters
from ..state import State


@dataclass(frozen=True)
class BestOfN(Parameters):
    """N is the budget."""

    strategy = "best_of_n"


def best_of_n(run: Run, start: Tensor, settings: BestOfN) -> Iterator[State]:
    count = max(1, run.calls // run.plain_calls)
    state = State(run.start(run.fresh_noise(count)), 0)
    for reached in run.onward(state.x, 0):
        state = reached
        yield state
    state = run.finished(state)
    run.plain = state.of(slice(1))
    yield state
