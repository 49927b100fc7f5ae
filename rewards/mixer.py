"""Several rewards as one: the paper's score_dict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Reward, Scores, check_images


@dataclass(frozen=True)
class RewardMix:
    """A weighted sum of rewards, each kept by name beside the total.

    Attributes:
        parts: (reward, weight); a reward with weight 0 is measured but does not drive.
    """

    parts: tuple[tuple[Reward, float], ...]

    def __post_init__(self):
        names = [reward.name for reward, _ in self.parts]
        if not any(weight for _, weight in self.parts):
            raise ValueError(
                f"expected at least one reward with a weight other than 0, got {names or 'none'}; "
                "set a weight"
            )
        for reward, weight in self.parts:
            if not math.isfinite(weight):
                raise ValueError(f"expected a finite weight for {reward.name!r}, got {weight}")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(
                f"expected each reward once, got {', '.join(sorted(twice))} more than once; "
                "give one of them the sum of the weights"
            )

    @property
    def names(self) -> list[str]:
        return [reward.name for reward, _ in self.parts]

    def check(self, prompts: list[str]) -> None:
        """Raise ValueError for a prompt that a reward of the mix cannot judge."""
        for reward, _ in self.parts:
            reward.check(prompts)

    def score(self, images: Tensor, prompts: list[str]) -> Scores:
        """Scores of ``images`` [B, H, W, 3] in 0..1.

        Args:
            prompts: one per image, or fewer that are used again and again (image b gets prompt
                b modulo their number).
        """
        check_images(images)
        asked = [prompts[b % len(prompts)] for b in range(len(images))]
        values = {reward.name: reward.score(images, asked).float() for reward, _ in self.parts}
        weighted = [weight * values[reward.name] for reward, weight in self.parts if weight]
        return Scores(torch.stack(weighted).sum(0), values)
