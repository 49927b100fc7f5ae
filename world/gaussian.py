"""An exact flow to test against: data from a Gaussian random field.

The data's spectrum is P(k), k in cycles per pixel, so that it is the same field at any size. A mode
of x_s = (1 - s) x0 + s e then has variance (1 - s)^2 P + s^2, and the velocity E[e - x0 | x_s] is a
filter, known in closed form.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..sampling import Values, shifted_sigmas

BAND_EDGES = (1 / 16, 1 / 8, 1 / 4)
"""Between the bands of :meth:`GaussianWorld.band_energies`, in cycles per pixel."""


class GaussianWorld:
    """A flow (``flow_ttrl.sampling.Flow``) over latents [B, channels, height, width].

    Args:
        width: the height's, unless given.
        steps: sampling steps, at SD3's shift of 3.
        sigmas: another schedule.
        image: a clean latent [1, ...] that sampling starts from, noised to the first level.
        reward: a name in ``REWARDS``.
        packed: take FLUX's tokens [B, height width / 4, 4 channels] instead: 2x2 patches in a row.
        prompts: that many items are told apart, each with a mean image and a judge of its own; 0:
            all items are alike.
    """

    def __init__(
        self,
        height=16,
        width=None,
        channels=4,
        *,
        steps=20,
        sigmas=None,
        image=None,
        reward="linear",
        packed=False,
        prompts=0,
        forwards_per_call=1,
    ):
        self.height, self.width, self.channels = height, width or height, channels
        self.packed, self.image = packed, image
        self.sigmas = shifted_sigmas(steps) if sigmas is None else torch.tensor(sigmas)
        self.forwards_per_call = forwards_per_call
        self.reward = REWARDS[reward]
        rows, columns = torch.fft.fftfreq(self.height), torch.fft.fftfreq(self.width)
        self.radius = torch.hypot(rows[:, None], columns[None])
        spectrum = 1 / (self.radius**2 + 1 / 16**2)
        self.spectrum = spectrum / spectrum.mean()
        seeded = torch.Generator().manual_seed(0)
        self.decoder = torch.randn(3, channels, generator=seeded) / math.sqrt(channels)
        self.asked = list(range(prompts))
        means = torch.randn(prompts, 1, channels, self.height, self.width, generator=seeded)
        self.means = [self.pack(self._filtered(mean, self.spectrum.sqrt())) for mean in means]

    def only(self, item: int) -> GaussianWorld:
        """The same world for one item of a batch alone."""
        world = copy.copy(self)
        world.means, world.asked = [self.means[item]], [self.asked[item]]
        return world

    def noise(self, items: int = 1, seed: int = 0) -> Tensor:
        """Starting noise; item k is the same whatever the number of items."""
        grids = [
            torch.randn(
                self.channels,
                self.height,
                self.width,
                generator=torch.Generator().manual_seed(1000 + seed + item),
            )
            for item in range(items)
        ]
        return self.pack(torch.stack(grids))

    def data(self, items: int = 1, seed: int = 0) -> Tensor:
        """Clean latents of the world's own distribution."""
        return self.filtered(self.noise(items, 100_000 + seed), self.spectrum.sqrt())

    def variance(self, sigma: float) -> Tensor:
        """True variance of every mode of x_sigma [height, width], in units of white noise's."""
        return (1 - sigma) ** 2 * self.spectrum + sigma**2

    def slope(self, sigma: float) -> Tensor:
        """Every mode's dv / dx [height, width]: the model is linear."""
        return (sigma - (1 - sigma) * self.spectrum) / self.variance(sigma)

    def filtered(self, x: Tensor, response: Tensor) -> Tensor:
        """Latents with every mode multiplied by ``response`` [height, width], symmetric in k."""
        return self.pack(self._filtered(self.unpack(x), response))

    def _filtered(self, grid: Tensor, response: Tensor) -> Tensor:
        half = response[:, : self.width // 2 + 1]
        return torch.fft.irfft2(torch.fft.rfft2(grid) * half, s=grid.shape[-2:])

    # The flow

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        sigma = float(self.sigmas[0])
        return sigma * noise + (0 if self.image is None else (1 - sigma) * self.image)

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        assert 0 < sigma <= self.sigmas[0], f"level {sigma}"
        assert item.shape == (len(x),)
        if not self.means:
            return self.filtered(x, self.slope(sigma))
        mean = torch.cat([self.means[k] for k in item.tolist()])
        return self.filtered(x - (1 - sigma) * mean, self.slope(sigma)) - mean

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        """Images [N, height, width, 3] in 0..1; the frames of 5-D latents are averaged first."""
        grid = self.unpack(x0)
        grid = grid.mean(2) if grid.ndim == 5 else grid
        return 0.5 + 0.5 * torch.tanh(torch.einsum("oc,nchw->nhwo", self.decoder, grid))

    def score(self, images: Tensor, item: Tensor) -> Values:
        assert item.shape == (len(images),)
        if self.asked:  # everyone's judge looks for its own place
            shifts = [self.asked[k] * self.width // 3 for k in item.tolist()]
            rolled = [im.roll(by, 1) for im, by in zip(images, shifts, strict=True)]
            images = torch.stack(rolled)
        return {self.reward.__name__: self.reward(2 * images - 1)}

    def totals(self, values: Values, seen: Values) -> Tensor:
        return values[self.reward.__name__]

    def gradients(self) -> AbstractContextManager:
        return torch.enable_grad()

    def image_gradients(self) -> AbstractContextManager:
        return torch.enable_grad()

    # Packed latents

    def pack(self, grid: Tensor) -> Tensor:
        """[B, C, H, W] as tokens [B, H W / 4, 4 C], where this world's latents are packed."""
        if not self.packed:
            return grid
        patches = grid.unfold(2, 2, 2).unfold(3, 2, 2)  # B, C, H / 2, W / 2, 2, 2
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def unpack(self, x: Tensor) -> Tensor:
        if not self.packed:
            return x
        patches = x.unflatten(1, (self.height // 2, self.width // 2))
        patches = patches.unflatten(3, (self.channels, 2, 2))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    # What tests ask of it

    def judged(self, latents: Tensor) -> Tensor:
        """Total rewards [B] of clean latents."""
        item = torch.arange(len(latents))
        return self.score(self.decode(latents, item), item)[self.reward.__name__]

    def band_energies(self, x0: Tensor) -> Tensor:
        """Energy of clean latents over the data's own, band by band [B, bands]; 1 is typical."""
        power = torch.fft.fft2(self.unpack(x0), norm="ortho").abs().square() / self.spectrum
        edges = (0, *BAND_EDGES, math.inf)
        bands = zip(edges, edges[1:], strict=False)
        masks = [(self.radius >= low) & (self.radius < high) for low, high in bands]
        return torch.stack([power[..., mask].flatten(1).mean(1) for mask in masks], 1)


def linear(image: Tensor) -> Tensor:
    """Brightness along a vertical wave; ``image`` [N, H, W, 3] in -1..1, as for the others."""
    across = torch.arange(image.shape[2]) / image.shape[2]
    return 20 * (image.mean(-1) * torch.sin(2 * math.pi * across)).mean((1, 2))


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
