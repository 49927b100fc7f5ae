"""How beautiful an image is: LAION's predictor, and Aesthetic Predictor V2.5 on SigLIP."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from .base import Reward
from .checkpoints import Checkpoint, empty, fill, sizes
from .networks import Head, ImageTower, Place
from .preprocess import squashed_pixels

SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
}
"""google/siglip-so400m-patch14-384."""
_KNOWN = ("vision_model.", "text_model.", "logit_scale", "logit_bias")


def load_head(path: Path, prefix: str, width: int, dropouts: int) -> Head:
    """The linear layers width-1024-128-64-16-1 of a file, which have no activations between them.

    Args:
        prefix: of the layers' keys.
        dropouts: how many of the first layers training had a dropout after; each takes a number of
            its own in the keys.
    """
    sizes = (width, 1024, 128, 64, 16, 1)

    def build() -> nn.Module:
        layers = Head()
        for number, sides in enumerate(zip(sizes, sizes[1:], strict=False)):
            layers.append(nn.Linear(*sides))
            if number < dropouts:
                layers.append(nn.Identity())
        return nn.ModuleDict({prefix: layers})

    return fill(empty(build, path), Checkpoint(path).tensors(), path)[prefix]


class SiglipVision(nn.Module):
    """Pixels [B, 3, h, w] to SigLIP's pooled image features [B, D]."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.vision_model = SiglipVisionModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_model(pixel_values=pixels).pooler_output


class Aesthetic(Reward):
    """A linear head on an image's features of length 1; LAION's and V2.5's alike.

    Args:
        head: features [B, D] to scores [B, 1].
    """

    units = "predicted rating by people, about 1..10"

    def __init__(
        self, name: str, typical: tuple[float, float], tower: ImageTower, head: Head, place: Place
    ):
        self.name, self.typical, self.tower = name, typical, tower
        self.head = place(head)
        self.networks = (tower.network, self.head)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.head(self.tower.unit_features(images))[:, 0].to(images.device)


def laion(path: Path, tower: ImageTower, place: Place) -> Aesthetic:
    """LAION's predictor (improved-aesthetic-predictor) for CLIP ViT-L/14's features.

    Args:
        path: sac+logos+ava1-l14-linearMSE.pth: keys layers.{0,2,4,6,7}.
    """
    head = load_head(path, "layers", tower.width, dropouts=3)
    return Aesthetic("aesthetic", (4.5, 7.0), tower, head, place)


def v2_5(path: Path, tower: ImageTower, place: Place) -> Aesthetic:
    """Aesthetic Predictor V2.5 for SigLIP's features.

    Args:
        path: aesthetic_predictor_v2_5.pth: keys scoring_head.{0,2,4,6,8}.
    """
    head = load_head(path, "scoring_head", tower.width, dropouts=4)
    return Aesthetic("aesthetic_v2_5", (3.0, 7.0), tower, head, place)


def load_siglip_tower(path: Path, place: Place) -> ImageTower:
    """The image tower of a SigLIP checkpoint, whole or vision alone."""
    checkpoint = Checkpoint(path)
    checkpoint.check_keys(_KNOWN, "SigLIP")
    given = sizes(checkpoint.config or {})
    given = given.get("vision_config") or given or SIGLIP_SO400M
    module = empty(lambda: SiglipVision(SiglipVisionConfig(**given)), path)
    config = module.vision_model.config
    wanted = next(iter(module.state_dict()))
    nested = wanted.startswith("vision_model.vision_model.")
    tensors = checkpoint.tensors(
        ("vision_model.",), lambda key: f"vision_model.{key}" if nested else key
    )
    network = place(fill(module, tensors, path))
    pixels = partial(squashed_pixels, size=config.image_size)
    return ImageTower(network, pixels, config.hidden_size)
