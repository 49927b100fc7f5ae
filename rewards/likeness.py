"""The cosine of image and prompt in a common space: what HPS, PickScore and CLIP score are."""

from __future__ import annotations

from torch import Tensor

from .base import Reward
from .networks import ImageTower, TextFeatures
from .tokens import CLIP_LENGTH, Tokens


class Likeness(Reward):
    """``scale`` times the cosine of an image's features and the prompt's.

    Args:
        tokens: of the text tower, which is known to ``text``.
    """

    needs_prompt = True
    token_limit = CLIP_LENGTH

    def __init__(self, tower: ImageTower, text: TextFeatures, tokens: Tokens, scale: float):
        self.tower, self.text, self.tokens, self.scale = tower, text, tokens, scale
        self.networks, self.text_networks = (tower.network,), (text.network,)

    def check(self, prompts: list[str]) -> None:
        self.tokens.warn(prompts)

    def prepare(self, prompts: list[str]) -> None:
        self.text(prompts)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        text = self.text(prompts)
        cosine = (self.tower.unit_features(images) * text).sum(-1)
        return self.scale * cosine.to(images.device)
