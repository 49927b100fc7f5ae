"""Our strategy: few levels, long look-aheads, the stochastic step steered by what they taught."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bands import typical_noise
from ..objectives import advantages
from ..run import Run, State, take
from ..settings import Parameters, pair, whole, within
from ..steps import matched_mean
from ..updates import average_where_missing
from .common import cat_values, largest, top

import math


@dataclass(frozen=True)
class Steered(Parameters):
    """
    Attributes:
        search_every: search on every n-th step, beginning with the first.
        window: share of the steps that are searched.
        noise_range: eta of the stochastic step, linear from first to last search step.
        look_range: steps of a look-ahead, from first to last search step.
    """

    strategy = "steered"

    search_every: int = 4
    window: float = 0.9
    noise_range: tuple[float, float] = (0.8, 0.5)
    look_range: tuple[int, int] = (5, 1)

    def check(self) -> None:
        whole("search_every", self.search_every, 1, 10_000)
        within("window", self.window, 0, 1)
        pair("noise_range", self.noise_range, within, 1e-3, 1)
        pair("look_range", self.look_range, whole, 1, 64)


def steered(run: Run, start: Tensor, settings: Steered) -> Iterator[State]:
    window = min(math.ceil(settings.window * run.steps), run.steps - 1)
    search = list(range(0, window, settings.search_every))

    def at(span, index):
        return span[0] + (span[1] - span[0]) * (index / search[-1] if search[-1] else 0)

    looks = [min(round(at(settings.look_range, i)), run.steps - i - 1) for i in search]

    def price(group):
        return run.steps - len(search) + (group + 1) * sum(looks) + run.tail

    group = largest(lambda n: price(n) <= run.calls)
    if group < 2:
        yield from run.onward(start, 0)
        return
    x, v = start, None
    for index in range(window):
        s, s_next = run.sigmas[index : index + 2]
        v = run.velocity(x, s) if v is None else v
        if index not in search:
            x, v = run.euler(x, v, index), None
            yield State(x, index + 1)
            continue
        look = looks[search.index(index)]
        std = s_next * math.sin(at(settings.noise_range, index) * math.pi / 2)
        mean = matched_mean(x[0], v[0], s, s_next, std)
        noise = torch.stack([typical_noise(n, mean) for n in run.draw(index, group)])
        samples = mean + std * noise
        v_samples = run.velocity(samples, s_next)
        values = run.look_ahead(samples, index + 1, look, v_samples).values
        advantage = advantages(average_where_missing(run.totals(values)), 5.0)
        direction = torch.einsum("gb,gb...->b...", advantage, noise)
        moved = direction.flatten(1).any(1)
        steer = mean + std * typical_noise(direction, mean)
        plain = run.euler(x, v, index)[0]
        steer = torch.where(moved.view(-1, *[1] * (mean.ndim - 1)), steer, plain)[None]
        v_steer = run.velocity(steer, s_next)
        own = run.look_ahead(steer, index + 1, look, v_steer).values
        values = cat_values(own, values)
        pick = top(run, values, 1)
        x, v = take(torch.cat([steer, samples]), pick), take(torch.cat([v_steer, v_samples]), pick)
        yield State(x, index + 1, v)
    yield from run.onward(x, window, v)
