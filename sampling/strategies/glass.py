"""GLASS transitions (arXiv 2509.25170) over several levels, the best candidates kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, take
from .common import draft_of, largest, steps_of, top, whole_samples


@dataclass(frozen=True)
class Glass(Parameters):
    """
    Attributes:
        transitions: how many, evenly over the first ``window`` of the schedule.
        inner: model calls of a transition; the first is the parent's own.
        correlation: of a candidate's noise with its parent's.
        parents: candidates kept between transitions; one after the last.
        draft_steps: steps of a draft of the whole schedule; a candidate is judged by the part of
            one that is left.
    """

    strategy = "glass"

    transitions: int = ranged(4, 1, 64)
    window: float = ranged(0.8, 0, 1)
    inner: int = ranged(2, 1, 64)
    correlation: float = ranged(0.4, 0, 1)
    parents: int = ranged(2, 1, 64)
    draft_steps: int = ranged(4, 1, 1000)


def glass(run: Run, start: Tensor, settings: Glass) -> Iterator[State]:
    window = min(steps_of(settings.window, run.steps), run.steps - 1)

    def price(levels: list[int], candidates: int) -> int:
        looks = [_look(run, settings, level) for level in levels]
        each = sum(candidates * (settings.inner - 1 + look) for look in looks)
        # a parent's velocity is its look-ahead's first call; at pure noise there is no parent
        first = candidates if run.sigmas[0] >= 1 else 1
        return first + each + run.steps - levels[-1] - 1 + run.tail

    least = settings.parents + 1
    for count in range(min(settings.transitions, window), 0, -1):
        levels = [round(window * n / count) for n in range(1, count + 1)]
        candidates = largest(lambda n, levels=levels: price(levels, n) <= run.calls)
        # a transition takes fewer calls than the steps it leaves out: few of them are no search
        enough = candidates >= least or (count == 1 and candidates > 1)
        if enough and price(levels, candidates) >= run.plain_calls:
            break
    else:
        yield from whole_samples(run, start)
        return
    v = run.velocity(start, run.sigmas[0]) if run.sigmas[0] < 1 else None
    state = State(start, 0, v)
    for number, level in enumerate(levels):
        s, s_next = run.sigmas[state.index], run.sigmas[level]
        rows = torch.arange(candidates) % len(state.x)
        noise = run.draw(number, candidates)
        parents = state.x[rows], None if state.v is None else state.v[rows]
        x = transition(run, *parents, s, s_next, noise, settings.correlation, settings.inner)
        v = run.velocity(x, s_next)
        values = run.look_ahead(x, level, _look(run, settings, level), v).values
        kept = 1 if level == levels[-1] else min(settings.parents, candidates)
        pick = top(run, values, kept)
        state = State(take(x, pick), level, take(v, pick))
        yield state
    yield from run.onward(state.x, state.index, state.v)


def _look(run: Run, settings: Glass, level: int) -> int:
    return draft_of(settings.draft_steps, run.steps - level, run.steps)


def transition(
    run: Run,
    x: Tensor,
    v: Tensor | None,
    s: float,
    s_next: float,
    noise: Tensor,
    correlation: float,
    steps: int,
) -> Tensor:
    """Samples of x_{s_next} given x_s = ``x``, with a chosen correlation of their noises.

    x' = g x + u, with u by an inner flow y_r = r a x0 + tau_r e from fresh noise to r = 1, whose
    data estimate is the model's own at the level that x and y together are worth. The first of its
    ``steps`` Euler steps takes ``v``, the velocity at ``x``; the others take a call each, and so
    does the first from pure noise, whose velocity is not asked for.
    docs/METHOD.md, section 5, has the equations.
    """
    rho = 0.0 if s >= 1 else correlation
    g = s_next * rho / s
    a, b = (1 - s_next) - g * max(1 - s, 0), s_next * math.sqrt(1 - rho * rho)
    y, slope = noise, b - 1
    for step in range(steps):
        r = step / steps
        tau = 1 + slope * r
        if step == 0 and s < 1:
            data = x - s * v
        else:
            clean, given = max(1 - s, 0) / s**2, r * a / tau**2
            worth = (max(1 - s, 0) / s) ** 2 + (r * a / tau) ** 2
            level = 1 / (1 + math.sqrt(worth))
            known = (1 - level) * (clean * x + given * y) / worth if worth else noise
            data = known - level * run.velocity(known, level)
        y = y + (a * data + slope * (y - r * a * data) / tau) / steps
    return g * x + y
