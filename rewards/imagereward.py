"""ImageReward-v1.0 (arXiv 2304.05977): a BLIP that reads image and prompt together, and an MLP."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from .base import Reward, check_images
from .checkpoints import Checkpoint, empty, fill
from .networks import Head, Place
from .preprocess import torchvision_pixels
from .tokens import Tokens, bert_tokenizer

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the rewards on the authors' data: the official score is standardised with them."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; the defaults are ImageReward-v1.0's."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    image: int = 224
    patch: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 30524
    length: int = 35


class ImageRewardNetwork(nn.Module):
    """Pixels [B, 3, h, w], token ids and mask [B, L] to unstandardised rewards [B, 1]."""

    def __init__(self, sizes: Architecture):
        super().__init__()
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=sizes.width,
                intermediate_size=4 * sizes.width,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                image_size=sizes.image,
                patch_size=sizes.patch,
                layer_norm_eps=1e-6,
            )
        )
        config = BlipTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.text_width,
            encoder_hidden_size=sizes.width,
            intermediate_size=4 * sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=512,
            is_decoder=True,
        )
        self.text = BlipTextModel(config, add_pooling_layer=False)
        widths = (sizes.text_width, 1024, 128, 64, 16, 1)
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


_RENAMED = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj|itm_head)\.|\.position_ids$")


def renamed(key: str) -> str | None:
    """The official key as ``ImageRewardNetwork`` has it; None for one that scoring has no use for."""
    if _UNUSED.search(key):
        return None
    for pattern, name in _RENAMED:
        new, count = re.subn(pattern, name, key)
        if count:
            return new
    return key


class ImageReward(Reward):
    """ImageReward-v1.0's standardised score.

    Args:
        path: ImageReward.pt, or the same tensors as .safetensors.
        vocabulary: bert-base-uncased's vocab.txt.
    """

    name = "imagereward"
    units = "standard deviations of the authors' data"
    typical = (-2.0, 2.0)
    needs_prompt = True

    def __init__(
        self,
        path: Path,
        vocabulary: Path,
        place: Place,
        *,
        sizes: Architecture | None = None,
    ):
        sizes = sizes or Architecture()
        self.token_limit = sizes.length
        self.tokens = Tokens(self.name, bert_tokenizer(vocabulary), sizes.length)
        tensors = Checkpoint(path).tensors(rename=renamed)
        self.network = place(fill(empty(lambda: ImageRewardNetwork(sizes)), tensors, path))
        self.networks = (self.network,)
        self.pixels = partial(torchvision_pixels, size=sizes.image)

    def check(self, prompts: list[str]) -> None:
        self.tokens.warn(prompts)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        check_images(images)
        pixels = self.pixels(images.to(self.network.device))
        raw = self.network(pixels, self.tokens(prompts), self.tokens.masks(prompts))[:, 0]
        return ((raw - MEAN) / STD).to(images.device)
