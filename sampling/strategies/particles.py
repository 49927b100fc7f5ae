"""Particles steered by their look-aheads (FK steering, Singhal et al., arXiv 2501.06848)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives import advantages
from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, take
from ..steps import cps_step
from ..updates import average_where_missing
from .common import whole_samples


@dataclass(frozen=True)
class Particles(Parameters):
    """As many particles as the budget has plain samples; look-aheads of one step cost no call.

    Attributes:
        every: steps from one resampling to the next.
        window: share of the steps in which particles move stochastically and are resampled.
        temperature: how sharply weights follow the rewards, in units of their spread.
        eta: noise of the stochastic step (Flow-CPS), 0..1.
    """

    strategy = "particles"

    every: int = ranged(4, 1, 1000)
    window: float = ranged(1.0, 0, 1)
    temperature: float = ranged(10.0, 0, 1000)
    eta: float = ranged(1.0, 0, 1)


def particles(run: Run, start: Tensor, settings: Particles) -> Iterator[State]:
    count = max(1, run.calls // run.plain_calls)
    if count == 1:
        yield from whole_samples(run, start)
        return
    x = run.start(run.fresh_noise(count))
    window = math.floor(settings.window * run.steps + 1e-9)
    for index in range(window):
        s, s_next = run.sigmas[index : index + 2]
        v = run.velocity(x, s)
        if index and index % settings.every == 0:
            totals = run.totals(run.look_ahead(x, index, 1, v).values)
            scores = advantages(average_where_missing(totals), math.inf)
            logits = (settings.temperature * scores).where(totals.isfinite(), -1e9)
            weights = logits.softmax(0)
            pick = systematic(weights, run.uniform(f"resampling {index}"))
            x, v = take(x, pick), take(v, pick)
        step = cps_step(s, s_next, s_next * math.sin(settings.eta * math.pi / 2))
        x = step.mean(x, v) + step.std * run.draw(index, count)
        yield State(x, index + 1)
    yield from run.onward(x, window)


def systematic(weights: Tensor, offset: Tensor) -> Tensor:
    """Candidates [P, B] drawn by their ``weights`` [P, B] at evenly spaced quantiles."""
    count = len(weights)
    places = (torch.arange(count, device=weights.device)[:, None] + offset) / count
    edges = weights.cumsum(0).T.contiguous()
    return torch.searchsorted(edges, places.T.contiguous()).T.clamp(max=count - 1)
