"""What several strategies do alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
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


def contenders(run: Run, values: Values, count: int) -> Tensor:
    """The candidates [K, B] that may yet be among the ``count`` best of each item, in their order.

    Totals of several rewards may be relative to all that was seen, and put others first as more is:
    out are only those that ``count`` others beat by every reward that drives.
    """
    driving = torch.stack([sign * values[n] for n, sign in run.directions(values).items() if sign])
    driving = driving.where(driving.isfinite(), torch.nan)  # no verdict: neither beats nor beaten
    own, others = driving[:, :, None], driving[:, None]
    beaten = (others >= own).all(0) & (others > own).any(0)
    kept = beaten.sum(1) < count
    most = int(kept.sum(0).max())
    return kept.int().sort(dim=0, descending=True, stable=True).indices[:most]


def to_the_end(run: Run, reached: Iterator[State], *, last: bool) -> Iterator[State]:
    """Samples on their way to the end, where they are judged and join the run's finished ones.

    Args:
        last: whether no more are to come.
    """
    for state in reached:
        yield replace(state, part=True)
    run.samples = joined(run.samples, run.finished(state))
    yield replace(run.samples, part=not last)


def whole_samples(run: Run, start: Tensor) -> Iterator[State]:
    """As many plain samples as the calls pay for and their judging, that of ``start`` the first.

    What any strategy falls back to where the calls do not pay for a search of its kind.
    """
    others = max(1, run.calls // run.plain_calls) - 1
    # in calls of its own, as without a search: rows that share a call are rounded otherwise
    for state in run.onward(start, 0):
        yield replace(state, part=True)
    run.plain = run.samples = run.finished(state)
    yield replace(run.plain, part=others > 0)
    for part in run.parts(others):
        x = run.start(run.fresh_noise(len(part), 1 + part.start))
        yield from to_the_end(run, run.onward(x, 0), last=part.stop == others)
