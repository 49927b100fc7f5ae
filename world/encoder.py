"""The tiny world's prompt encoder: a fixed table, in place of SD3's and FLUX's text encoders.

A word's features are the word, the word before it and its place, one-hot; the pooled vector is the
bag of words. Meaning is left to the transformers, whose joint attention reads these features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from .prompts import VOCABULARY, tokenize

MAX_TOKENS = 10
FEATURES = 64
"""Width of a token's features and of the pooled vector."""

_SCALE = FEATURES**0.5


def encode_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, MAX_TOKENS, FEATURES] and pooled [B, FEATURES] of token indices [B, MAX_TOKENS].

    Index 0 is padding.
    """
    words = one_hot(tokens, len(VOCABULARY)).float()
    before = pad(words[:, :-1], (0, 0, 1, 0))
    place = torch.eye(MAX_TOKENS, device=tokens.device).expand(len(tokens), -1, -1)
    features = torch.cat([words, before, place], -1)
    pooled = words[..., 1:].sum(1)
    features, pooled = (pad(t, (0, FEATURES - t.shape[-1])) for t in (features, pooled))
    return features * _SCALE, pooled * _SCALE


def pad_tokens(tokens: list[int]) -> list[int]:
    """``tokens`` to MAX_TOKENS; a longer sentence is none of the world's.

    Raises:
        ValueError: more than MAX_TOKENS words.
    """
    if len(tokens) > MAX_TOKENS:
        raise ValueError(
            f"expected a prompt of at most {MAX_TOKENS} words, got {len(tokens)}; "
            "the tiny world's sentences are shorter"
        )
    return tokens + [0] * (MAX_TOKENS - len(tokens))


def encode_prompts(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Features [B, MAX_TOKENS, FEATURES] and pooled [B, FEATURES] of ``prompts``."""
    return encode_tokens(torch.tensor([pad_tokens(tokenize(p)) for p in prompts]))
