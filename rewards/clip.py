"""Rewards in a CLIP space: CLIP score, PickScore, similarity to a reference image."""

from __future__ import annotations

import weakref
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from .base import Reward, check_images, finite_images
from .checkpoints import Checkpoint, empty, fill, sizes, stamp
from .likeness import Likeness
from .networks import ImageTower, Network, Place, TextFeatures
from .preprocess import bilinear_pixels, clip_pixels
from .tokens import CLIP_LENGTH, Tokens, clip_tokenizer

PREPROCESS = {"official": clip_pixels, "paper": bilinear_pixels}

_LARGEST_SCALE = 8
"""Of a logarithm; CLIP's training stops at log 100 = 4.6."""
_TEXT = {"vocab_size": 49408, "max_position_embeddings": CLIP_LENGTH, "eos_token_id": 49407}
VIT_L_14 = {
    "projection_dim": 768,
    "text_config": {
        **_TEXT,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "quick_gelu",
    },
}
"""OpenAI's CLIP ViT-L/14 (openai/clip-vit-large-patch14)."""
VIT_H_14 = {
    "projection_dim": 1024,
    "text_config": {
        **_TEXT,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "gelu",
    },
}
"""LAION's CLIP ViT-H/14, which PickScore is a fine-tune of."""


class ClipVision(nn.Module):
    """Pixels [B, 3, h, w] to image features [B, D]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        whole = CLIPModel(config)
        self.vision_model, self.visual_projection = whole.vision_model, whole.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.vision_model(pixel_values=pixels).pooler_output
        return self.visual_projection(pooled)


class ClipText(nn.Module):
    """Token ids [N, L] to text features [N, D]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        whole = CLIPModel(config)
        self.text_model, self.text_projection = whole.text_model, whole.text_projection

    def forward(self, ids: Tensor) -> Tensor:
        return self.text_projection(self.text_model(input_ids=ids).pooler_output)


_PARTS = {
    ClipVision: ("vision_model.", "visual_projection."),
    ClipText: ("text_model.", "text_projection."),
}
_KNOWN = (*(prefix for prefixes in _PARTS.values() for prefix in prefixes), "logit_scale")
_loaded: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def load_part(part: type, path: Path, architecture: dict, place: Place) -> Network:
    """One tower of a CLIP checkpoint; the same object while anybody still uses it.

    Args:
        part: ``ClipVision`` or ``ClipText``.
        architecture: of a file that has no config.json beside it.

    Raises:
        FileNotFoundError, ValueError: as :class:`Checkpoint` and :func:`fill` say.
    """
    key = part, stamp(path.resolve()), place
    network = _loaded.get(key)
    if network is None:
        checkpoint = Checkpoint(path)
        checkpoint.check_keys(_KNOWN, "CLIP")
        given = sizes(checkpoint.config or architecture)
        tensors = checkpoint.tensors(_PARTS[part], _drop_position_ids)
        network = place(fill(empty(lambda: part(CLIPConfig(**given)), path), tensors, path))
        _loaded[key] = network
    return network


def _drop_position_ids(key: str) -> str | None:
    return None if key.endswith(".position_ids") else key


def load_image_tower(path: Path, architecture: dict, place: Place, preprocess: str) -> ImageTower:
    network = load_part(ClipVision, path, architecture, place)
    size = network.module.vision_model.config.image_size
    width = network.module.visual_projection.out_features
    return ImageTower(network, _pixels(preprocess, size), width)


@cache
def _pixels(preprocess: str, size: int) -> partial:
    """The same object for the same arguments, so that towers know each other's features."""
    return partial(PREPROCESS[preprocess], size=size)


class ClipReward(Likeness):
    """The scaled cosine of image and prompt in a CLIP space.

    CLIP score (arXiv 2104.08718) on OpenAI's ViT-L/14, PickScore (arXiv 2305.01569) on its own
    fine-tune of ViT-H/14. Both in the scale of Flow-GRPO's code, which the paper's weights are for:
    the model's own logit, exp(logit_scale) times the cosine, over ``divisor``.
    """

    def __init__(
        self,
        name: str,
        units: str,
        typical: tuple[float, float],
        path: Path,
        architecture: dict,
        place: Place,
        *,
        divisor: float,
        preprocess: str = "official",
    ):
        self.name, self.units, self.typical = name, units, typical
        scale = Checkpoint(path).tensors(("logit_scale",)).get("logit_scale")
        if scale is None:
            raise ValueError(
                f"expected a whole CLIP model with 'logit_scale' in {path}, got none; the file "
                "holds a part of a model: get the whole one"
            )
        if scale.numel() != 1 or not 0 <= float(scale) <= _LARGEST_SCALE:
            raise ValueError(
                f"expected 'logit_scale' in {path} to be a number of 0..{_LARGEST_SCALE}, got "
                f"{scale.flatten().tolist()[:3]}; the file is damaged: get it again"
            )
        tokens = Tokens(name, clip_tokenizer(), CLIP_LENGTH)
        super().__init__(
            load_image_tower(path, architecture, place, preprocess),
            TextFeatures(load_part(ClipText, path, architecture, place), tokens),
            tokens,
            float(scale.float().exp()) / divisor,
        )


def clip_score(path: Path, place: Place, architecture: dict, preprocess: str) -> ClipReward:
    """CLIP score, as Flow-GRPO scales it."""
    return ClipReward(
        "clipscore",
        "logit / 30",
        (0.6, 1.0),
        path,
        architecture,
        place,
        divisor=30,
        preprocess=preprocess,
    )


def pick_score(path: Path, place: Place, architecture: dict) -> ClipReward:
    """PickScore v1, as Flow-GRPO scales it; the paper's code preprocesses officially."""
    return ClipReward(
        "pickscore",
        "logit / 26",
        (0.7, 0.9),
        path,
        architecture,
        place,
        divisor=26,
    )


class ImageSimilarity(Reward):
    """The cosine of an image and a reference in CLIP's image space; the best of several references.

    Args:
        reference: images [R, H, W, 3] in 0..1, of any size.
    """

    name = "image_similarity"
    units = "cosine to the reference in CLIP's image space, -1..1"
    typical = (0.5, 0.95)
    needs_reference = True

    def __init__(self, tower: ImageTower, reference: Tensor):
        check_images(reference)
        if not finite_images(reference).all():
            raise ValueError(
                "expected a reference of finite numbers, got NaN or infinity in it; decode it in a "
                "higher precision"
            )
        self.tower, self.networks = tower, (tower.network,)
        with torch.inference_mode(False), torch.no_grad():
            self.reference = tower.unit_features(reference.clone())

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        cosines = self.tower.unit_features(images) @ self.reference.T
        return cosines.amax(-1).to(images.device)
