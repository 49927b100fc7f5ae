"""The gradient of a differentiable reward, through decoder and model, between the steps.

The data-side ascent of PG-MAP (UG-FM) and ReNO's normalised step, on the latent itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..run import Run
from ..settings import Parameters, ranged
from ..state import State
from ..updates import norm, unit
from .common import steps_of, whole_samples


@dataclass(frozen=True)
class RewardGradient(Parameters):
    """
    Attributes:
        begin: share of the steps before the first ascent. The first step's look-ahead hardly
            depends on the noise, so that its gradient may be no more than rounding.
        ascent: how far an ascent moves the latent, as a share of its norm.
    """

    strategy = "reward_gradient"

    begin: float = ranged(0.05, 0, 1)
    ascent: float = ranged(0.02, 0, 1)


CALLS_PER_ASCENT = 3
"""A call with gradient, and its backward for two."""


def reward_gradient(run: Run, start: Tensor, settings: RewardGradient) -> Iterator[State]:
    first = min(steps_of(settings.begin, run.steps), run.steps - 1)
    ascents = (run.calls - run.plain_calls) // CALLS_PER_ASCENT
    if ascents < 1:
        yield from whole_samples(run, start)
        return
    levels, x = run.steps - first, start
    for index in range(run.steps):
        number = index - first
        share = ascents * (number + 1) // levels - ascents * number // levels
        for _ in range(share if number >= 0 else 0):
            gradient = run.reward_gradient(x[0], index)
            x = x + settings.ascent * norm(x[0]) * unit(gradient)
        state = next(run.onward(x, index))
        x = state.x
        yield state
