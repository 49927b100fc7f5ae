"""Flow models as diffusers loads them: velocities of SD3 and FLUX transformers on 4-D latents."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ..flow import Judge, Values

PIXELS_AT_ONCE = 2**17
"""Images are decoded in groups of about this many pixels, one by one where one has more: larger
groups take memory and no less time."""


def sd3_velocity(transformer, x: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
    """Velocity [B, C, H, W] of an ``SD3Transformer2DModel`` at latents ``x`` and levels ``sigma``.

    Args:
        x: latents [B, C, H, W] in the model's scaled space.
        sigma: noise levels [B] in 0..1.
        embeds, pooled: prompt features [B, L, F] and [B, P].
    """
    return transformer(
        hidden_states=x,
        timestep=sigma * 1000,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


def flux_velocity(
    transformer, x: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor, guidance: float
) -> Tensor:
    """Velocity [B, C, H, W] of a ``FluxTransformer2DModel``; latents are packed inside.

    ``guidance`` is the distilled guidance scale (FLUX.1-dev: 3.5); models without the embedding
    ignore it. Other arguments as in :func:`sd3_velocity`; H and W even.
    """
    b, c, h, w = x.shape
    packed = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    rows = torch.arange(h // 2, device=x.device, dtype=torch.float32)
    columns = torch.arange(w // 2, device=x.device, dtype=torch.float32)
    grid = torch.cartesian_prod(rows, columns)
    guided = transformer.config.guidance_embeds
    v = transformer(
        hidden_states=packed.reshape(b, h * w // 4, 4 * c),
        timestep=sigma,
        guidance=torch.full_like(sigma, guidance) if guided else None,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        txt_ids=grid.new_zeros(embeds.shape[1], 3),
        img_ids=torch.cat([torch.zeros_like(grid[:, :1]), grid], 1),
        return_dict=False,
    )[0]
    v = v.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return v.reshape(b, c, h, w)


@dataclass(frozen=True)
class Prompt:
    """Encoded prompts: features [B, L, F] and pooled [B, P], as the pipelines encode them."""

    embeds: Tensor
    pooled: Tensor

    def of(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """Features and pooled vectors of rows of ``item`` [N]; a single prompt is every item's."""
        index = item if len(self.embeds) > 1 else torch.zeros_like(item)
        return self.embeds[index], self.pooled[index]


class DiffusersFlow:
    """A SD3 or FLUX transformer and VAE of diffusers, as the search's flow.

    Args:
        transformer: ``SD3Transformer2DModel`` or ``FluxTransformer2DModel``.
        vae: ``AutoencoderKL``.
        prompt: the encoded prompts, one per batch item.
        negative: for SD3's classifier-free guidance; None samples without.
        guidance: SD3's CFG scale, FLUX's distilled guidance scale.
        sigmas: noise levels [T + 1].
        judge: what images are scored by.
    """

    def __init__(
        self,
        transformer,
        vae,
        prompt: Prompt,
        negative: Prompt | None,
        *,
        guidance: float,
        sigmas: Tensor,
        judge: Judge,
    ):
        self.transformer, self.vae = transformer, vae
        self.prompt, self.negative, self.guidance = prompt, negative, guidance
        self.sigmas, self.judge = sigmas, judge
        self.flux = isinstance(transformer, FluxTransformer2DModel)
        self.guided = negative is not None and not self.flux and guidance != 1
        self.forwards_per_call = 2 if self.guided else 1

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        return noise

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        x = x.to(self.transformer.dtype)
        level = torch.full((len(x),), sigma, device=x.device)
        with torch.set_grad_enabled(x.requires_grad):
            embeds, pooled = self.prompt.of(item)
            if self.flux:
                return flux_velocity(self.transformer, x, level, embeds, pooled, self.guidance)
            if not self.guided:
                return sd3_velocity(self.transformer, x, level, embeds, pooled)
            features, summary = self.negative.of(item)
            both = sd3_velocity(
                self.transformer,
                torch.cat([x, x]),
                torch.cat([level, level]),
                torch.cat([embeds, features]),
                torch.cat([pooled, summary]),
            )
            positive, negative = both.float().chunk(2)
            return negative + self.guidance * (positive - negative)

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        config = self.vae.config
        raw = x0 / config.scaling_factor + (config.shift_factor or 0)
        pixels = 64 * raw[0, 0].numel()
        parts = raw.to(self.vae.dtype).split(max(1, PIXELS_AT_ONCE // pixels))
        with torch.set_grad_enabled(x0.requires_grad):
            images = torch.cat([self.vae.decode(part).sample for part in parts])
        images = images.float().movedim(1, -1) / 2 + 0.5
        return images if images.requires_grad else images.clamp(0, 1)

    def score(self, images: Tensor, item: Tensor) -> Values:
        return self.judge.score(images, item)

    def totals(self, values: Values, seen: Values) -> Tensor:
        return self.judge.totals(values, seen)

    def gradients(self) -> AbstractContextManager:
        return torch.enable_grad()

    def image_gradients(self) -> AbstractContextManager:
        self.judge.check_differentiable()
        return torch.enable_grad()
