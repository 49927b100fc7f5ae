"""Frequency bands of a latent: what keeps a new latent typical, octave by octave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

FIRST_EDGE = 2.0
"""Upper edge of the lowest band, in cycles along the longer side; the others are octaves."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Bands:
    """The octaves of latents of one shape.

    Latents on a grid (rank 4 and more, [N, ..., H, W]) are taken apart by the spatial frequency of
    their last two dimensions, in cycles per pixel, so that a band is a ring on oblong latents too.
    Packed tokens [N, L, C] carry no grid and make one band. A *spectrum* is what
    :meth:`spectrum` gives; numbers by band are [N, bands].

    Attributes:
        sizes: degrees of freedom of an item in each band [bands].
    """

    sizes: Tensor
    _grid: tuple[int, int] | None
    _index: Tensor
    _weight: Tensor

    @staticmethod
    def of(x: Tensor) -> Bands:
        """The bands of latents shaped like ``x`` [N, ...]."""
        return _bands(tuple(x.shape[1:]), x.device)

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho") if self._grid else x

    def latent(self, spectrum: Tensor) -> Tensor:
        """The latents of a spectrum."""
        return torch.fft.irfft2(spectrum, s=self._grid, norm="ortho") if self._grid else spectrum

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products of two spectra by band [N, bands]; a's own is its energy."""
        product = (a * b.conj()).real if a.is_complex() else a * b
        columns = self._weight.shape[-1]
        by_frequency = product.reshape(len(product), -1, columns).sum(1) * self._weight
        sums = by_frequency.new_zeros(len(product), len(self.sizes))
        return sums.index_add_(1, self._index, by_frequency)

    def scaled(self, spectrum: Tensor, gains: Tensor) -> Tensor:
        """A spectrum times ``gains`` [N, bands]."""
        flat = spectrum.reshape(len(spectrum), -1, self._index.shape[0])
        return (flat * gains[:, None, self._index]).view_as(spectrum)


@lru_cache(maxsize=8)
def _bands(shape: tuple[int, ...], device: torch.device) -> Bands:
    # A run of the host computes in inference mode; what outlives it must not be of that kind.
    with torch.inference_mode(False):
        if len(shape) < 3:
            count = torch.Size(shape).numel()
            one = torch.ones(count, device=device)
            index = torch.zeros(count, dtype=torch.long, device=device)
            return Bands(torch.tensor([float(count)], device=device), None, index, one)
        height, width = shape[-2:]
        rows = torch.fft.fftfreq(height, dtype=torch.float64)
        columns = torch.fft.rfftfreq(width, dtype=torch.float64)
        cycles = torch.hypot(rows[:, None], columns[None]) * max(height, width)
        octave = (cycles / FIRST_EDGE + 1e-9).clamp(min=0.5).log2().floor()
        index = (octave.long() + 1).to(device)
        # rfft2 keeps half the columns: all but the first (and an even width's last) count twice
        weight = torch.full(index.shape, 2.0, device=device)
        weight[:, 0] = 1
        if width % 2 == 0:
            weight[:, -1] = 1
        images = torch.Size(shape).numel() // (height * width)
        sizes = torch.zeros(int(index.max()) + 1, device=device)
        sizes.index_add_(0, index.flatten(), images * weight.flatten())
        return Bands(sizes, (height, width), index.flatten(), weight.flatten())


def typical_noise(noise: Tensor, mean: Tensor) -> Tensor:
    """``noise`` [N, ...] made typical, octave by octave, and at right angles to ``mean`` [N, ...].

    In every band it has exactly the energy that white noise has on average, so that ``mean + std
    noise`` is as energetic as any sample of the step, whatever chose the noise. Bands of zeros
    stay zeros.
    """
    bands = Bands.of(noise)
    spectrum, along = bands.spectrum(noise), bands.spectrum(mean)
    overlap = bands.dot(spectrum, along) / bands.dot(along, along).clamp(min=_TINY)
    across = spectrum - bands.scaled(along, overlap)
    energy = bands.dot(across, across)
    gain = torch.where(energy > 0, (bands.sizes / energy.clamp(min=_TINY)).sqrt(), 0)
    return bands.latent(bands.scaled(across, gain))
