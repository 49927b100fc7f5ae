"""What several strategies do alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..flow import Values
from ..run import Run
from ..state import take

MOST = 256
"""Candidates at once that no budget goes beyond."""


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number in 0..``most`` that fits, where every smaller one does too."""
    return next((n for n in range(most, 0, -1) if fits(n)), 0)


def share_of(share: float, steps: int) -> int:
    """A share of the steps, at least one."""
    return max(1, round(share * steps))


def cat_values(first: Values, second: Values) -> Values:
    """The rewards [P + Q, B] of two populations."""
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


def pick_values(values: Values, pick) -> Values:
    """The rewards [K, B] of the candidates ``pick`` [K, B]."""
    return {name: take(value, pick) for name, value in values.items()}


def top(run: Run, values: Values, count: int):
    """The ``count`` best candidates of each item [count, B], best first."""
    return run.totals(values).topk(count, dim=0).indices
