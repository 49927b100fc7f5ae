"""Scoring that may fail: what belongs to one image, and what ends a run."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Reward, finite_images

_DEVICE = re.compile(
    r"[Oo]ut of memory|same device|device-side|\b(?:CUDA|cuda|CUDNN|cuDNN|CUBLAS|cuBLAS|CUFFT|cuFFT"
    r"|CUSOLVER|cuSOLVER|CUSPARSE|cuSPARSE|NCCL|HIP|ROCm|MIOpen|miopen|MPS|XPU|NPU)"
)
"""In the words of torch, onnxruntime and Paddle for what went wrong on a device."""
_TYPES = tuple(
    getattr(torch, name)
    for name in ("OutOfMemoryError", "AcceleratorError")
    if hasattr(torch, name)
)
"""Newer versions of torch have types for it."""


_PROGRAM = (TypeError, AttributeError, NameError, ImportError, NotImplementedError)


def ends_a_run(error: BaseException) -> bool:
    """Whether ``error`` says nothing of an image: a fault of the program, the device or memory.

    After most faults of a device it answers nothing more. One may hide behind another error.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (MemoryError, *_TYPES)) or _DEVICE.search(str(found)):
            return True
        hidden = None if found.__suppress_context__ else found.__context__
        found = found.__cause__ or hidden
    return isinstance(error, _PROGRAM)


def attempt(
    reward: Reward, images: Tensor, prompts: list[str], parts: Sequence[str] = ()
) -> tuple[Tensor, Exception | None]:
    """Scores and ``parts`` [N, 1 + P]; NaN, and the error, where scoring failed.

    Nothing in it polls for a cancel.

    Raises:
        Exception: whatever belongs to no image.
    """
    try:
        scores, told = reward.measure(images, prompts)
    except Exception as error:
        if ends_a_run(error):
            raise
        missing = torch.full((len(images), 1 + len(parts)), torch.nan, device=images.device)
        return missing, error
    if scores.shape != (len(images),):
        raise ValueError(
            f"expected {len(images)} scores from {reward.name!r}, got {list(scores.shape)}; "
            "a reward gives one number per image"
        )
    absent = torch.full_like(scores, torch.nan)
    return torch.stack([scores, *(told.get(part, absent) for part in parts)], 1), None


def attempt_each(
    reward: Reward, images: Tensor, prompts: list[str], parts: Sequence[str] = ()
) -> tuple[Tensor, Exception | None]:
    """The same, image by image where they fail together; the first error of those that failed."""
    table, error = attempt(reward, images, prompts, parts)
    if error is None or len(images) == 1:
        return table, error
    tried = [
        attempt(reward, image, [prompt], parts)
        for image, prompt in zip(images.split(1), prompts, strict=True)
    ]
    errors = [error for _, error in tried if error]
    return torch.cat([row for row, _ in tried]), errors[0] if errors else None


def not_finite(reward: Reward, images: Tensor, values: Tensor) -> ValueError:
    """The error of the first score of ``values`` [N] that is not finite."""
    lost = ~values.isfinite()
    if not finite_images(images[lost][:1]):
        return ValueError(
            "expected images of finite numbers, got one with NaN or infinity in it; decode in a "
            "higher precision, which a VAE in float16 often needs"
        )
    told = f"expected finite scores from {reward.name!r}, got {values[lost][0].item()}"
    return ValueError(f"{told}; {reward.not_finite}")
