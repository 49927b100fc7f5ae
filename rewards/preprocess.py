"""Images [B, H, W, 3] to what the towers take: batched, on the device, differentiable.

The official pipelines resize 8-bit PIL images: across, then down, rounded to 8 bits after each. The
same is done here on tensors, with PIL's own fixed-point kernel, so that the pixels are equal. (From
version 13 on, PIL goes down first where that is less work, which may change a last bit.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
_FIXED_POINT = 1 << 22
Halves = Literal["down", "even"]


def clip_pixels(images: Tensor, size: int = 224) -> Tensor:
    """CLIP's processor: shortest side to ``size`` (bicubic), centre crop, normalise.

    Crops as Hugging Face's processor does: half of an odd margin is rounded down.
    """
    pixels = resize(channels_first(images), shortest(images, size), size, "down")
    return normalise(pixels, CLIP_MEAN, CLIP_STD)


def torchvision_pixels(images: Tensor, size: int = 224) -> Tensor:
    """torchvision's Resize and CenterCrop on a PIL image, as ImageReward and OpenAI's CLIP do.

    The same as :func:`clip_pixels` but for half of an odd margin, which is rounded to even.
    """
    pixels = resize(channels_first(images), shortest(images, size), size, "even")
    return normalise(pixels, CLIP_MEAN, CLIP_STD)


def padded_pixels(images: Tensor, size: int = 224) -> Tensor:
    """HPS v2's transform: longest side to ``size``, black to a square, normalise.

    It resizes float tensors: nothing is rounded or clamped, nor cropped.
    """
    pixels = channels_first(images)
    scale = size / max(pixels.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[-2:])
    if scale != 1:
        pixels = _bicubic(pixels, (height, width))
    left, top = (size - width) // 2, (size - height) // 2
    pixels = functional.pad(pixels, (left, size - width - left, top, size - height - top))
    return normalise(pixels, CLIP_MEAN, CLIP_STD)


def squashed_pixels(images: Tensor, size: int = 384) -> Tensor:
    """SigLIP's processor: both sides to ``size`` (bicubic) whatever the shape, to -1..1."""
    return normalise(resize(channels_first(images), (size, size)), HALF, HALF)


def stretched_pixels(images: Tensor, size: int = 224) -> Tensor:
    """What the paper's code does in place of HPS v2's transform: both sides to ``size``, bicubic
    without antialiasing, on float tensors."""
    pixels = functional.interpolate(channels_first(images), (size, size), mode="bicubic")
    return normalise(pixels, CLIP_MEAN, CLIP_STD)


def bilinear_pixels(images: Tensor, size: int = 224) -> Tensor:
    """What the paper's code does in place of CLIP's processor: bilinear, on float tensors."""
    height, width = shortest(images, size)
    pixels = functional.interpolate(
        channels_first(images), (height, width), mode="bilinear", antialias=True
    )
    top, left = _margin(height, size, "even"), _margin(width, size, "even")
    pixels = pixels[..., top : top + size, left : left + size]
    return normalise(pixels, CLIP_MEAN, CLIP_STD)


def channels_first(images: Tensor) -> Tensor:
    """float32 [B, 3, H, W] in 0..1."""
    return images.float().clamp(0, 1).movedim(-1, 1)


def shortest(images: Tensor, size: int) -> tuple[int, int]:
    """(height, width) with the shortest side ``size`` and the other rounded down."""
    height, width = images.shape[1:3]
    least = min(height, width)
    return int(size * height / least), int(size * width / least)


def resize(
    pixels: Tensor, size: tuple[int, int], crop: int | None = None, halves: Halves = "down"
) -> Tensor:
    """[B, C, H, W] in 0..1 to (height, width): PIL's bicubic on 8-bit images, to the last bit.

    A product with a matrix across, then one down. All sums are of whole numbers over one power of
    two, and exact in double precision, so that no order of summing changes a bit; and what is cut
    off need not be computed. Image by image, since doubles take room. Gradients pass through the
    roundings as if they were not there.

    Args:
        crop: the middle of each side that is wanted; all of it by default.
        halves: which way half of an odd margin is rounded there.
    """
    height, width = size
    down = _matrix(pixels.shape[-2], height, crop, halves, pixels.device)
    across = _matrix(pixels.shape[-1], width, crop, halves, pixels.device)
    return torch.cat([_resized(image, down, across) for image in pixels.split(1)])


def _resized(pixels: Tensor, down: Tensor, across: Tensor) -> Tensor:
    levels = _rounded((pixels * 255).to(across.dtype))
    levels = _rounded(levels @ across.T)
    return (_rounded(down @ levels) / 255).float()


def _rounded(levels: Tensor) -> Tensor:
    """The nearest of 0..255, halves up; in place where no gradient needs ``levels``."""
    if not levels.requires_grad:
        return levels.add_(0.5).floor_().clamp_(0, 255)
    rounded = torch.floor(levels.detach() + 0.5).clamp(0, 255)
    return levels + (rounded - levels.detach())


@cache
def _exact(device: torch.device) -> torch.dtype:
    """Double precision, where the sums are exact, on devices that have it."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64


@lru_cache(maxsize=8)
def _matrix(
    before: int, after: int, crop: int | None, halves: Halves, device: torch.device
) -> Tensor:
    """[crop or after, before]: PIL's bicubic kernel with antialiasing, in its fixed point."""
    scale = before / after
    stretch = max(scale, 1.0)
    start, rows = (0, after) if crop is None else (_margin(after, crop, halves), crop)
    # ordinary tensors, so that a gradient through the images may use them later
    with torch.inference_mode(False):
        to = torch.arange(start, start + rows, dtype=torch.float64)[:, None]
        at = torch.arange(before, dtype=torch.float64)
        if before == after:
            return (to == at).to(device, _exact(device))
        centre = (to + 0.5) * scale
        first = (centre - 2 * stretch + 0.5).trunc().clamp(min=0)
        last = (centre + 2 * stretch + 0.5).trunc().clamp(max=before)
        x = ((at - centre + 0.5) * (1 / stretch)).abs()
        near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        kernel = torch.where(x < 1, near, torch.where(x < 2, far, 0))
        kernel = kernel.where((first <= at) & (at < last), 0)
        kernel = kernel * (1 / kernel.sum(1, keepdim=True)) * _FIXED_POINT
        kernel = (kernel + 0.5 * kernel.sign()).trunc() / _FIXED_POINT
        return kernel.to(device, _exact(device))


def _margin(side: int, crop: int, halves: Halves) -> int:
    """What is cut off ``side`` before its middle."""
    return round((side - crop) / 2) if halves == "even" else (side - crop) // 2


def _bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shape = (3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
