"""What several strategies do alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from ..flow import Values
from ..run import Run
from ..state import State, joined

MOST = 256
"""Where an allocation stops counting candidates up."""


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number in 0..``most`` that fits, where every smaller one does too."""
    return next((n for n in range(most, 0, -1) if fits(n)), 0)


def share_of(share: float, steps: int) -> int:
    """A share of the steps, at least one."""
    return max(1, round(share * steps))


def steps_of(share: float, steps: int) -> int:
    """The steps that begin within the first ``share`` of them, rounding aside; may be none."""
    return math.ceil(share * steps - 1e-9)


def draft_of(draft_steps: int, left: int, steps: int) -> int:
    """Steps of a draft over the last ``left`` of ``steps``: its share of a whole draft's."""
    return min(left, max(1, round(draft_steps * left / steps)))


def top(run: Run, values: Values, count: int) -> Tensor:
    """The ``count`` best candidates of each item [count, B], best first.

    The best one stands in for those that have no verdict.
    """
    totals, pick = run.totals(values).topk(count, dim=0)
    return pick.where(totals.isfinite(), pick[:1])


def to_the_end(
    run: Run, reached: Iterator[State], finished: State | None
) -> Generator[State, None, State]:
    """Samples on their way to the end, where they are judged and join ``finished``; returns all."""
    for state in reached:
        yield state
    samples = joined(finished, run.finished(state))
    yield samples
    return samples


SPARE = 2
"""Candidates that are kept for each that will be chosen: totals of several rewards, which are
relative to all that was seen, may put others first later on."""


def contenders(run: Run, values: Values, count: int) -> Tensor:
    """The candidates [K, B] that are kept while more come, ``count`` of which will be chosen."""
    totals = run.totals(values)
    return totals.topk(min(SPARE * count, len(totals)), dim=0).indices


def whole_samples(run: Run, start: Tensor) -> Iterator[State]:
    """As many plain samples as the calls pay for and their judging, that of ``start`` the first.

    What any strategy falls back to where the calls do not pay for a search of its kind.
    """
    # in calls of its own, as without a search: rows that share a call are rounded otherwise
    for state in run.onward(start, 0):
        yield state
    run.plain = samples = run.finished(state)
    yield samples
    for part in run.parts(max(1, run.calls // run.plain_calls) - 1):
        x = run.start(run.fresh_noise(len(part), 1 + part.start))
        samples = yield from to_the_end(run, run.onward(x, 0), samples)
