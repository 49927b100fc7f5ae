"""Stochastic steps of a rectified flow and their log-probabilities, in float32, for any rank.

``s`` and ``s_next`` are noise levels (1 noise, 0 data), ``h = s - s_next > 0``; x_s = (1 - s) x0 +
s e and the model's velocity is v = e - x0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .bands import band_sizes, octaves

LEAST_MEAN_COEFFICIENT = 0.5
"""The SDE mean keeps at least this much of x; below 0 the update's sign turns round."""


class Step(Protocol):
    """A Gaussian step to the next level."""

    std: float

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        """Mean [B, ...] of the step from ``x`` [B, ...] with velocity ``v``."""
        ...


@dataclass(frozen=True)
class LinearStep:
    """mean = ``on_x`` x + ``on_v`` v."""

    on_x: float
    on_v: float
    std: float

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        return self.on_x * x + self.on_v * v


@dataclass(frozen=True)
class MatchedStep:
    """A step as energetic as Euler's, octave by octave: mean = (1 - s') x0 + k e.

    Like Flow-CPS (arXiv 2509.05952) it keeps the data estimate x0 and makes room for fresh noise in
    the noise estimate e. How much of e may stay, k, is solved for in each octave, so that mean and
    noise have the energy of the Euler step (1 - s') x0 + s' e there. CPS assumes that estimates are
    as energetic as what they estimate, and loses where they are not.
    """

    s: float
    s_next: float
    std: float

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        x0, e = (1 - self.s_next) * (x - self.s * v), x + (1 - self.s) * v
        parts = zip(octaves(x0), octaves(e), band_sizes(x), strict=True)
        return sum(part + self._kept(part, noise, n) * noise for part, noise, n in parts)

    def _kept(self, x0: Tensor, e: Tensor, size: int) -> Tensor:
        """k with |x0 + k e|^2 + std^2 size = |x0 + s' e|^2, or as near to that as k >= 0 comes."""
        dims = tuple(range(1, x0.ndim))
        overlap = (x0 * e).sum(dims, keepdim=True)
        energy = e.square().sum(dims, keepdim=True).clamp(min=1e-12)
        rest = self.s_next**2 * energy + 2 * self.s_next * overlap - self.std**2 * size
        root = (overlap.square() + energy * rest).clamp(min=0).sqrt()
        return ((root - overlap) / energy).clamp(min=0)


def log_prob(step: Step, sample: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Log-density of ``sample`` under N(mean, step.std^2), averaged over ``dims``."""
    z = (sample - mean) / step.std
    return (-0.5 * z.square()).mean(dims) - math.log(step.std) - 0.5 * math.log(2 * math.pi)


def _odds(s: float, first: float) -> float:
    """s / (1 - s), with the level after 1 standing in where s is 1 (Flow-GRPO, section 4.2)."""
    return s / (1 - (first if s >= 1 else s))


def largest_eta(s: float, s_next: float, first: float) -> float:
    """The eta at which the SDE mean's coefficient of x falls to LEAST_MEAN_COEFFICIENT."""
    return math.sqrt(2 * s * (1 - LEAST_MEAN_COEFFICIENT) / (_odds(s, first) * (s - s_next)))


def sde_step(s: float, s_next: float, eta: float, first: float) -> LinearStep:
    """The SDE step of Flow-GRPO (arXiv 2505.05470, eq. 8): keeps the flow's marginals as h -> 0.

    Args:
        first: the level after s = 1 in the schedule.
    """
    h = s - s_next
    a2 = eta * eta * _odds(s, first)
    return LinearStep(
        on_x=1 - a2 * h / (2 * s),
        on_v=-(1 + a2 * (1 - s) / (2 * s)) * h,
        std=math.sqrt(a2 * h),
    )


def cps_std(s_next: float, eta: float) -> float:
    return s_next * math.sin(eta * math.pi / 2)


def cps_step(s: float, s_next: float, eta: float) -> LinearStep:
    """The coefficient-preserving step of Flow-CPS (arXiv 2509.05952); eta in 0..1, s_next > 0.

    mean = (1 - s') x0 + sqrt(s'^2 - std^2) e with x0 = x - s v and e = x + (1 - s) v.
    """
    std = cps_std(s_next, eta)
    kept = math.sqrt(s_next * s_next - std * std)
    return LinearStep(
        on_x=1 - s_next + kept,
        on_v=-(1 - s_next) * s + kept * (1 - s),
        std=std,
    )


def midpoint_step(s: float, s_next: float, eta: float) -> LinearStep:
    """The mean of the SDE's and the CPS step of equal std; eta in 0..1 as for CPS, s_next > 0.

    What makes room for fresh noise is taken off at level s by the one and at s_next by the other,
    so that one gains the variance that the other loses: their mean keeps it to a higher order.
    """
    cps = cps_step(s, s_next, eta)
    h, room = s - s_next, cps.std**2 / (2 * s)
    sde = LinearStep(on_x=1 - room, on_v=-(h + room * (1 - s)), std=cps.std)
    return LinearStep((sde.on_x + cps.on_x) / 2, (sde.on_v + cps.on_v) / 2, cps.std)


def matched_step(s: float, s_next: float, eta: float) -> MatchedStep:
    """The energy-matched step with the noise of the CPS step; eta in 0..1, s_next > 0."""
    return MatchedStep(s, s_next, cps_std(s_next, eta))
