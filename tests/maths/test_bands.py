"""The octaves of a latent against a slow reference: a mask of the full spectrum for each."""

import math

import pytest
import torch

from flow_ttrl.sampling.bands import Bands, typical_noise

GRIDS = {
    "square": (2, 4, 16, 16),
    "oblong": (3, 2, 8, 24),
    "upright": (1, 3, 20, 6),
    "odd": (2, 3, 9, 7),
    "odd and even": (2, 2, 5, 12),
    "a line": (2, 3, 1, 8),
    "video": (2, 4, 3, 10, 6),
}
SHAPES = {**GRIDS, "packed": (2, 36, 16), "vectors": (3, 20)}


def masks(height: int, width: int) -> list[torch.Tensor]:
    """[height, width] of every octave: below 2 cycles along the longer side, 2 to 4, 4 to 8, ..."""
    found = []
    for row in range(height):
        for column in range(width):
            down = min(row, height - row) / height
            across = min(column, width - column) / width
            cycles = math.hypot(down, across) * max(height, width)
            octave = 0 if cycles < 2 - 1e-6 else math.floor(math.log2(cycles + 1e-6))
            while len(found) <= octave:
                found.append(torch.zeros(height, width, dtype=torch.bool))
            found[octave][row, column] = True
    return found


def parts(x: torch.Tensor) -> list[torch.Tensor]:
    """``x`` taken apart, band by band; packed latents are one band."""
    if x.ndim < 4:
        return [x.double()]
    spectrum = torch.fft.fft2(x.double())
    return [torch.fft.ifft2(spectrum * mask).real for mask in masks(*x.shape[-2:])]


def sizes(shape: tuple[int, ...]) -> list[float]:
    """An item's degrees of freedom in every band."""
    if len(shape) < 4:
        return [float(math.prod(shape[1:]))]
    images = math.prod(shape[1:-2])
    return [float(images * mask.sum()) for mask in masks(*shape[-2:])]


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1)


def pair(shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_spectrum_comes_back(shape):
    x, _ = pair(shape)
    bands = Bands.of(x)
    torch.testing.assert_close(bands.latent(bands.spectrum(x)), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_degrees_of_freedom_are_counted(shape):
    found = Bands.of(torch.zeros(shape)).sizes
    assert found.tolist() == sizes(shape)
    assert found.sum() == math.prod(shape[1:])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inner_products_by_band(shape):
    a, b = pair(shape)
    bands = Bands.of(a)
    for x, y in ((a, b), (a, a)):
        expected = [dot(p, q) for p, q in zip(parts(x), parts(y), strict=True)]
        found = bands.dot(bands.spectrum(x), bands.spectrum(y))
        torch.testing.assert_close(found, torch.stack(expected, 1).float(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gains_by_band(shape):
    x, _ = pair(shape)
    bands = Bands.of(x)
    gains = torch.rand(len(x), len(bands.sizes), generator=torch.Generator().manual_seed(4))
    found = bands.latent(bands.scaled(bands.spectrum(x), gains))
    each = [1, *[1] * (x.ndim - 1)]
    expected = sum(
        part * gain.view(-1, *each[1:]) for part, gain in zip(parts(x), gains.T, strict=True)
    )
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_typical_noise_is_the_references(shape):
    """At right angles to the mean in every band, with white noise's energy on average there."""
    noise, mean = pair(shape)
    noise = 3 * noise + 0.5 * mean  # neither typical nor at right angles
    wide = [-1, *[1] * (noise.ndim - 1)]
    expected = torch.zeros(shape, dtype=torch.double)
    for part, along, size in zip(parts(noise), parts(mean), sizes(shape), strict=True):
        across = part - along * (dot(part, along) / dot(along, along)).view(wide)
        expected += across * (size / dot(across, across)).sqrt().view(wide)
    found = typical_noise(noise, mean)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


def test_typical_noise_of_nothing_is_nothing():
    """An item of zeros, a band of zeros and a mean of zeros divide nothing by nothing."""
    noise, mean = pair((3, 2, 8, 8))
    noise[0] = 0
    noise[1] -= noise[1].mean((1, 2), keepdim=True)
    mean[2] = 0
    found = typical_noise(noise, mean)
    assert found.isfinite().all()
    assert not found[0].any()
    energy = dot(found[2:], found[2:])
    torch.testing.assert_close(energy, torch.tensor([128.0]))


def test_typical_noise_leaves_its_arguments_alone():
    noise, mean = pair((2, 3, 8, 8))
    before = noise.clone(), mean.clone()
    typical_noise(noise, mean)
    assert torch.equal(noise, before[0])
    assert torch.equal(mean, before[1])


def test_bands_made_in_inference_mode_serve_gradients_later():
    """Their cache outlives the host's run that filled it."""
    shape = (1, 2, 6, 14)  # no other test's
    x = torch.randn(shape)
    with torch.inference_mode():
        Bands.of(x)
    leaf = x.clone().requires_grad_()
    bands = Bands.of(leaf)
    bands.dot(bands.spectrum(leaf), bands.spectrum(leaf)).sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * x, atol=1e-5, rtol=1e-5)
