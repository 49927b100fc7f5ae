"""What several strategies do alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..flow import Values
from ..run import Run
from ..state import State, take

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


def cat_values(first: Values, second: Values) -> Values:
    """The rewards [P + Q, B] of two populations."""
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


def pick_values(values: Values, pick: Tensor) -> Values:
    """The rewards [K, B] of the candidates ``pick`` [K, B]."""
    return {name: take(value, pick) for name, value in values.items()}


def top(run: Run, values: Values, count: int) -> Tensor:
    """The ``count`` best candidates of each item [count, B], best first.

    The best one stands in for those that have no verdict.
    """
    totals, pick = run.totals(values).topk(count, dim=0)
    return pick.where(totals.isfinite(), pick[:1])


def whole_samples(run: Run, start: Tensor) -> Iterator[State]:
    """As many plain samples as the calls pay for and their judging, that of ``start`` the first.

    What any strategy falls back to where the calls do not pay for a search of its kind.
    """
    count = max(1, run.calls // run.plain_calls)
    # in calls of its own, as without a search: rows that share a call are rounded otherwise
    groups = [start, run.start(run.fresh_noise(count))[1:]] if count > 1 else [start]
    for reached in zip(*(run.onward(x, 0) for x in groups), strict=True):
        x, denoised = (torch.cat([getattr(s, n) for s in reached]) for n in ("x", "denoised"))
        state = State(x, reached[0].index, denoised=denoised)
        yield state
    state = run.finished(state)
    run.plain = state.of(slice(1))
    yield state
