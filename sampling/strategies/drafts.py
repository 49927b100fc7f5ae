"""Drafts: few-step samples from many starts, the best start sampled in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, joined
from .common import contenders, top, whole_samples


@dataclass(frozen=True)
class Drafts(Parameters):
    """
    Attributes:
        draft_steps: steps of a draft; where the schedule has no more, whole samples are drawn.
    """

    strategy = "drafts"

    draft_steps: int = ranged(6, 1, 1000)


def drafts(run: Run, start: Tensor, settings: Drafts) -> Iterator[State]:
    steps = settings.draft_steps
    # the whole sample's first velocity is its draft's
    count = (run.calls - run.plain_calls + 1) // steps
    if count < 2 or steps >= run.steps:
        yield from whole_samples(run, start)
        return
    drafted = None
    for part in run.parts(count):
        starts = run.start(run.fresh_noise(len(part), part.start))
        look = run.look_ahead(starts, 0, steps)
        drafted = joined(drafted, State(starts, 0, look.v, look.values))
        drafted = drafted.of(contenders(run, drafted.values, 1))
        yield State(drafted.x, 0, part=part.stop < count)
    best = drafted.of(top(run, drafted.values, 1))
    yield from run.onward(best.x, 0, best.v)
