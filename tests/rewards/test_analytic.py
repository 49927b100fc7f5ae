"""Rewards that need no weights."""

import pytest
import torch

from flow_ttrl.rewards import ANALYTIC


def score(name: str, images: torch.Tensor) -> list[float]:
    return ANALYTIC[name].score(images, [""] * len(images)).tolist()


@pytest.fixture
def images() -> torch.Tensor:
    noise = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.zeros(1, 64, 80, 3), torch.ones(1, 64, 80, 3), noise])


def test_brightness(images):
    assert score("white", images) == pytest.approx([0, 1, 0.5], abs=0.01)
    assert score("black", images) == pytest.approx([1, 0, 0.5], abs=0.01)


def test_contrast_of_a_half_black_image(images):
    images[1, :32] = 0
    assert score("contrast", images)[:2] == pytest.approx([0, 0.5], abs=1e-3)


def test_jpeg_sizes_are_those_of_the_file(images):
    import io

    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray((images[2] * 255).round().byte().numpy()).save(packed, "JPEG", quality=95)
    expected = packed.tell() / 500_000
    assert score("jpeg_incompressibility", images)[2] == pytest.approx(expected)
    assert score("jpeg_compressibility", images)[2] == pytest.approx(-expected)
    assert score("jpeg_compressibility", images)[0] > -expected


def test_out_of_range_images_count_as_displayed(images):
    assert score("white", images * 3 - 1)[:2] == [0, 1]


def test_smooth_rewards_are_differentiable(images):
    leaf = images.clone().requires_grad_()
    ANALYTIC["contrast"].score(leaf, [""] * 3).sum().backward()
    assert leaf.grad.abs().sum() > 0
