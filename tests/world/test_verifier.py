"""The verifier against rendered truth, and against pictures that are wrong on purpose."""

import random

import pytest
import torch

from flow_ttrl.world import prompts as language
from flow_ttrl.world.draw import draw
from flow_ttrl.world.scorer import spoil
from flow_ttrl.world.verifier import verify

PER_FAMILY = 60


@pytest.fixture(scope="module")
def truth():
    rng = random.Random(7)
    compositions = [
        rng.choice(language.all_compositions(family))
        for family in language.FAMILIES
        for _ in range(PER_FAMILY)
    ]
    return compositions, torch.stack([draw(c, rng) for c in compositions])


def test_accepts_what_was_drawn(truth):
    compositions, images = truth
    strict, graded = verify(images, [c.prompt for c in compositions])
    assert strict.float().mean() >= 0.99
    assert graded.mean() > 0.95


def test_accepts_what_was_drawn_through_blur_and_noise(truth):
    compositions, images = truth
    noisy = (images + 0.02 * torch.randn(images.shape)).clamp(0, 1)
    strict, _ = verify(noisy, [c.prompt for c in compositions])
    assert strict.float().mean() >= 0.97


def test_every_wording_of_a_picture_holds(truth):
    compositions, images = truth
    strict, _ = verify(images, [language.equivalents(c)[-1].prompt for c in compositions])
    assert strict.float().mean() >= 0.99


def test_rejects_prompts_that_are_wrong_in_one_respect(truth):
    compositions, images = truth
    rng = random.Random(8)
    wrong = []
    for composition in compositions:
        while (other := spoil(composition, rng)) in language.equivalents(composition):
            pass
        wrong.append(other.prompt)
    strict, graded = verify(images, wrong)
    assert strict.float().mean() <= 0.01
    right = verify(images, [c.prompt for c in compositions])[1]
    assert (graded < right).float().mean() > 0.99


def test_two_alike_may_stand_in_a_relation():
    rng = random.Random(3)
    apart = draw(language.parse("a red circle left of a blue circle"), rng)
    image = apart.clone()
    blue = apart[..., 2] > apart[..., 0] + 0.3
    image[blue] = apart[..., [2, 1, 0]][blue]  # the blue one, red
    alike, same = "a red circle left of a red circle", "a red circle above a red circle"
    strict, graded = verify(torch.stack([image, image]), [alike, same])
    assert strict.tolist() == [True, False]
    assert graded[0] > graded[1]


def test_rejects_extra_objects():
    image = draw(language.parse("a red circle and a blue square"), random.Random(1))[None]
    strict, _ = verify(image, ["a red circle"])
    assert not strict.item()


@pytest.mark.parametrize("image", [torch.zeros(1, 96, 96, 3), torch.rand(1, 96, 96, 3)])
def test_nothing_recognisable_scores_low(image):
    strict, graded = verify(image, ["a red circle"])
    assert not strict.item()
    assert graded.item() < 0.5
