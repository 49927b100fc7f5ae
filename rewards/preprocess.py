"""Images [B, H, W, 3] to what the towers take: batched, on the device, differentiable.

The official pipelines resize 8-bit PIL images: first across, then down, rounding and clamping to
8 bits after each. Done in the same order on tensors, the pixels are the same up to a rare last bit.
Gradients pass the rounding straight through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def clip_pixels(images: Tensor, size: int = 224) -> Tensor:
    """CLIP's processor: shortest side to ``size`` (bicubic), centre crop, normalise.

    Crops as Hugging Face's processor does: half of an odd margin is rounded down.
    """
    resized = resize(channels_first(images), shortest(images, size))
    return normalise(centre_crop(resized, size, rounded=False), CLIP_MEAN, CLIP_STD)


def torchvision_pixels(images: Tensor, size: int = 224) -> Tensor:
    """torchvision's Resize and CenterCrop on a PIL image, as ImageReward and OpenAI's CLIP do.

    The same as :func:`clip_pixels` but for half of an odd margin, which is rounded to even.
    """
    resized = resize(channels_first(images), shortest(images, size))
    return normalise(centre_crop(resized, size, rounded=True), CLIP_MEAN, CLIP_STD)


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
    return normalise(centre_crop(pixels, size, rounded=True), CLIP_MEAN, CLIP_STD)


def channels_first(images: Tensor) -> Tensor:
    """float32 [B, 3, H, W] in 0..1."""
    return images.float().clamp(0, 1).movedim(-1, 1)


def shortest(images: Tensor, size: int) -> tuple[int, int]:
    """(height, width) with the shortest side ``size`` and the other rounded down."""
    height, width = images.shape[1:3]
    least = min(height, width)
    return int(size * height / least), int(size * width / least)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, as PIL does it on 8-bit images."""
    height, width = size
    if pixels.shape[-1] != width:
        pixels = _eight_bits(_bicubic(pixels, (pixels.shape[-2], width)))
    if pixels.shape[-2] != height:
        pixels = _eight_bits(_bicubic(pixels, (height, width)))
    return pixels


def _bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)


def _eight_bits(pixels: Tensor) -> Tensor:
    pixels = pixels.clamp(0, 1)
    rounded = torch.floor(pixels.detach() * 255 + 0.5) / 255
    return pixels + (rounded - pixels.detach()) if pixels.requires_grad else rounded


def centre_crop(pixels: Tensor, size: int, *, rounded: bool) -> Tensor:
    """The middle [B, C, size, size]; half of an odd margin rounded to even, or else down."""
    top, left = (
        round((side - size) / 2) if rounded else (side - size) // 2 for side in pixels.shape[-2:]
    )
    return pixels[..., top : top + size, left : left + size]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shape = (3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
