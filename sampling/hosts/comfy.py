"""Flow models as ComfyUI loads them: MODEL, conditioning and VAE as the search's flow.

The search runs as a ``KSAMPLER`` function (``comfy_sampler.py``), so that every node that a user
has wired to the MODEL or its conditioning (LoRA, masks, skip-layer guidance, area conditioning)
takes part as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional

from ..flow import Judge, Values
from .comfy_checks import check_answer
from .comfy_gradients import differentiable, gradient_options
from .comfy_memory import (
    Rationing,
    advising,
    decoded,
    decoded_in_tiles,
    for_vae,
    images_at_once,
)
from .comfy_patches import Keyframes

SHEET = 384
"""Pixels along the longer side of what is kept of a judged image, to be looked at."""

NO_IMAGE_GRADIENTS = (
    "Expected a strategy that needs no gradient of the image, got one that does, which ComfyUI "
    "does not offer yet; choose another strategy"
)


@dataclass(frozen=True)
class Candidates:
    """Images that were judged, on the CPU and small [N, H, W, 3], their items [N] and rewards."""

    images: Tensor
    items: Tensor
    values: Values


class ComfyFlow:
    """One sampling run of the host as a flow.

    Args:
        model: what a KSAMPLER function is given (``KSamplerX0Inpaint``): denoised = model(x, sigma,
            **extra_args), with the batch's raw noise and latent image [B, ...] beside it.
        sigmas: noise levels [T + 1], a tensor on the sampling device.
        vae: a ``comfy.sd.VAE``, loaded beside the model.
        judge: what images are scored by.

    Attributes:
        one_at_a_time: candidates go through the model one by one, for a patch's sake.
        keyframes: hooks that follow the level, where there are any.
        rationing: what ran out of memory on the way.
        on_call: told of the rows of every call of the host.
    """

    def __init__(self, model, sigmas: Tensor, extra_args: dict, vae, judge: Judge):
        self.model, self.sigmas, self.extra_args = model, sigmas, extra_args
        self.vae, self.judge = vae, judge
        self.items = len(model.noise)
        self.base_model = model.inner_model.inner_model
        self.forwards_per_call = _forwards(model.inner_model)
        self.keyframes: Keyframes | None = None
        self.one_at_a_time = False
        self.rationing = Rationing()
        self.on_call: Callable[[int], None] = lambda rows: None
        self._answered = False
        self._shown: list[Candidates] = []

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        return self.at_level(noise, item, self.sigmas[0])

    def at_level(self, noise: Tensor, item: Tensor, sigma: Tensor) -> Tensor:
        """Latents [N, ...] at level ``sigma``: the host's latent images under ``noise``."""
        # of the host's own noise the very bits that its sampler starts from
        noise = noise.to(self.model.noise.dtype)
        latent = self.model.latent_image[item]
        return self.base_model.model_sampling.noise_scaling(sigma, noise, latent)

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        if self.items > 1:
            # The host takes row k of a batch for item k: its conditioning, masks and noise.
            turn = occurrence(item, self.items)
            batches = x.new_zeros(int(turn.max()) + 1, self.items, *x.shape[1:])
            batches[turn, item] = x
            return torch.stack([self.ask_whole(batch, sigma) for batch in batches])[turn, item]
        if self.one_at_a_time:
            return torch.cat([self.ask_whole(row, sigma) for row in x.split(1)])
        return self.rationing.run("model", lambda rows, _: self.ask(rows, sigma), x, item)

    def ask_whole(self, x: Tensor, sigma: float) -> Tensor:
        """:meth:`ask` of rows that cannot be parted; short of memory, it says what to do."""
        return advising(lambda: self.ask(x, sigma), "model")

    def ask(self, x: Tensor, sigma: float) -> Tensor:
        """Velocities of rows [N, ...] in one call of the host, as it would batch them."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        extra_args = dict(self.extra_args)
        if x.requires_grad:
            extra_args["model_options"] = gradient_options(extra_args["model_options"])
        if self.keyframes:
            self.keyframes.set(sigma)
        level = torch.full((1,) * x.ndim, sigma, device=x.device)
        denoised = self.model(x, level.flatten().expand(len(x)), **extra_args)
        velocity = (x - denoised) / level
        self.on_call(len(x))
        if not self._answered:
            check_answer(self.base_model.current_patcher, velocity)
            self._answered = True
        return velocity

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        """See :meth:`Flow.decode`. Of a latent with frames the first frame counts.

        Unlike ``vae.decode`` this moves no models, which would offload the one that is sampling; it
        takes as many images at once as memory holds, and tiles where it holds none.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        vae = self.vae
        latents = for_vae(vae, self.base_model.process_latent_out(x0).to(vae.device))
        at_once = images_at_once(vae, latents.shape)

        def images(rows: Tensor, item: Tensor) -> Tensor:
            found = self.rationing.run(
                "decode",
                lambda part, _: decoded(vae, part),
                rows,
                item,
                last=lambda part: decoded_in_tiles(vae, part),
            )
            found = found[:, 0] if found.ndim == 5 else found
            return found[..., :3].clamp(0, 1).to(x0.device)

        parts = zip(latents.split(at_once), item.split(at_once), strict=True)
        return torch.cat([images(*part) for part in parts])

    def score(self, images: Tensor, item: Tensor) -> Values:
        names: list[str] = []

        def table(rows: Tensor, item: Tensor) -> Tensor:
            values = self.judge.score(rows, item)
            names[:] = values
            return torch.stack([value.float() for value in values.values()], 1)

        columns = self.rationing.run("reward", table, images, item).unbind(1)
        values = dict(zip(names, columns, strict=True))
        on_cpu = {name: value.cpu() for name, value in values.items()}
        self._shown.append(Candidates(_small(images), item.cpu(), on_cpu))
        return values

    def take_shown(self) -> Candidates | None:
        """What has been judged since it was asked for last; None where nothing was compared."""
        shown, self._shown = self._shown, []
        if sum(len(part.images) for part in shown) <= self.items:
            return None
        names = shown[0].values
        return Candidates(
            torch.cat([part.images for part in shown]),
            torch.cat([part.items for part in shown]),
            {name: torch.cat([part.values[name] for part in shown]) for name in names},
        )

    def totals(self, values: Values, seen: Values) -> Tensor:
        return self.judge.totals(values, seen)

    @contextmanager
    def gradients(self) -> Iterator[None]:
        # only what the caller turns gradients on for gets a graph: not decodes, not rewards
        with differentiable(self.base_model), torch.no_grad():
            yield

    def image_gradients(self) -> AbstractContextManager:
        raise ValueError(NO_IMAGE_GRADIENTS)


def _forwards(guider) -> int:
    """Forwards of the network that a call takes: one for each prompt that the guider weighs.

    At cfg 1 the host leaves the negative one out, where there are no more than two.
    """
    asked = {name for name, conds in guider.conds.items() if conds}
    alone = asked <= {"positive", "negative"} and getattr(guider, "cfg", 1.0) == 1.0
    return 1 if alone else len(asked)


def _small(images: Tensor) -> Tensor:
    """Images [N, H, W, 3] of at most ``SHEET`` pixels a side, on the CPU."""
    share = SHEET / max(images.shape[1:3])
    if share < 1:
        channels = images.movedim(-1, 1)
        images = functional.interpolate(channels, scale_factor=share, mode="area").movedim(1, -1)
    return images.cpu()


def occurrence(item: Tensor, items: int) -> Tensor:
    """How many rows before it each row of ``item`` [N] shares its item with, [N]."""
    counted = torch.nn.functional.one_hot(item, items).cumsum(0)
    return counted.gather(1, item[:, None])[:, 0] - 1
