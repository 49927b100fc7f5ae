"""Drafts: few-step samples from many starts, the best start sampled in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..settings import Parameters, within
from ..state import State, take
from .common import share_of, top, whole_samples


@dataclass(frozen=True)
class Drafts(Parameters):
    """
    Attributes:
        draft_share: steps of a draft, as a share of the schedule's.
    """

    strategy = "drafts"

    draft_share: float = 0.3

    def check(self) -> None:
        within("draft_share", self.draft_share, 0, 1)


def drafts(run: Run, start: Tensor, settings: Drafts) -> Iterator[State]:
    steps = share_of(settings.draft_share, run.steps)
    # the whole sample's first velocity is its draft's
    count = (run.calls - run.plain_calls + 1) // steps
    if count < 2:
        yield from whole_samples(run, start)
        return
    starts = run.start(run.fresh_noise(count))
    look = run.look_ahead(starts, 0, steps)
    pick = top(run, look.values, 1)
    state = State(take(starts, pick), 0, take(look.v, pick))
    yield state
    yield from run.onward(state.x, 0, state.v)
