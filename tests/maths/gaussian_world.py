"""An exact flow to test against: data from a Gaussian random field (METHOD.md, section 5).

The data's spectrum is P(k), k in cycles per latent. A mode of x_s = (1 - s) x0 + s e then has
variance (1 - s)^2 P + s^2, and the velocity E[e - x0 | x_s] is a filter, known in closed form.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from flow_ttrl.sampling import RewardBatch, shifted_sigmas

BAND_EDGES = (4, 8, 16)
"""The bands of :meth:`GaussianWorld.band_energies`: k < 4, 4..8, 8..16 and 16 up."""


class GaussianWorld:
    """A flow (``flow_ttrl.sampling.Flow``) over latents [B, channels, size, size].

    Args:
        packed: take FLUX's tokens [B, (size / 2)^2, 4 channels] instead: 2x2 patches in a row.
        reward: a name in ``REWARDS``.
        steps: sampling steps, at SD3's shift of 3.
    """

    def __init__(
        self, size=16, channels=4, *, steps=20, reward="linear", packed=False, forwards_per_call=1
    ):
        self.size, self.channels, self.packed = size, channels, packed
        self.sigmas = shifted_sigmas(steps)
        self.forwards_per_call = forwards_per_call
        self.reward = REWARDS[reward]
        frequencies = torch.fft.fftfreq(size, 1 / size)
        self.radius = torch.hypot(frequencies[:, None], frequencies[None])
        spectrum = 1 / (self.radius**2 + 4)
        self.spectrum = spectrum / spectrum.mean()
        seeded = torch.Generator().manual_seed(0)
        self.decoder = torch.randn(3, channels, generator=seeded) / math.sqrt(channels)

    def noise(self, items: int = 1, seed: int = 0) -> Tensor:
        """Starting latents; item k is the same whatever the number of items."""
        grids = [
            torch.randn(
                self.channels,
                self.size,
                self.size,
                generator=torch.Generator().manual_seed(1000 + seed + item),
            )
            for item in range(items)
        ]
        return self.pack(torch.stack(grids))

    def variance(self, sigma: float) -> Tensor:
        """True variance of every mode of x_sigma [size, size], in units of white noise's."""
        return (1 - sigma) ** 2 * self.spectrum + sigma**2

    def slope(self, sigma: float) -> Tensor:
        """Every mode's dv / dx [size, size]: the model is linear."""
        return (sigma - (1 - sigma) * self.spectrum) / self.variance(sigma)

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        return self.filtered(x, self.slope(sigma))

    def filtered(self, x: Tensor, response: Tensor) -> Tensor:
        """Latents with every mode multiplied by ``response`` [size, size], symmetric in k."""
        grid = self.unpack(x)
        half = response[:, : self.size // 2 + 1]
        return self.pack(torch.fft.irfft2(torch.fft.rfft2(grid) * half, s=grid.shape[-2:]))

    def gradients(self) -> AbstractContextManager:
        return torch.enable_grad()

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N, size, size, 3] in 0..1; the frames of 5-D latents are averaged first."""
        grid = self.unpack(x0)
        grid = grid.mean(2) if grid.ndim == 5 else grid
        return 0.5 + 0.5 * torch.tanh(torch.einsum("oc,nchw->nhwo", self.decoder, grid))

    def score(self, images: Tensor) -> RewardBatch:
        total = self.reward(2 * images - 1)
        return RewardBatch(total, {self.reward.__name__: total})

    def pack(self, grid: Tensor) -> Tensor:
        """[B, C, H, W] as tokens [B, H W / 4, 4 C], where this world's latents are packed."""
        if not self.packed:
            return grid
        patches = grid.unfold(2, 2, 2).unfold(3, 2, 2)  # B, C, H / 2, W / 2, 2, 2
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def unpack(self, x: Tensor) -> Tensor:
        if not self.packed:
            return x
        half = self.size // 2
        patches = x.unflatten(1, (half, half)).unflatten(3, (self.channels, 2, 2))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def band_energies(self, x0: Tensor) -> Tensor:
        """Energy of clean latents over the data's own, band by band [B, bands]; 1 is typical."""
        power = torch.fft.fft2(self.unpack(x0), norm="ortho").abs().square() / self.spectrum
        edges = (0, *BAND_EDGES, math.inf)
        bands = zip(edges, edges[1:], strict=False)
        masks = [(self.radius >= low) & (self.radius < high) for low, high in bands]
        return torch.stack([power[..., mask].flatten(1).mean(1) for mask in masks], 1)


def linear(image: Tensor) -> Tensor:
    """Brightness along two vertical waves; ``image`` [N, H, W, 3] in -1..1, as for the others."""
    across = torch.arange(image.shape[2]) / image.shape[2]
    return 20 * (image.mean(-1) * torch.sin(4 * math.pi * across)).mean((1, 2))


def target(image: Tensor) -> Tensor:
    """Minus the distance, in 8x8 blocks, from a red and a green disc on dark blue."""
    down, across = (torch.arange(n) * 64 / n for n in image.shape[1:3])

    def disc(x: float, y: float, square_radius: float) -> Tensor:
        return ((across - x) ** 2 + (down[:, None] - y) ** 2 < square_radius) * 2.0 - 1

    red, green = disc(20, 30, 150), disc(45, 40, 100)
    wanted = 0.8 * torch.stack([red, green, -torch.ones_like(red)])
    coarse = adaptive_avg_pool2d(image.movedim(-1, 1), 8) - adaptive_avg_pool2d(wanted[None], 8)
    return -10 * coarse.square().mean((1, 2, 3))


def counting(image: Tensor) -> Tensor:
    """Three fifths of the pixels red, and green to the left: two soft counts."""
    red = torch.sigmoid(8 * (image[..., 0] - 0.3)).mean((1, 2))
    left, right = torch.sigmoid(8 * (image[..., 1] - 0.3)).chunk(2, dim=2)
    return -20 * (red - 0.6).abs() + 5 * (left.mean((1, 2)) - right.mean((1, 2)))


REWARDS = {"linear": linear, "target": target, "counting": counting}
