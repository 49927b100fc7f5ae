"""Noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shifted_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """Levels [steps + 1] from 1 to 0, moved towards noise (SD3, arXiv 2403.03206, eq. 23).

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(
            f"expected at least 1 step and a positive shift, got {steps} steps, shift {shift:g}"
        )
    linear = torch.linspace(1, 0, steps + 1)
    return shift * linear / (1 + (shift - 1) * linear)


def distinct_levels(sigmas: Sequence[float]) -> list[float]:
    """``sigmas`` [T + 1] without equal neighbours; what rounding has left above 1 counts as 1.

    Raises:
        ValueError: levels that no flow's schedule has.
    """
    firsts: dict[float, float] = {}
    for sigma in map(float, sigmas):
        firsts.setdefault(min(sigma, 1.0), sigma)
    distinct = list(firsts.values())
    falling = all(a >= b for a, b in zip(sigmas, sigmas[1:], strict=False))
    if len(distinct) < 2 or not falling or not 0 <= sigmas[-1] <= sigmas[0] <= 1 + 1e-5:
        raise ValueError(
            f"expected noise levels falling within 1..0, got {[round(s, 4) for s in sigmas]}; "
            "wire a flow-matching model's own schedule"
        )
    return distinct


def spaced(index: int, last: int, steps: int) -> list[int]:
    """Where a look-ahead of ``steps`` steps from level ``index`` stops, ``last`` included."""
    count = min(steps, last - index)
    return [index + round(k * (last - index) / count) for k in range(1, count + 1)]
