"""ImageReward-v1.0 (arXiv 2304.05977): a BLIP that reads image and prompt together, and an MLP."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from .base import Reward
from .checkpoints import Checkpoint, empty, fill, sizes
from .networks import Head, Place
from .preprocess import torchvision_pixels
from .tokens import Tokens, bert_tokenizer

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the rewards on the authors' data: the official score is standardised with them."""


LENGTH = 35
ADDED_WORDS = 2
"""BLIP's [DEC] and [ENC], at the end of the vocabulary; scoring uses neither."""
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
"""ImageReward-v1.0's sizes, as BLIP's configuration in transformers names them."""


class ImageRewardNetwork(nn.Module):
    """Pixels [B, 3, h, w], token ids and mask [B, L] to unstandardised rewards [B, 1]."""

    def __init__(self, vision: dict, text: dict):
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        across = {"encoder_hidden_size": vision["hidden_size"], "is_decoder": True}
        self.text = BlipTextModel(BlipTextConfig(**text, **across), add_pooling_layer=False)
        widths = (text["hidden_size"], 1024, 128, 64, 16, 1)
        layers = [nn.Linear(*sides) for sides in zip(widths, widths[1:], strict=False)]
        # dropouts, which the official file's numbering counts, stood after the first three
        places = (0, None, 1, None, 2, None, 3, 4)
        self.head = Head(*(nn.Identity() if k is None else layers[k] for k in places))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False
        )
        return self.head(read.last_hidden_state[:, 0])


_VISION = "blip.visual_encoder."
_RENAMED = {
    f"{_VISION}cls_token": "vision.embeddings.class_embedding",
    f"{_VISION}pos_embed": "vision.embeddings.position_embedding",
    f"{_VISION}patch_embed.proj.": "vision.embeddings.patch_embedding.",
    f"{_VISION}norm.": "vision.post_layernorm.",
    f"{_VISION}blocks.": "vision.encoder.layers.",
    "blip.text_encoder.": "text.",
    "mlp.layers.": "head.",
}
_RENAMED_IN_BLOCKS = {
    ".norm": ".layer_norm",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj|itm_head)\.|\.position_ids$")


def renamed(key: str) -> str | None:
    """The official key as ``ImageRewardNetwork`` has it; None for what scoring has no use for."""
    if _UNUSED.search(key):
        return None
    for start, new in _RENAMED.items():
        if key.startswith(start):
            rest = key[len(start) :]
            if start.endswith("blocks."):
                for old, name in _RENAMED_IN_BLOCKS.items():
                    rest = rest.replace(old, name)
            return new + rest
    return key


class ImageReward(Reward):
    """ImageReward-v1.0's standardised score.

    Args:
        path: ImageReward.pt, the same tensors as .safetensors, or a folder with them and a
            config.json of other sizes in "vision_config" and "text_config".
        vocabulary: bert-base-uncased's vocab.txt.
    """

    name = "imagereward"
    units = "standard deviations of the authors' data"
    typical = (-2.0, 2.0)
    needs_prompt = True
    token_limit = LENGTH

    def __init__(self, path: Path, vocabulary: Path, place: Place):
        checkpoint = Checkpoint(path)
        given = sizes(checkpoint.config or {})
        vision, text = VISION | given.get("vision_config", {}), TEXT | given.get("text_config", {})
        module = empty(lambda: ImageRewardNetwork(vision, text), path)
        self.network = place(fill(module, checkpoint.tensors(rename=renamed), path))
        self.networks = (self.network,)
        words = bert_tokenizer(vocabulary, text["vocab_size"] - ADDED_WORDS)
        self.tokens = Tokens(self.name, words, LENGTH)
        self.pixels = partial(torchvision_pixels, size=vision["image_size"])

    def check(self, prompts: list[str]) -> None:
        self.tokens.warn(prompts)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = self.pixels(images.to(self.network.device))
        raw = self.network(pixels, self.tokens(prompts), self.tokens.masks(prompts))[:, 0]
        return ((raw - MEAN) / STD).to(images.device)
