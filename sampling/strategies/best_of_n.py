"""Best of N: whole samples from N starts, the best image kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run, State
from ..settings import Parameters


@dataclass(frozen=True)
class BestOfN(Parameters):
    """N is the budget."""

    strategy = "best_of_n"


def best_of_n(run: Run, start: Tensor, settings: BestOfN) -> Iterator[State]:
    count = max(1, run.calls // (run.steps + run.tail))
    state = State(run.start(run.fresh_noise(count)) if count > 1 else start, 0)
    for state in run.onward(state.x, 0):
        yield state
    values = run.look_ahead(state.x, run.steps, 1).values
    first = {name: value[:1] for name, value in values.items()}
    run.plain = State(state.x[:1], run.steps, values=first)
    yield State(state.x, run.steps, values=values)
