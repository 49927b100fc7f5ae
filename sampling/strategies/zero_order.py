"""Zero-order search over the start (Ma et al., arXiv 2501.09732): a walk among its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, cat_values, pick_values, take
from .common import top, whole_samples


@dataclass(frozen=True)
class ZeroOrder(Parameters):
    """
    Attributes:
        neighbours: starts tried around the best one, a round.
        radius: radians by which a neighbour is turned away.
        draft_steps: steps of the draft that a start is judged by.
    """

    strategy = "zero_order"

    neighbours: int = ranged(4, 1, 256)
    radius: float = ranged(1.0, 0, math.pi / 2)
    draft_steps: int = ranged(6, 1, 1000)


def zero_order(run: Run, start: Tensor, settings: ZeroOrder) -> Iterator[State]:
    steps = min(settings.draft_steps, run.steps)
    # the whole sample's first velocity is its draft's
    left = (run.calls - run.plain_calls + 1) // steps
    if left < 2:
        yield from whole_samples(run, start)
        return
    x, pivot = start, run.noise[None]
    look = run.look_ahead(start, 0, steps)
    values, v = look.values, look.v
    left -= 1
    for number in range(math.ceil(left / settings.neighbours)):
        count = min(settings.neighbours, left)
        fresh = run.draw(f"neighbours {number}", count) * run.noisy
        near = math.cos(settings.radius) * pivot + math.sin(settings.radius) * fresh
        look = run.look_ahead(run.start(near), 0, steps)
        values = cat_values(values, look.values)
        pick = top(run, values, 1)
        pivot, values = take(torch.cat([pivot, near]), pick), pick_values(values, pick)
        x, v = run.start(pivot), take(torch.cat([v, look.v]), pick)
        left -= count
        yield State(x, 0, v)
    yield from run.onward(x, 0, v)
