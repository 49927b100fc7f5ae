"""Our strategy: rounds of drafts, each round around the best image so far, at a lower level.

A draft is a look-ahead of a few steps. The first round drafts fresh starts. Every further round
noises the best draft's clean latent x0 back to a lower level s, x = (1 - s) x0 + s e, each
candidate with a noise e of its own that keeps a share of the best draft's, and drafts from there.
The last round samples on to the end, so that what is judged is what is returned; the best draft,
with its own noise, is among its candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..flow import Values
from ..run import Run, State, take
from ..settings import Parameters, whole, within
from .common import MOST, cat_values, pick_values, top


@dataclass(frozen=True)
class Steered(Parameters):
    """
    Attributes:
        rounds: how many, where the budget pays for them.
        window: how far into the schedule the last round begins, as a share of its steps; the
            rounds' levels are evenly spaced up to there.
        draft_steps: Euler steps of a draft, where as many are left.
        decay: candidates of a round over those of the round before.
        correlation: of a candidate's noise with its parent's.
        parents: best drafts that the candidates of a round are around; one in the last round.
    """

    strategy = "steered"

    rounds: int = 4
    window: float = 0.65
    draft_steps: int = 5
    decay: float = 0.7
    correlation: float = 0.5
    parents: int = 2

    def check(self) -> None:
        whole("rounds", self.rounds, 1, 64)
        within("window", self.window, 0, 1)
        whole("draft_steps", self.draft_steps, 1, 1000)
        within("decay", self.decay, 0.01, 1)
        within("correlation", self.correlation, 0, 1)
        whole("parents", self.parents, 1, 64)


@dataclass(frozen=True)
class Round:
    """One round: its level, its candidates, and the steps from there that each is judged by."""

    level: int
    candidates: int
    steps: int


def allocate(settings: Steered, steps: int, calls: int) -> list[Round]:
    """What ``calls`` pay for: first rounds, then candidates; empty for a plain sample.

    Candidates are added one by one, each to the round that is furthest below its share (D'Hondt's
    rule, the shares falling by ``decay`` a round), so that more calls never search less.
    """
    if calls <= steps:
        return []
    last = min(round(settings.window * steps), steps - 1)
    plan = least = _least(settings, steps, 0)
    for count in range(1, settings.rounds):
        least = _least(settings, steps, last, count)
        if count > last or _price(least) > calls:
            break
        plan = least
    if _price(plan) > calls:
        return []
    while True:
        shares = [settings.decay**n / (r.candidates + 1) for n, r in enumerate(plan)]
        next_one = shares.index(max(shares))
        more = [replace(r, candidates=r.candidates + (n == next_one)) for n, r in enumerate(plan)]
        if _price(more) > calls or more[next_one].candidates > MOST:
            return plan
        plan = more


def _least(settings: Steered, steps: int, last: int, further: int = 0) -> list[Round]:
    """The cheapest search of one round and some ``further`` ones, up to level ``last``."""
    levels = [round(last * n / further) if further else 0 for n in range(further + 1)]
    drafts = [min(settings.draft_steps, steps - level) for level in levels]
    drafts[-1] = steps - levels[-1]
    ends = (0, further)  # there is nothing to choose from one start, or at the end from one image
    return [
        Round(level, 2 if number in ends else 1, draft)
        for number, (level, draft) in enumerate(zip(levels, drafts, strict=True))
    ]


def _price(rounds: list[Round]) -> int:
    return sum(r.candidates * r.steps for r in rounds)


@dataclass(frozen=True)
class Drafts:
    """Drafts of every item: their starting noise, clean latents [P, B, ...] and rewards [P, B]."""

    noise: Tensor
    clean: Tensor
    values: Values

    def __add__(self, more: Drafts) -> Drafts:
        return Drafts(
            torch.cat([self.noise, more.noise]),
            torch.cat([self.clean, more.clean]),
            cat_values(self.values, more.values),
        )

    def best(self, run: Run, count: int) -> Drafts:
        """The ``count`` best of each item, best first."""
        pick = top(run, self.values, min(count, len(self.noise)))
        return Drafts(
            take(self.noise, pick), take(self.clean, pick), pick_values(self.values, pick)
        )


def steered(run: Run, start: Tensor, settings: Steered) -> Iterator[State]:
    rounds = allocate(settings, run.steps, run.calls - run.tail)
    if not rounds:
        yield from run.onward(start, 0)
        return
    noise = run.fresh_noise(rounds[0].candidates)
    x, pool = run.start(noise), None
    for number, this in enumerate(rounds[:-1], 1):
        look = run.look_ahead(x, this.level, this.steps)
        drafts = Drafts(noise, look.clean, look.values)
        pool = drafts if pool is None else pool + drafts
        yield State(x, this.level, detail={"draft_steps": this.steps})
        following, last = rounds[number], number == len(rounds) - 1
        parents = pool.best(run, 1 if last else settings.parents)
        rows = torch.arange(following.candidates, device=x.device) % len(parents.noise)
        rho, fresh = settings.correlation, run.draw(number, following.candidates)
        noise = rho * parents.noise[rows] + math.sqrt(1 - rho * rho) * fresh
        if last:
            noise[0] = parents.noise[0]
        s = run.sigmas[following.level]
        x = (1 - s) * parents.clean[rows] + s * noise
    yield from run.onward(x, rounds[-1].level)
