"""Stochastic steps of a rectified flow and their log-probabilities, in float32, for any rank.

``s`` and ``s_next`` are noise levels (1 noise, 0 data), ``h = s - s_next > 0``; x_s = (1 - s) x0 +
s e and the model's velocity is v = e - x0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

LEAST_MEAN_COEFFICIENT = 0.5
"""The SDE mean keeps at least this much of x; below 0 the update's sign turns round."""


@dataclass(frozen=True)
class LinearStep:
    """A Gaussian step with mean = ``on_x`` x + ``on_v`` v."""

    on_x: float
    on_v: float
    std: float

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        return self.on_x * x + self.on_v * v


MOST_EXTRAPOLATED = 10
"""A step is extrapolated over at most this many times the step before it: over more, what rounding
has left between two levels that are nearly the same would be most of it."""


class Multistep:
    """DPM-Solver++(2M) (arXiv 2211.01095) on a flow's path: second order at a call a step.

    The data estimate is extrapolated in the log of the signal-to-noise ratio from the step before;
    where that has no bounds, in the step from pure noise, the one after it and the one to the clean
    end, or the step before was next to none, a step is of first order, which is Euler's.
    """

    def __init__(self):
        self._before: tuple[float, Tensor] | None = None

    def step(self, x: Tensor, v: Tensor, s: float, s_next: float) -> Tensor:
        """``x`` [N, ...] at level ``s`` with velocity ``v`` taken to ``s_next``."""
        data = (v * -s).add_(x)
        if s_next == 0:
            return data
        estimate = data
        if self._before and self._before[0] < 1:
            above, known = self._before
            rise, next_rise = _log_snr(s, above), _log_snr(s_next, s)
            if next_rise < MOST_EXTRAPOLATED * rise:
                estimate = (data - known).mul_(0.5 * next_rise / rise).add_(data)
        self._before = s, data
        kept = s_next / s
        return (kept * x).add_((1 - s_next - kept * (1 - s)) * estimate)


def _log_snr(s: float, above: float) -> float:
    """Rise of log((1 - s) / s) from a level to a lower one, both within 0..1, exclusive."""
    return math.log((1 - s) * above / (s * (1 - above)))


def log_prob(step: LinearStep, sample: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
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


def cps_step(s: float, s_next: float, std: float) -> LinearStep:
    """The coefficient-preserving step of Flow-CPS (arXiv 2509.05952); ``std`` in 0..s_next.

    mean = (1 - s') x0 + sqrt(s'^2 - std^2) e with x0 = x - s v and e = x + (1 - s) v.
    """
    kept = math.sqrt(max(s_next * s_next - std * std, 0))
    return LinearStep(
        on_x=1 - s_next + kept,
        on_v=-(1 - s_next) * s + kept * (1 - s),
        std=std,
    )


def ancestral_std(s: float, s_next: float) -> float:
    """The noise of a full ancestral step (DDPM's posterior) between two levels.

    With the variance-preserving path of the same signal-to-noise ratios, to which RBF (arXiv
    2503.19385) converts the flow, DDIM's std at eta 1 is s' sqrt((1 - alpha^2 / alpha'^2) /
    sigma^2) back on the flow's own path; all of the noise is fresh at s = 1.
    """
    if s >= 1:
        return s_next
    signal, signal_next = (
        (1 - level) ** 2 / ((1 - level) ** 2 + level**2) for level in (s, s_next)
    )
    return s_next * math.sqrt((1 - signal / signal_next) / (1 - signal))
