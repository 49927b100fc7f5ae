"""Our strategy: rounds of drafts, each around the best drafts so far, at ever lower levels.

A draft is a look-ahead of a few steps over a coarse grid of the schedule's levels. The first round
drafts fresh starts. Every further round begins at the grid's next level, from latents made of the
best drafts' clean ones and of noise that is partly theirs and partly fresh. The last round samples
on to the end, so that what is judged is what is returned; the best draft's own path is among its
candidates. docs/METHOD.md, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..flow import Values
from ..run import Run
from ..schedules import spaced
from ..settings import Parameters, ranged
from ..state import State, take
from .common import MOST, cat_values, top, whole_samples


@dataclass(frozen=True)
class Steered(Parameters):
    """
    Attributes:
        draft_steps: steps of a draft of the whole schedule. They divide it into a grid, at
            whose levels rounds begin; a draft from a lower level takes the steps that are left.
        rounds: how many, where the budget pays for them.
        decay: candidates of a round over those of the round before.
        correlation: of a candidate's noise with its parent's.
        parents: best drafts that the candidates of a round are around; one in the last round.
    """

    strategy = "steered"

    draft_steps: int = ranged(5, 1, 1000)
    rounds: int = ranged(4, 1, 64)
    decay: float = ranged(0.7, 0.01, 1)
    correlation: float = ranged(0.3, 0, 1)
    parents: int = ranged(2, 1, 64)


@dataclass(frozen=True)
class Round:
    """One round: its level, its candidates, and the calls from there that each is judged by."""

    level: int
    candidates: int
    calls: int


def allocate(settings: Steered, steps: int, tail: int, calls: int) -> list[Round]:
    """What ``calls`` pay for: first rounds, then candidates; empty for a plain sample.

    Candidates are added one by one, each to the round that is furthest below its share (D'Hondt's
    rule, the shares falling by ``decay`` a round), so that more calls never search less.
    """
    grid = [0, *spaced(0, steps + tail, settings.draft_steps)]
    rounds = min(settings.rounds, sum(level < steps for level in grid))
    plan: list[Round] = []
    for count in range(1, rounds + 1):
        least = _least(grid, count, 2)
        if _price(least) <= calls:  # more of them may cost less: the last one begins lower
            plan = least
    if not plan and rounds > 1 and calls > steps + tail:
        least = _least(grid, rounds, 1)  # the best draft's own image, with none beside it
        plan = least if _price(least) <= calls else []
    while plan:
        shares = [settings.decay**n / (r.candidates + 1) for n, r in enumerate(plan)]
        next_one = shares.index(max(shares))
        more = [replace(r, candidates=r.candidates + (n == next_one)) for n, r in enumerate(plan)]
        if _price(more) > calls or more[next_one].candidates > MOST:
            break
        plan = more
    return plan


def _least(grid: list[int], count: int, last: int) -> list[Round]:
    """The cheapest search of ``count`` rounds, ``last`` of them candidates of the last one."""
    drafts = [len(grid) - 1 - number for number in range(count)]
    drafts[-1] = grid[-1] - grid[count - 1]
    candidates = [1] * (count - 1) + [last]
    candidates[0] = 2  # there is nothing to choose from one start
    return [Round(*one) for one in zip(grid, candidates, drafts, strict=False)]


def _price(rounds: list[Round]) -> int:
    # the first call on the best draft's own path is known from its draft
    return sum(r.candidates * r.calls for r in rounds) - (len(rounds) > 1)


@dataclass(frozen=True)
class Drafts:
    """Drafts of every item: clean latents [P, B, ...], their rewards [P, B], and their paths.

    Attributes:
        path: latents and velocities [P, B, ...] by level.
    """

    clean: Tensor
    values: Values
    path: dict[int, tuple[Tensor, Tensor]]

    def __add__(self, more: Drafts) -> Drafts:
        path = {
            level: (torch.cat([self.path[level][0], x]), torch.cat([self.path[level][1], v]))
            for level, (x, v) in more.path.items()
        }
        clean = torch.cat([self.clean, more.clean])
        return Drafts(clean, cat_values(self.values, more.values), path)


def steered(run: Run, start: Tensor, settings: Steered) -> Iterator[State]:
    rounds = allocate(settings, run.steps, run.tail, run.calls)
    if len(rounds) < 2:
        yield from whole_samples(run, start)
        return
    grid = spaced(0, run.steps + run.tail, settings.draft_steps)
    x, v, pool = run.start(run.fresh_noise(rounds[0].candidates)), None, None
    for number, this in enumerate(rounds[:-1], 1):
        look = run.look_ahead(x, this.level, 0, stops=[g for g in grid if g > this.level])
        drafts = Drafts(look.clean, look.values, look.path)
        pool = drafts if pool is None else pool + drafts
        yield State(x, this.level, detail={"draft_calls": this.calls})
        if number < len(rounds) - 1:
            x = _around(run, pool, number, rounds[number], settings.parents, settings.correlation)
        else:
            x, v = _last(run, pool, number, rounds[number], settings.correlation)
    yield from run.onward(x, rounds[-1].level, v)


def _around(
    run: Run, pool: Drafts, number: int, this: Round, parents: int, correlation: float
) -> Tensor:
    """Candidates [P, B, ...] of round ``number`` around the best drafts so far.

    A parent's noise e is what its path's latent there is made of beside its clean latent, x = (1 -
    s) x0 + s e. A candidate keeps a part of it.
    """
    s = run.sigmas[this.level]
    pick = top(run, pool.values, min(parents, len(pool.clean)))
    rows = torch.arange(this.candidates, device=pick.device) % len(pick)
    data = (1 - s) * take(pool.clean, pick)[rows]
    noise = take(pool.path[this.level][0], pick)[rows] - data
    fresh = s * run.draw(number, this.candidates)
    return data + correlation * noise + math.sqrt(1 - correlation**2) * fresh


def _last(
    run: Run, pool: Drafts, number: int, this: Round, correlation: float
) -> tuple[Tensor, Tensor]:
    """Candidates of the last round and their velocities: the best draft's own path comes first."""
    x, v = (take(part, top(run, pool.values, 1)) for part in pool.path[this.level])
    if this.candidates == 1:
        return x, v
    others = _around(run, pool, number, this, 1, correlation)[1:]
    velocities = run.velocity(others, run.sigmas[this.level])
    return torch.cat([x, others]), torch.cat([v, velocities])
