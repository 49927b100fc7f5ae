"""Rollover budget forcing (Kim et al., arXiv 2503.19385): what a step saves, later ones spend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow import Values
from ..run import Run
from ..settings import Parameters, ranged
from ..state import State, per_item
from ..steps import ancestral_std, cps_step
from .common import whole_samples


@dataclass(frozen=True)
class RBF(Parameters):
    """
    Attributes:
        noise_share: std of the stochastic step over the ancestral step's on the
            variance-preserving path; 1 is the published one.
    """

    strategy = "rbf"

    noise_share: float = ranged(1.0, 1e-3, 1)


def rbf(run: Run, start: Tensor, settings: RBF) -> Iterator[State]:
    """At each step candidates are tried one by one until one beats the best reward so far."""
    x, rounds = start, run.steps - 1
    quota = (run.calls - run.tail - 1) / rounds if rounds else 0
    if quota < 2:
        yield from whole_samples(run, start)
        return
    v, bar = run.velocity(x, run.sigmas[0]), None
    used = torch.zeros(run.items, dtype=torch.long, device=x.device)
    for index in range(rounds):
        allowed = int(quota * (index + 1) + 1e-6)
        x, v, best, used = _step(run, index, x, v, bar, used, allowed, settings)
        bar = best if bar is None else _chosen(_beats(run, best, bar), best, bar)
        yield State(x, index + 1, v, detail={"tried": used.tolist()})
    yield from run.onward(x, rounds, v)


def _step(
    run: Run,
    index: int,
    x: Tensor,
    v: Tensor,
    bar: Values | None,
    used: Tensor,
    allowed: int,
    settings: RBF,
) -> tuple[Tensor, Tensor, Values, Tensor]:
    """Latents, velocities [1, B, ...] and rewards [1, B] of the step after ``index``.

    Items try candidates until one beats ``bar`` or they have ``used`` [B] what is ``allowed``; the
    calls used so far come last.
    """
    s, s_next = run.sigmas[index : index + 2]
    step = cps_step(s, s_next, settings.noise_share * ancestral_std(s, s_next))
    mean = step.mean(x, v)
    best, active, candidate = None, used < allowed, 0
    while bool(active.any()):
        tried = run.draw(index, 1, first=candidate).mul_(step.std).add_(mean)
        tried_v = run.velocity(tried, s_next, active)
        values = run.look_ahead(tried, index + 1, 1, tried_v, active).values
        # an item's first candidate is its best so far; every item has one
        better = torch.ones_like(active) if best is None else active & _beats(run, values, best)
        if bool(better.all()):
            x, v, best = tried, tried_v, values
        elif bool(better.any()):
            x = torch.where(per_item(better, x[0]), tried, x)
            v = torch.where(per_item(better, x[0]), tried_v, v)
            best = _chosen(better, values, best)
        used = used + active
        short = ~_beats(run, best, bar) if bar else run.totals(best)[0].isneginf()
        active = active & short & (used < allowed)
        candidate += 1
    return x, v, best, used


def _beats(run: Run, values: Values, others: Values) -> Tensor:
    """Whether rewards [1, B] are above others, as things stand now [B]."""
    return (run.totals(values) > run.totals(others))[0]


def _chosen(mask: Tensor, values: Values, others: Values) -> Values:
    """Rewards where ``mask`` [B] holds, others elsewhere."""
    return {name: torch.where(mask, value, others[name]) for name, value in values.items()}
