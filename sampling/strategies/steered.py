"""Our strategy: rounds of drafts, each around the best drafts so far, at ever lower levels.

A draft is a look-ahead of a few steps over a coarse grid of the schedule's levels. The first round
drafts fresh starts. Every further round begins at the grid's next level, from latents made of the
best drafts' clean ones and of noise that is partly theirs and partly fresh. The last round samples
on to the end, so that what is judged is what is returned; the best draft's own path is among its
candidates. docs/METHOD.md, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..flow import Values
from ..run import Run
from ..schedules import spaced
from ..settings import Parameters, ranged
from ..state import State, cat_values, pick_values, take
from .common import MOST, contenders, to_the_end, top, whole_samples


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
class Pool:
    """Drafts of every item, and what later rounds need of their paths.

    Attributes:
        clean: clean latents [P, B, ...]; ``values``: their rewards [P, B].
        latents: [P, B, ...] at the levels where later rounds begin.
        v: velocities [P, B, ...] where the last round does.
    """

    clean: Tensor
    values: Values
    latents: dict[int, Tensor]
    v: Tensor

    def __add__(self, more: Pool) -> Pool:
        latents = {level: torch.cat([self.latents[level], x]) for level, x in more.latents.items()}
        clean, v = torch.cat([self.clean, more.clean]), torch.cat([self.v, more.v])
        return Pool(clean, cat_values(self.values, more.values), latents, v)

    def of(self, pick: Tensor) -> Pool:
        """The drafts ``pick`` [K, B]."""
        latents = {level: take(x, pick) for level, x in self.latents.items()}
        values = pick_values(self.values, pick)
        return Pool(take(self.clean, pick), values, latents, take(self.v, pick))


def steered(run: Run, start: Tensor, settings: Steered) -> Iterator[State]:
    rounds = allocate(settings, run.steps, run.tail, run.calls)
    if len(rounds) < 2:
        yield from whole_samples(run, start)
        return
    best = yield from _drafting(run, rounds, settings)
    last = rounds[-1]
    for part in run.parts(last.candidates):
        reached = _last(run, best, len(rounds) - 1, last.level, part, settings.correlation)
        yield from to_the_end(run, reached, last=part.stop == last.candidates)


def _drafting(run: Run, rounds: list[Round], settings: Steered) -> Generator[State, None, Pool]:
    """All rounds but the last; returns the best draft of each item, P = 1."""
    grid = spaced(0, run.steps + run.tail, settings.draft_steps)
    later = [one.level for one in rounds[1:]]
    pool: Pool | None = None
    for number, this in enumerate(rounds[:-1]):
        parents = pool and pool.of(top(run, pool.values, min(settings.parents, len(pool.clean))))
        for part in run.parts(this.candidates):
            if parents is None:
                x = run.start(run.fresh_noise(len(part), part.start))
            else:
                x = _around(run, parents, number, this.level, part, settings.correlation)
            drafts = _drafted(run, x, this.level, grid, later)
            pool = drafts if pool is None else pool + drafts
            pool = pool.of(contenders(run, pool.values, settings.parents))
            more = part.stop < this.candidates
            yield State(x, this.level, part=more, detail={"draft_calls": this.calls})
    return pool.of(top(run, pool.values, 1))


def _last(
    run: Run, best: Pool, number: int, level: int, part: range, correlation: float
) -> Iterator[State]:
    """A ``part`` of the last round; the best draft's own path is the first of its candidates."""
    x, v = (known[: int(part.start == 0)] for known in (best.latents[level], best.v))
    born = part[len(x) :]
    if born:
        others = _around(run, best, number, level, born, correlation)
        velocities = run.velocity(others, run.sigmas[level])
        x, v = torch.cat([x, others]), torch.cat([v, velocities])
    return run.onward(x, level, v)


def _drafted(run: Run, x: Tensor, level: int, grid: list[int], later: list[int]) -> Pool:
    """Drafts from ``x`` [P, B, ...] at ``level``."""
    look = run.look_ahead(x, level, 0, stops=[stop for stop in grid if stop > level])
    latents = {stop: look.path[stop][0] for stop in later if stop > level}
    return Pool(look.clean, look.values, latents, look.path[later[-1]][1])


def _around(
    run: Run, parents: Pool, number: int, level: int, part: range, correlation: float
) -> Tensor:
    """Candidates [P, B, ...] of a ``part`` of round ``number`` around the best drafts so far.

    A parent's noise e is what its path's latent there is made of beside its clean latent, x = (1 -
    s) x0 + s e. A candidate keeps a part of it.
    """
    s = run.sigmas[level]
    rows = torch.tensor(part, device=parents.clean.device) % len(parents.clean)
    data = (1 - s) * parents.clean[rows]
    noise = parents.latents[level][rows] - data
    fresh = s * run.draw(number, len(part), part.start)
    return data + correlation * noise + math.sqrt(1 - correlation**2) * fresh
