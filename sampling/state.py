"""Where a run stands: populations [P, B, ...] of latents, and what was seen of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .flow import Values


@dataclass(frozen=True)
class State:
    """Where a strategy stands after a step.

    Attributes:
        x: its population [P, B, ...] at level ``index``; any P.
        v: the velocity there [P, B, ...], where it is known.
        values: rewards [P, B] of ``x``, where it is clean and was judged.
        denoised: the clean estimate [P, B, ...] of the ordinary step that led here.
        part: whether what led here is a part of something that is told as one; more is to come.
        detail: what the strategy tells of the step, in plain numbers, for the report.
    """

    x: Tensor
    index: int
    v: Tensor | None = None
    values: Values | None = None
    denoised: Tensor | None = None
    part: bool = False
    detail: dict = field(default_factory=dict)

    def of(self, pick: Tensor) -> State:
        """The same of the candidates ``pick`` [K, B]."""
        values = self.values and pick_values(self.values, pick)
        v, denoised = (None if t is None else take(t, pick) for t in (self.v, self.denoised))
        return State(take(self.x, pick), self.index, v, values, denoised)


def joined(first: State | None, second: State) -> State:
    """Both populations as one, where there is a first; they know the same of themselves."""
    if first is None:
        return second

    def both(name: str) -> Tensor | None:
        known = getattr(first, name), getattr(second, name)
        return None if known[0] is None else torch.cat(known)

    values = second.values and cat_values(first.values, second.values)
    return State(both("x"), second.index, both("v"), values, both("denoised"))


@dataclass(frozen=True)
class Judged:
    """Rewards [P, B] of one batch of look-aheads, and which items [B] were asked for."""

    values: Values
    active: Tensor


@dataclass(frozen=True)
class Look:
    """What look-aheads came to: clean latents [P, B, ...] and their rewards [P, B].

    Attributes:
        v: the velocity [P, B, ...] that they began with.
        path: the latents on the way and their velocities, both [P, B, ...], by level, where it
            was asked for.
    """

    clean: Tensor
    values: Values
    v: Tensor | None
    path: dict[int, tuple[Tensor, Tensor]]


@dataclass
class Best:
    """The best look-ahead so far of each item.

    Attributes:
        x, index: the latent [B, ...] that was looked ahead from, and its level [B].
        clean: the clean estimate that was judged [B, ...].
        values: its rewards [1, B].
    """

    x: Tensor
    index: Tensor
    clean: Tensor
    values: Values


def cat_values(first: Values, second: Values) -> Values:
    """The rewards [P + Q, B] of two populations, the first of which may have none."""
    return {n: torch.cat([first[n], v]) if first else v for n, v in second.items()}


def pick_values(values: Values, pick: Tensor) -> Values:
    """The rewards [K, B] of the candidates ``pick`` [K, B]."""
    return {name: take(value, pick) for name, value in values.items()}


def take(x: Tensor, pick: Tensor) -> Tensor:
    """The candidates ``pick`` [K, B] of a population ``x`` [P, B, ...]: [K, B, ...]."""
    if len(x) == len(pick) == 1:
        return x
    return x[pick, torch.arange(x.shape[1], device=x.device)]


def width(latents: Tensor) -> Tensor:
    """Root mean square [B] of latents [B, ...]."""
    return latents.flatten(1).square().mean(1).sqrt()


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """``values`` [..., B] shaped to broadcast over ``like`` [B, ...]."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - 1))
