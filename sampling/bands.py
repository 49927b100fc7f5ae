"""Frequency bands of a latent: what keeps a moved latent as typical as it was, scale by scale."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_EDGE = 2.0
"""Upper edge of the lowest band, in cycles per latent; each further band is an octave."""


def octaves(x: Tensor) -> list[Tensor]:
    """``x`` [B, ...] as a sum of band-limited parts, lowest first.

    Latents on a grid (rank 4 and more) are split by spatial frequency of their last two
    dimensions; packed tokens [B, N, C] carry no grid and come back whole.
    """
    if x.ndim < 4:
        return [x]
    size = x.shape[-2:]
    spectrum = torch.fft.rfft2(x)
    return [torch.fft.irfft2(spectrum * mask, s=size) for mask in _masks(*size, x.device)]


def band_sizes(x: Tensor) -> list[int]:
    """Degrees of freedom of an item of ``x`` in each band of :func:`octaves`."""
    if x.ndim < 4:
        return [x[0].numel()]
    height, width = x.shape[-2:]
    images = x[0].numel() // (height * width)
    sizes = []
    for mask in _masks(height, width, x.device):
        # rfft2 keeps half the columns: all but the first (and an even width's last) count twice
        twice = mask[:, 1 : (width + 1) // 2].sum()
        sizes.append(round(images * (mask.sum() + twice).item()))
    return sizes


def _masks(height: int, width: int, device) -> list[Tensor]:
    rows = torch.fft.fftfreq(height, 1 / height, device=device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=device)
    radius = torch.hypot(rows[:, None], columns[None])
    masks, low, high = [], 0.0, FIRST_EDGE
    while low <= radius.max():
        masks.append(((radius >= low) & (radius < high)).float())
        low, high = high, 2 * high
    return masks
