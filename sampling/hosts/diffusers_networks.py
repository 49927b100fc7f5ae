"""Velocities of SD3's and FLUX's transformers, and FLUX's layout of latents."""

from __future__ import annotations

import torch
from torch import Tensor


def sd3_velocity(
    transformer, x: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor, **options
) -> Tensor:
    """Velocity [B, C, H, W] of an ``SD3Transformer2DModel`` at latents ``x`` and levels ``sigma``.

    Args:
        x: latents [B, C, H, W] in the model's scaled space.
        sigma: noise levels [B] in 0..1, float32.
        embeds, pooled: prompt features [B, L, F] and [B, P].
        options: of the transformer besides, such as ``skip_layers``.
    """
    return transformer(
        hidden_states=x,
        timestep=sigma * 1000,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        return_dict=False,
        **options,
    )[0]


def flux_velocity(
    transformer,
    x: Tensor,
    sigma: Tensor,
    embeds: Tensor,
    pooled: Tensor,
    guidance: float,
    places: Tensor,
    **options,
) -> Tensor:
    """Velocity [B, N, 4C] of a ``FluxTransformer2DModel`` at packed latents ``x`` [B, N, 4C].

    Args:
        guidance: distilled guidance scale (FLUX.1-dev: 3.5); models without the embedding
            ignore it.
        places: row and column of every patch, [N, 3]; see :func:`patch_places`.

    Others as in :func:`sd3_velocity`.
    """
    guided = transformer.config.guidance_embeds
    return transformer(
        hidden_states=x,
        timestep=(sigma * 1000).to(x.dtype) / 1000,
        guidance=sigma.new_full((1,), guidance).expand(len(x)) if guided else None,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        txt_ids=places.new_zeros(embeds.shape[1], 3),
        img_ids=places,
        return_dict=False,
        **options,
    )[0]


def patch_places(rows: int, columns: int) -> Tensor:
    """Ids [rows * columns, 3] of FLUX's patches: 0, row, column."""
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)


def packed(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as FLUX has them: patches of 2 x 2, [B, H/2 * W/2, 4C]."""
    b, c, h, w = x.shape
    patches = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, h * w // 4, 4 * c)


def unpacked(x: Tensor, rows: int, columns: int) -> Tensor:
    """Latents [B, C, 2 rows, 2 columns] of FLUX's packed ones [B, rows * columns, 4C]."""
    b, _, c = x.shape
    patches = x.reshape(b, rows, columns, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, 2 * rows, 2 * columns)
