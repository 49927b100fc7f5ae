"""What a reward is, and what a mix of them gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .networks import Network


class Reward(ABC):
    """A judge: images and prompts to one number per image, higher is better.

    Attributes:
        name: the key in reports and mixes.
        units: what the number is.
        typical: the range that ordinary images fall in.
        needs_prompt: whether the prompt matters.
        differentiable: whether autograd may run through ``score`` to the images.
        needs_reference: whether it compares with an image that it was loaded with.
        token_limit: tokens of a prompt that it reads; None where it reads all, or none at all.
        networks: what has to be on the device while images are scored.
        text_networks: what has to be there only while prompts are prepared.
        not_finite: what is said where a score is not.
        notes: what has to be said beside its scores, such as that a file is not the official one.
    """

    name: str
    units: str
    typical: tuple[float, float]
    needs_prompt: bool = False
    differentiable: bool = False
    needs_reference: bool = False
    token_limit: int | None = None
    networks: tuple[Network, ...] = ()
    text_networks: tuple[Network, ...] = ()
    not_finite: str = "where it is so for every image, its file is damaged or its precision too low"
    notes: tuple[str, ...] = ()

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of ``images`` [B, H, W, 3] (0..1) against ``prompts``, one each.

        NaN where an image cannot be judged: always where a pixel of it is not finite. The others
        get what they would get without it.

        Raises:
            ValueError: no images, or ones of another shape or type.
        """
        return self.measure(images, prompts)[0]

    def measure(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores [B] as by :meth:`score`, and what they are made of by name, each [B].

        A part that an image's prompt does not ask for is NaN there, or left out.
        """
        check_images(images)
        whole = finite_images(images)
        if whole.all():
            scores, parts = self._measure(images, prompts)
            return scores.float(), parts
        missing = torch.full((len(images),), torch.nan, device=images.device)
        if not whole.any():
            return missing, {}
        kept = [prompt for prompt, ok in zip(prompts, whole.tolist(), strict=True) if ok]
        scores, parts = self._measure(images[whole], kept)
        at = whole.nonzero()[:, 0]

        def placed(given: Tensor) -> Tensor:
            return missing.index_copy(0, at, given.float())

        return placed(scores), {name: placed(part) for name, part in parts.items()}

    def _measure(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for images that are finite, and at least one."""
        return self._score(images, prompts), {}

    @abstractmethod
    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The scores alone of such images."""

    def check(self, prompts: list[str]) -> None:  # noqa: B027 - most rewards take any prompt
        """Raise ValueError for a prompt that this reward cannot judge. Runs no model."""

    def prepare(self, prompts: list[str]) -> None:  # noqa: B027 - most rewards have nothing to do
        """Do once what depends on the prompts alone, such as encoding them."""

    def parts(self, prompts: list[str]) -> list[str]:
        """Names of what :meth:`measure` tells of a score for ``prompts``, in reports' order."""
        return []

    def describe(self, prompts: list[str]) -> dict:
        """What a report is to tell of how ``prompts`` are judged, as a JSON object."""
        return {}


@dataclass(frozen=True)
class Scores:
    """Rewards of N images: the mixed total, and each reward by name, all [N].

    ``values`` is not finite where a reward could not judge an image.
    """

    total: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def ranking(self) -> list[int]:
        """The images' numbers, best first; one that nothing could judge comes last."""
        return self.total.nan_to_num(-torch.inf).argsort(descending=True).tolist()


def headings(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """What stands above the columns of a table, by name, and the lines that explain it.

    A name of several words, such as a question, is a number there.
    """
    found, told = {}, []
    for name in names:
        found[name] = f"({len(told) + 1})" if " " in name else name
        if " " in name:
            told.append(f"{found[name]} {name}")
    return found, told


def eight_bits(images: Tensor) -> np.ndarray:
    """``images`` [B, H, W, 3] as displayed: 8-bit arrays on the CPU."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def check_prompts(prompts: list[str]) -> None:
    """Raise ValueError for a prompt that is no text: one with half a letter (a lone surrogate)."""
    for prompt in prompts:
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected a prompt of whole letters, got {prompt[error.start]!a} at place "
                f"{error.start} of it, which is none; type that letter anew, in UTF-8"
            ) from None


def finite_images(images: Tensor) -> Tensor:
    """Which [B] of ``images`` [B, H, W, 3] have no NaN and no infinity in them.

    Their extremes tell, in a tenth of the time that a mask of every pixel takes.
    """
    pixels = images.detach()
    return pixels.amin((1, 2, 3)).isfinite() & pixels.amax((1, 2, 3)).isfinite()


def check_images(images: Tensor) -> None:
    """Raise ValueError unless ``images`` are [B, H, W, 3] with B from 1."""
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[-1] != 3:
        got = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"expected images [B, H, W, 3] in 0..1, got {got}; wire a decoded IMAGE")
    if not images.numel() or not images.is_floating_point():
        got = f"{tuple(images.shape)} of {images.dtype}"
        raise ValueError(f"expected at least one image of floats in 0..1, got {got}")
