"""Search over paths (Ma et al., arXiv 2501.09732): noised back, sampled down, the best kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, take
from .common import draft_of, largest, share_of, top, whole_samples


@dataclass(frozen=True)
class Paths(Parameters):
    """
    Attributes:
        width: paths kept.
        rounds: how often paths branch, evenly over the first ``window`` of the schedule.
        back_share: how far a branch is noised back, as a share of the schedule's steps.
        draft_steps: steps of a draft of the whole schedule; a branch is judged by the part of one
            that is left.
    """

    strategy = "paths"

    width: int = ranged(1, 1, 64)
    rounds: int = ranged(3, 0, 64)
    window: float = ranged(0.6, 0, 1)
    back_share: float = ranged(0.1, 0, 1)
    draft_steps: int = ranged(6, 1, 1000)


def paths(run: Run, start: Tensor, settings: Paths) -> Iterator[State]:
    steps, back = run.steps, share_of(settings.back_share, run.steps)
    branchings = sorted(
        {
            max(back, round(settings.window * steps * n / settings.rounds))
            for n in range(1, settings.rounds + 1)
        }
    )
    branchings = [index for index in branchings if index < steps]
    looks = {i: draft_of(settings.draft_steps, steps - i, steps) for i in (0, *branchings)}

    def price(branches: int, rounds: int) -> int:
        """Calls with that many branches of a path, at the first ``rounds`` branchings."""
        levels = branchings[:rounds]
        last = levels[-1] if levels else 0
        # a path's velocity where it was judged is its look-ahead's first call
        first = settings.width * branches * looks[0] + settings.width * (last - rounds)
        each = sum(settings.width * branches * (back + looks[level]) for level in levels)
        return first + each + steps - last - 1 + run.tail

    rounds = next((n for n in range(len(branchings), 0, -1) if price(2, n) <= run.calls), 0)
    branches = largest(lambda n: price(n, rounds) <= run.calls)
    if settings.width * branches < 2:
        yield from whole_samples(run, start)
        return
    x = run.start(run.fresh_noise(settings.width * branches))
    look = run.look_ahead(x, 0, looks[0])
    kept = settings.width if rounds else 1
    pick = top(run, look.values, kept)
    state = State(take(x, pick), 0, take(look.v, pick))
    yield state
    for level in branchings[:rounds]:
        while state.index < level:
            state = next(run.onward(state.x, state.index, state.v))
            yield state
        state = _branch(run, state, level, back, branches, looks[level])
        if level == branchings[rounds - 1]:
            state = State(state.x[:1], level, state.v[:1])
        yield state
    yield from run.onward(state.x, state.index, state.v)


def _branch(run: Run, state: State, level: int, back: int, branches: int, look: int) -> State:
    """Every path noised back and sampled down to ``level`` by several branches, the best kept."""
    s, above = run.sigmas[level], run.sigmas[level - back]
    kept = (1 - above) / (1 - s)
    std = max(above**2 - (kept * s) ** 2, 0) ** 0.5
    parents = state.x.repeat_interleave(branches, 0)
    x = kept * parents + std * run.draw(level, len(parents))
    for index in range(level - back, level):
        x = run.euler(x, run.velocity(x, run.sigmas[index]), index)
    ahead = run.look_ahead(x, level, look)
    pick = top(run, ahead.values, len(state.x))
    return State(take(x, pick), level, take(ahead.v, pick))
