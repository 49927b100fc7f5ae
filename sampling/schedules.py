"""Noise levels."""

from __future__ import annotations

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
