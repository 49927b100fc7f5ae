"""Rewards that need no weights: brightness, contrast and how small an image packs as JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .base import Reward, eight_bits

_LUMA = (0.299, 0.587, 0.114)
JPEG_QUALITY = 95
KILOBYTES_PER_UNIT = 500
"""The paper's code scores -KB / 500 (DDPO's compressibility task, arXiv 2305.13301)."""


def white(images: Tensor) -> Tensor:
    """Mean brightness [B]."""
    return images.clamp(0, 1).mean((1, 2, 3))


def black(images: Tensor) -> Tensor:
    """Mean darkness [B]."""
    return 1 - white(images)


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the luma (Rec. 601) over the image [B]."""
    luma = (images.clamp(0, 1) * images.new_tensor(_LUMA)).sum(-1)
    return luma.flatten(1).std(1, correction=0)


def jpeg_incompressibility(images: Tensor) -> Tensor:
    """Size [B] as JPEG at quality 95, in units of 500 kB."""
    sizes = []
    for array in eight_bits(images):
        packed = io.BytesIO()
        Image.fromarray(array).save(packed, format="JPEG", quality=JPEG_QUALITY)
        sizes.append(packed.tell() / 1000 / KILOBYTES_PER_UNIT)
    return torch.tensor(sizes, device=images.device)


def jpeg_compressibility(images: Tensor) -> Tensor:
    """Minus the size [B] as JPEG at quality 95, in units of 500 kB."""
    return -jpeg_incompressibility(images)


@dataclass(frozen=True)
class AnalyticReward(Reward):
    """A function of the image alone."""

    name: str
    units: str
    typical: tuple[float, float]
    function: Callable[[Tensor], Tensor]
    differentiable: bool = False

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.function(images)


ANALYTIC = {
    reward.name: reward
    for reward in (
        AnalyticReward("white", "mean brightness, 0..1", (0.2, 0.8), white, True),
        AnalyticReward("black", "mean darkness, 0..1", (0.2, 0.8), black, True),
        AnalyticReward(
            "contrast", "standard deviation of luma, 0..0.5", (0.1, 0.35), contrast, True
        ),
        AnalyticReward(
            "jpeg_compressibility", "-size as JPEG / 500 kB", (-1.5, -0.1), jpeg_compressibility
        ),
        AnalyticReward(
            "jpeg_incompressibility", "size as JPEG / 500 kB", (0.1, 1.5), jpeg_incompressibility
        ),
    )
}
