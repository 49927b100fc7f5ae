"""The tiny world's two judges as rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rewards import RewardMix
from ..rewards.base import Reward
from .bundle import load
from .prompts import parse
from .scorer import Scorer
from .verifier import verify


class _WorldReward(Reward):
    needs_prompt = True

    def check(self, prompts: list[str]) -> None:
        for prompt in prompts:
            parse(prompt)


class VerifierReward(_WorldReward):
    """The verifier's graded score."""

    name = "verifier"
    units = "how nearly the prompt holds, 0..1"
    typical = (0.3, 1.0)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return verify(images, prompts)[1].to(images.device)


class ScorerReward(_WorldReward):
    """The learned scorer's cosine."""

    differentiable = True
    name = "scorer"
    units = "cosine of image and caption, -1..1"
    typical = (0.0, 0.9)

    def __init__(self):
        with torch.inference_mode(False):  # it outlives the caller's mode
            self.model = Scorer()
            self.model.load_state_dict(load("scorer"))
            self.model.eval().requires_grad_(False)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        weight = self.model.text_in.weight
        pixels = images.clamp(0, 1).movedim(-1, 1).to(weight)
        return self.model(pixels, prompts).to(images.device)


WORLD_REWARDS = {"verifier": VerifierReward, "scorer": ScorerReward}


def world_reward(name: str) -> VerifierReward | ScorerReward:
    """A judge of the world by its name, ``verifier`` or ``scorer``."""
    return WORLD_REWARDS[name]()


def driven_by(driver: str) -> RewardMix:
    """What drives a search: a judge by its name, or both together as ``mix``."""
    names = WORLD_REWARDS if driver == "mix" else (driver,)
    return RewardMix(tuple((world_reward(name), 1.0) for name in names))


def judges(driver: str) -> RewardMix:
    """Both judges, of which ``driver`` (or both, for ``mix``) gives the total."""
    shares = {name: float(driver in (name, "mix")) for name in WORLD_REWARDS}
    return RewardMix(tuple((world_reward(name), share) for name, share in shares.items()))


def accurate(images: Tensor, prompts: list[str]) -> list[bool]:
    """The verifier's strict verdicts."""
    with torch.no_grad():
        return verify(images, prompts)[0].tolist()
