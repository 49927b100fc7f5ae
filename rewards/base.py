"""What a reward is, and what a mix of them gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Reward(Protocol):
    """A judge: images and prompts to one number per image, higher is better.

    Attributes:
        name: the key in reports and mixes.
        units: what the number is.
        typical: the range that ordinary images fall in.
        needs_prompt: whether the prompt matters.
    """

    name: str
    units: str
    typical: tuple[float, float]
    needs_prompt: bool

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of ``images`` [B, H, W, 3] (0..1) against ``prompts``, one each."""
        ...

    def check(self, prompts: list[str]) -> None:
        """Raise ValueError for a prompt that this reward cannot judge."""
        ...


@dataclass(frozen=True)
class Scores:
    """Rewards of N images: the weighted total, and each reward by name, all [N]."""

    total: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)


def check_images(images: Tensor) -> None:
    """Raise ValueError unless ``images`` are [B, H, W, 3]."""
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[-1] != 3:
        got = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"expected images [B, H, W, 3] in 0..1, got {got}; wire a decoded IMAGE")
