"""A small CLIP-like judge of the tiny world: an image tower and a text tower, compared by cosine.

It learns from image-caption pairs alone (InfoNCE, arXiv 2103.00020, with captions made wrong in one
respect as further negatives) and never sees the verifier, so that one can drive a search and the
other measure it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

from .draw import IMAGE_SIZE
from .encoder import FEATURES, MAX_TOKENS, encode_prompts
from .prompts import COLOURS, COUNTS, RELATIONS, SHAPES, Composition, equivalents, parse

WIDTH = 128
LOGIT_SCALE = 20.0


def _transformer(layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, activation="gelu",
        batch_first=True, norm_first=True,
    )  # fmt: skip
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class Scorer(nn.Module):
    """Cosine in -1..1 between images and captions of the world; differentiable in the images."""

    def __init__(self):
        super().__init__()
        channels = (3, 32, 64, WIDTH, WIDTH)
        self.stem = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(8, b), nn.GELU()
                )
                for a, b in zip(channels, channels[1:], strict=False)
            )
        )
        side = IMAGE_SIZE // 16
        self.image_place = nn.Parameter(0.02 * torch.randn(side * side, WIDTH))
        self.image_tower = _transformer(2)
        self.image_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.text_in = nn.Linear(FEATURES, WIDTH)
        self.text_tower = _transformer(2)
        self.text_out = nn.Linear(MAX_TOKENS * WIDTH, WIDTH, bias=False)

    def images(self, images: Tensor) -> Tensor:
        """Unit embeddings [B, WIDTH] of images [B, 3, H, W] in 0..1; any size is made 96 px."""
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            size = (IMAGE_SIZE, IMAGE_SIZE)
            images = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        tokens = self.stem(images * 2 - 1).flatten(2).mT + self.image_place
        return normalize(self.image_out(self.image_tower(tokens).mean(1)), dim=-1)

    def captions(self, prompts: list[str]) -> Tensor:
        """Unit embeddings [B, WIDTH] of ``prompts``."""
        features, _ = encode_prompts(prompts)
        tokens = self.text_tower(self.text_in(features.to(self.text_in.weight)))
        return normalize(self.text_out(tokens.flatten(1)), dim=-1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] against ``prompts``, one each."""
        return (self.images(images) * self.captions(prompts)).sum(-1)


def spoil(composition: Composition, rng: random.Random) -> Composition:
    """``composition`` made wrong in one respect: a colour, a shape, the count or the relation."""
    objects = list(composition.objects)
    wrongs = ["colour", "shape"]
    if composition.relation:
        wrongs += ["relation", "relation", "swap"]
    if composition.family == "counting":
        wrongs += ["count", "count"]
    wrong = rng.choice(wrongs)
    if wrong == "relation":
        others = [r for r in RELATIONS if r != composition.relation]
        return replace(composition, relation=rng.choice(others))
    if wrong == "swap":
        return replace(composition, objects=tuple(objects[::-1]))
    if wrong == "count":
        n = rng.choice([n for n in COUNTS.values() if n != len(objects)])
        return replace(composition, objects=(objects[0],) * n)
    at = rng.randrange(len(objects))
    colour, shape = objects[at]
    if wrong == "colour":
        changed = (rng.choice([c for c in COLOURS if c != colour]), shape)
    else:
        changed = (colour, rng.choice([s for s in SHAPES if s != shape]))
    if composition.family == "counting":
        return replace(composition, objects=(changed,) * len(objects))
    objects[at] = changed
    return replace(composition, objects=tuple(objects))


def smear(images: Tensor, rng: random.Random) -> Tensor:
    """Blur and noise, so that half-formed images are judged sensibly too."""
    radius = rng.choice((0, 0, 1, 2, 4))
    if radius:
        images = avg_pool2d(images, 2 * radius + 1, 1, radius, count_include_pad=False)
    return images + rng.uniform(0, 0.06) * torch.randn_like(images)


def contrastive_loss(
    scorer: Scorer, images: Tensor, captions: list[str], spoilt: list[str]
) -> Tensor:
    """InfoNCE both ways; ``spoilt`` captions are negatives of every image.

    Pairs that are not the sampled ones but mean the same picture are left out.
    """
    texts = captions + spoilt
    logits = LOGIT_SCALE * scorer.images(images) @ scorer.captions(texts).T
    meanings = [frozenset(equivalents(parse(text))) for text in texts]
    same = torch.tensor([[a == b for b in meanings] for a in meanings[: len(captions)]])
    own = torch.eye(*same.shape, dtype=torch.bool)
    logits = logits.masked_fill(same & ~own, -torch.inf)
    target = torch.arange(len(images))
    to_text = cross_entropy(logits, target)
    return to_text + cross_entropy(logits[:, : len(captions)].T, target)
