"""How energetic latents are, octave by octave: whether a search left the model's own manifold."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_EDGE = 2.0
"""Upper edge of the lowest band, in cycles along the longer side; the others are octaves."""


def octave_energies(latents: Tensor) -> Tensor:
    """Energy per degree of freedom of latents [B, ..., H, W] in each octave [B, bands].

    Octaves are rings of spatial frequency in cycles per pixel, on oblong latents too.
    """
    height, width = latents.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    cycles = torch.hypot(rows[:, None], columns[None]) * max(height, width)
    band = (cycles / FIRST_EDGE + 1e-9).clamp(min=0.5).log2().floor().long().flatten() + 1
    power = torch.fft.fft2(latents, norm="ortho").abs().square()
    power = power.flatten(1, -3).mean(1).flatten(1)
    sums = power.new_zeros(len(latents), int(band.max()) + 1).index_add_(1, band, power)
    return sums / band.bincount()
