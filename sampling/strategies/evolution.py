"""Evolution of starts and latents (EvoSearch, He et al., arXiv 2505.17618)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, cat_values, pick_values, take
from ..steps import cps_step
from .common import draft_of, largest, top, whole_samples


@dataclass(frozen=True)
class Evolution(Parameters):
    """
    Attributes:
        elites: individuals that live on unchanged.
        generations: how often the population is renewed.
        window: share of the schedule over which the generations' levels are spread; 0 evolves
            the starts alone.
        mutation: share of a child's noise that is fresh, as an angle's sine.
        draft_steps: steps of a draft of the whole schedule; an individual is judged by the part of
            one that is left.
    """

    strategy = "evolution"

    elites: int = ranged(2, 1, 64)
    generations: int = ranged(3, 0, 64)
    window: float = ranged(0.3, 0, 1)
    mutation: float = ranged(0.8, 0, 1)
    draft_steps: int = ranged(6, 1, 1000)


def evolution(run: Run, start: Tensor, settings: Evolution) -> Iterator[State]:
    steps, elites, count = run.steps, settings.elites, settings.generations
    levels = [round(settings.window * steps * n / max(count - 1, 1)) for n in range(count)]
    levels = [min(level, steps - 1) for level in levels]
    looks = [draft_of(settings.draft_steps, steps - level, steps) for level in (0, *levels)]

    def price(children: int, generations: int) -> int:
        last = levels[generations - 1] if generations else 0
        judged = (elites + children) * looks[0] + children * sum(looks[1 : generations + 1])
        # velocities are known where a latent was judged
        return judged + elites * last + steps - last - 1 + run.tail

    generations = next((n for n in range(count, 0, -1) if price(elites, n) <= run.calls), 0)
    children = largest(lambda n: price(n, generations) <= run.calls)
    if not children:
        yield from whole_samples(run, start)
        return
    x = run.start(run.fresh_noise(elites + children))
    look = run.look_ahead(x, 0, looks[0])
    index, values, v = 0, look.values, look.v
    for number in range(generations):
        pick = top(run, values, elites)
        x, values, v = take(x, pick), pick_values(values, pick), take(v, pick)
        while index < levels[number]:
            state = next(run.onward(x, index, v))
            x, index, v = state.x, state.index, None
            yield state
        s = run.sigmas[index]
        v = run.velocity(x, s) if v is None else v
        step = cps_step(s, s, settings.mutation * s)
        parents = step.mean(x, v).repeat(math.ceil(children / elites), *[1] * (x.ndim - 1))
        born = parents[:children] + step.std * run.draw(f"generation {number}", children)
        look = run.look_ahead(born, index, looks[number + 1])
        x, v = torch.cat([x, born]), torch.cat([v, look.v])
        values = cat_values(values, look.values)
        yield State(x, index, v)
    pick = top(run, values, 1)
    yield from run.onward(take(x, pick), index, take(v, pick))
