"""Preprocessing on tensors against PIL, and against the official transforms' arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms

from flow_ttrl.rewards import preprocess

SIZES = [
    (1024, 1024),
    (768, 1344),
    (1344, 768),
    (64, 64),
    (333, 517),
    (224, 224),
    (230, 224),
    (448, 896),
]


def eight_bits(height: int, width: int) -> np.ndarray:
    """A zone plate with noise: hard to resize."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    rings = 0.5 + 0.5 * np.cos(np.pi * (x**2 + y**2) / max(height, width))
    noise = np.random.default_rng(0).random((height, width, 3))
    return ((0.7 * rings[..., None] + 0.3 * noise) * 255).astype(np.uint8)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 255)[None]


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """CLIP-normalised pixels as 0..255."""
    shape = (3, 1, 1)
    std = torch.tensor(preprocess.CLIP_STD).view(shape)
    return (pixels * std + torch.tensor(preprocess.CLIP_MEAN).view(shape)) * 255


@pytest.mark.parametrize("size", SIZES)
def test_clip_pixels_are_pils(size):
    array = eight_bits(*size)
    shape = (int(size[1] * 224 / min(size)), int(size[0] * 224 / min(size)))
    across = Image.fromarray(array).resize((shape[0], size[0]), Image.Resampling.BICUBIC)
    resized = across.resize(shape, Image.Resampling.BICUBIC)
    left, top = (shape[0] - 224) // 2, (shape[1] - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    got = levels(preprocess.clip_pixels(tensor(array))[0]).movedim(0, -1).numpy()
    off = np.abs(got - expected)
    assert off.max() < 1e-3


@pytest.mark.parametrize("size", [*SIZES, (7, 3000), (2000, 9)])
@pytest.mark.parametrize("after", [(224, 224), (384, 384), (100, 517)])
def test_resized_levels_are_pils_to_the_last_bit(size, after):
    array = eight_bits(*size)
    across = Image.fromarray(array).resize((after[1], size[0]), Image.Resampling.BICUBIC)
    expected = np.asarray(across.resize(after[::-1], Image.Resampling.BICUBIC))
    pixels = preprocess.channels_first(tensor(array))
    got = (preprocess.resize(pixels, after)[0] * 255).round().byte().movedim(0, -1).numpy()
    assert np.array_equal(got, expected)
    middle = (preprocess.resize(pixels, after, 91, "even")[0] * 255).round().byte()
    top, left = (round((side - 91) / 2) for side in after)
    assert np.array_equal(middle.movedim(0, -1), expected[top : top + 91, left : left + 91])


def test_no_order_of_summing_changes_a_bit():
    """All products and sums are exact: whole numbers over 2^22, below 2^53."""
    kernel = preprocess._matrix(1344, 224, None, "down", torch.device("cpu"))
    whole = kernel * (1 << 22)
    assert torch.equal(whole, whole.round())
    assert 255 * whole.abs().sum(1).max() < 1 << 53
    levels = torch.randint(0, 256, (3, 64, 1344)).double()
    order = torch.randperm(1344, generator=torch.Generator().manual_seed(0))
    assert torch.equal(levels @ kernel.T, levels[..., order] @ kernel[:, order].T)


def test_images_are_left_as_they_are():
    images = tensor(eight_bits(96, 130))
    before = images.clone()
    for make in (preprocess.clip_pixels, preprocess.padded_pixels, preprocess.squashed_pixels):
        make(images)
    assert torch.equal(images, before)


def test_a_long_strip_takes_no_more_room_than_its_middle(monkeypatch):
    made, exact = [], preprocess._resized

    def seen(pixels, down, across):
        made.append((down.shape, across.shape))
        return exact(pixels, down, across)

    monkeypatch.setattr(preprocess, "_resized", seen)
    assert preprocess.clip_pixels(torch.rand(1, 2, 20000, 3)).shape == (1, 3, 224, 224)
    assert made == [((224, 2), (224, 20000))]  # not 2,240,000 columns


@pytest.mark.parametrize("size", SIZES)
def test_torchvision_pixels_are_torchvisions(size):
    array = eight_bits(*size)
    official = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    expected = official(Image.fromarray(array)) * 255
    off = (levels(preprocess.torchvision_pixels(tensor(array))[0]) - expected).abs()
    assert off.max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_squashed_pixels_are_pils(size):
    array = eight_bits(*size)
    across = Image.fromarray(array).resize((384, size[0]), Image.Resampling.BICUBIC)
    resized = across.resize((384, 384), Image.Resampling.BICUBIC)
    expected = np.asarray(resized, dtype=np.float32)
    got = (preprocess.squashed_pixels(tensor(array))[0].movedim(0, -1).numpy() * 0.5 + 0.5) * 255
    off = np.abs(got - expected)
    assert off.max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_padded_pixels_keep_the_whole_image_on_black(size):
    pixels = levels(preprocess.padded_pixels(tensor(eight_bits(*size)))[0])
    height, width = (round(side * 224 / max(size)) for side in size)
    top, left = (224 - height) // 2, (224 - width) // 2
    inside = pixels[:, top : top + height, left : left + width]
    resized = functional.interpolate(
        tensor(eight_bits(*size)).movedim(-1, 1), (height, width), mode="bicubic", antialias=True
    )
    assert torch.allclose(inside, 255 * resized[0], atol=1e-3)
    outside = pixels.clone()
    outside[:, top : top + height, left : left + width] = 0
    assert outside.abs().max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "make", [preprocess.stretched_pixels, preprocess.bilinear_pixels], ids=lambda f: f.__name__
)
def test_the_papers_variants_are_other_pixels_of_the_same_size(size, make):
    images = tensor(eight_bits(*size))
    pixels = make(images)
    assert pixels.shape == (1, 3, 224, 224)
    if min(size) > 224:
        assert (pixels - preprocess.clip_pixels(images)).abs().mean() > 0.01


def test_a_batch_is_its_images():
    images = torch.cat([tensor(eight_bits(96, 130)), 1 - tensor(eight_bits(96, 130))])
    for make in (preprocess.clip_pixels, preprocess.padded_pixels, preprocess.squashed_pixels):
        single = torch.cat([make(image) for image in images.split(1)])
        assert torch.allclose(make(images), single, atol=1e-5)


def test_gradients_go_through():
    images = tensor(eight_bits(96, 130)).clone().requires_grad_()
    preprocess.clip_pixels(images).sum().backward()
    assert images.grad.abs().max() > 0
    assert images.grad.isfinite().all()


def test_rounding_changes_no_value_with_gradients_on():
    images = tensor(eight_bits(96, 130))
    off = preprocess.clip_pixels(images) - preprocess.clip_pixels(images.clone().requires_grad_())
    assert off.abs().max() < 1e-5


def test_values_out_of_range_count_as_displayed():
    images = torch.cat([torch.full((1, 64, 64, 3), 1.7), torch.ones(1, 64, 64, 3)])
    for make in (preprocess.clip_pixels, preprocess.padded_pixels, preprocess.squashed_pixels):
        loud, white = make(images)
        assert torch.equal(loud, white)
