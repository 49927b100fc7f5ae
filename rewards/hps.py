"""HPS v2 (arXiv 2306.09341) and v2.1: human preference as a cosine in a tuned CLIP ViT-H/14."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ftfy
import open_clip
from torch import Tensor, nn

from .checkpoints import Checkpoint, empty, fill
from .likeness import Likeness
from .networks import ImageTower, Place, TextFeatures
from .preprocess import padded_pixels, stretched_pixels
from .tokens import CLIP_LENGTH, Tokens, clip_tokenizer

ARCHITECTURE = "ViT-H-14"
PREPROCESS = {"official": padded_pixels, "paper": stretched_pixels}


class OpenClipTokens(Tokens):
    """open_clip's own tokenizer, which mends text (ftfy) before it cuts it into words."""

    def __init__(self, name: str):
        super().__init__(name, clip_tokenizer(), CLIP_LENGTH)
        self._open_clip = open_clip.SimpleTokenizer(context_length=CLIP_LENGTH)

    def __call__(self, prompts: list[str]) -> Tensor:
        return self._open_clip(prompts)

    def cut_off(self, prompt: str) -> str:
        return super().cut_off(ftfy.fix_text(prompt))


def _open_clip(config: dict) -> nn.Module:
    """A model of open_clip's by its ``model_cfg``; by nothing that would have to be fetched."""
    parts = {**config["vision_cfg"], **config["text_cfg"]}
    if foreign := [parts[key] for key in ("hf_model_name", "timm_model_name") if parts.get(key)]:
        raise ValueError(f"expected towers of open_clip's own, got {foreign[0]}")
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return kind(**{key: value for key, value in config.items() if key != "custom_text"})


class OpenClipVision(nn.Module):
    def __init__(self, whole: open_clip.CLIP):
        super().__init__()
        self.visual = whole.visual

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels.to(self.visual.conv1.weight.dtype))


class OpenClipText(nn.Module):
    def __init__(self, whole: open_clip.CLIP):
        super().__init__()
        del whole.visual
        self.text = whole

    def forward(self, ids: Tensor) -> Tensor:
        return self.text.encode_text(ids)


class HPS(Likeness):
    """HPS v2: the cosine of image and prompt, without logit scale, as the official package gives.

    Args:
        path: HPS_v2.1_compressed.pt or HPS_v2_compressed.pt, the same tensors as .safetensors, or
            a folder in open_clip's layout.
    """

    units = "cosine of image and prompt, -1..1"
    typical = (0.2, 0.35)

    def __init__(
        self,
        name: str,
        path: Path,
        place: Place,
        *,
        preprocess: str = "official",
    ):
        self.name = name
        checkpoint = Checkpoint(path)
        given = (checkpoint.config or {}).get("model_cfg")
        config = given or open_clip.get_model_config(ARCHITECTURE)
        whole = fill(empty(lambda: _open_clip(config), path), checkpoint.tensors(), path)
        vision = place(OpenClipVision(whole).eval())
        pixels = partial(PREPROCESS[preprocess], size=whole.visual.image_size[0])
        tower = ImageTower(vision, pixels, config["embed_dim"])
        tokens = OpenClipTokens(name)
        text = TextFeatures(place(OpenClipText(whole).eval()), tokens)
        super().__init__(tower, text, tokens, scale=1.0)
