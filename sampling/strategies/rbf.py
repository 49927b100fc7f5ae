"""Rollover budget forcing (Kim et al., arXiv 2503.19385): what a step saves, later ones spend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..run import Run, State, per_item
from ..settings import Parameters, within
from ..steps import ancestral_std, cps_step


@dataclass(frozen=True)
class RBF(Parameters):
    """
    Attributes:
        noise_share: std of the stochastic step over the ancestral step's on the
            variance-preserving path; 1 is the published one.
    """

    strategy = "rbf"

    noise_share: float = 1.0

    def check(self) -> None:
        within("noise_share", self.noise_share, 1e-3, 1)


def rbf(run: Run, start: Tensor, settings: RBF) -> Iterator[State]:
    """At each step candidates are tried one by one until one beats the best reward so far."""
    x, rounds = start, run.steps - 1
    quota = (run.calls - run.tail - 1) / rounds if rounds else 0
    if quota < 2:
        yield from run.onward(x, 0)
        return
    v = run.velocity(x, run.sigmas[0])
    bar = torch.full((run.items,), -torch.inf, device=x.device)
    used = torch.zeros(run.items, dtype=torch.long, device=x.device)
    for index in range(rounds):
        allowed = int(quota * (index + 1) + 1e-6)
        x, v, bar, used = _step(run, index, x, v, bar, used, allowed, settings)
        yield State(x, index + 1, v, detail={"tried": used.tolist()})
    yield from run.onward(x, rounds, v)


def _step(run, index, x, v, bar, used, allowed, settings):
    """Latents, velocities and rewards of the step after ``index``, and the calls used so far."""
    s, s_next = run.sigmas[index : index + 2]
    step = cps_step(s, s_next, settings.noise_share * ancestral_std(s, s_next))
    mean = step.mean(x, v)
    chosen, chosen_v = x, v
    best = torch.full_like(bar, -torch.inf)
    active, candidate = used < allowed, 0
    while bool(active.any()):
        tried = mean + step.std * run.draw(index, 1, first=candidate)
        tried_v = run.velocity(tried, s_next, active)
        values = run.look_ahead(tried, index + 1, 1, tried_v, active).values
        score = run.totals(values)[0]
        better = active & ((score > best) | (candidate == 0))
        chosen = torch.where(per_item(better, x[0]), tried, chosen)
        chosen_v = torch.where(per_item(better, x[0]), tried_v, chosen_v)
        best = torch.where(better, score, best)
        used = used + active
        active = active & (best <= bar) & (used < allowed)
        candidate += 1
    return chosen, chosen_v, torch.maximum(bar, best), used
