"""The learned judge: independent of the verifier, right where it matters."""

import ast
import random
from pathlib import Path

import torch

from flow_ttrl.world import prompts as language
from flow_ttrl.world import scorer as module
from flow_ttrl.world.draw import draw
from flow_ttrl.world.rewards import ScorerReward


def test_neither_it_nor_its_training_imports_the_verifier():
    folder = Path(module.__file__).parent
    for name in ("scorer.py", "training.py", "train.py"):
        for node in ast.walk(ast.parse((folder / name).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert "verifier" not in (node.module or ""), name


def test_prefers_the_right_caption_to_one_wrong_in_one_respect():
    rng, reward = random.Random(3), ScorerReward()
    held = [language.parse(prompt) for prompt in language.held_out("dev", 80)]
    images = torch.stack([draw(c, rng) for c in held])
    right = reward.score(images, [c.prompt for c in held])
    wrong = []
    for composition in held:
        while (other := module.spoil(composition, rng)) in language.equivalents(composition):
            pass
        wrong.append(other.prompt)
    preferred = right > reward.score(images, wrong)
    assert preferred.float().mean() > 0.8


def test_is_differentiable_in_the_image():
    image = draw(language.parse("a red circle"), random.Random(1))[None].requires_grad_()
    ScorerReward().score(image, ["a red circle"]).sum().backward()
    assert image.grad.abs().sum() > 0


def test_any_image_size_will_do():
    image = draw(language.parse("a red circle"), random.Random(1))
    large = torch.nn.functional.interpolate(image.movedim(-1, 0)[None], scale_factor=2)
    scores = ScorerReward().score(large.movedim(1, -1), ["a red circle"])
    assert scores.shape == (1,)
