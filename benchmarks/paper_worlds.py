"""What versus_paper.py compares both sides on: a pipeline, a reward, and arguments of the call."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, ModelMixin, SD3Transformer2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.cache_utils import CacheMixin
from safetensors.torch import save_file
from tiny_pipelines import flux_pipeline, sd3_pipeline, tiny_flux, tiny_sd3
from torch import Tensor
from torch.nn.functional import interpolate

from flow_ttrl.headless import load_mix
from flow_ttrl.headless.paper import GUIDANCE
from flow_ttrl.rewards import ANALYTIC, RewardMix
from flow_ttrl.rewards.base import Reward
from flow_ttrl.rewards.imagereward import TEXT, VISION, ImageRewardNetwork
from flow_ttrl.rewards.networks import on_device
from flow_ttrl.world.diffusers import GUIDANCE as WORLD_GUIDANCE
from flow_ttrl.world.diffusers import world_pipeline
from flow_ttrl.world.gaussian import REWARDS, GaussianWorld
from flow_ttrl.world.rewards import world_reward

Parts = tuple[object, RewardMix, dict]
SIDE, CHANNELS = 1024, 16
"""Pixels of an image at the models' own size, and channels of its latent, 8 times smaller."""
FIELD_REWARD = "target"
"""Of the Gaussian world's rewards the one that has to be met in several places at once."""


def tiny_world(arch: str) -> Parts:
    """The embedded world of coloured shapes, at its 96 px."""
    reward = world_reward("verifier" if arch == "sd3" else "scorer")
    call = {"guidance_scale": WORLD_GUIDANCE[arch], "height": 96, "width": 96}
    return world_pipeline(arch), RewardMix(((reward, 1.0),)), call


def tiny_random(arch: str) -> Parts:
    """Small networks of the true architectures with random weights, 128 px."""
    call = {"guidance_scale": GUIDANCE, "height": 128, "width": 128}
    return TINY[arch](), RewardMix(((ANALYTIC["contrast"], 1.0),)), call


def gaussian(arch: str) -> Parts:
    """An exact flow on a Gaussian random field, in latents of true size, 1024 px."""
    size = SIDE // 8
    pipe = TINY[arch](transformer=FieldTransformer(arch, size), vae=FieldVAE(size))
    call = {"guidance_scale": GUIDANCE, "height": SIDE, "width": SIDE}
    return pipe, RewardMix(((FieldReward(), 1.0),)), call


def full_size(arch: str) -> Parts:
    """SD3.5 medium's or FLUX.1-dev's networks, VAE and two rewards at true size, random, 1024 px.

    The prompt encoders are shallow, of the true width: they have done their work before the search.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    call = {"guidance_scale": GUIDANCE, "height": SIDE, "width": SIDE}
    return full_size_pipeline(arch, device), full_size_rewards(device), call


WORLDS: dict[str, Callable[[str], Parts]] = {
    "tiny-world": tiny_world,
    "tiny-random": tiny_random,
    "gaussian": gaussian,
    "full-size": full_size,
}
TINY = {"sd3": tiny_sd3, "flux": tiny_flux}


class FieldTransformer(ModelMixin, ConfigMixin, CacheMixin):
    """A :class:`GaussianWorld`'s exact velocity, called as the transformer of ``arch`` is.

    It reads no prompt; guidance changes nothing.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, arch: str, size: int, patch_size: int = 1, guidance_embeds: bool = True):
        super().__init__()
        self.world = GaussianWorld(size, channels=CHANNELS, packed=arch == "flux")
        self.register_buffer("spectrum", self.world.spectrum)
        self.register_to_config(in_channels=4 * CHANNELS if arch == "flux" else CHANNELS)
        self.register_to_config(sample_size=size, patch_size=1 if arch == "flux" else 2)
        self.gradient_checkpointing = False  # nothing in it is worth computing anew
        self.thousands = 1 if arch == "flux" else 1000

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_) -> tuple[Tensor]:
        levels = timestep.expand(len(hidden_states)).tolist()
        rows = zip(hidden_states.split(1), levels, strict=True)
        one = torch.zeros(1, dtype=torch.long)
        return (torch.cat([self.world.velocity(x, t / self.thousands, one) for x, t in rows]),)


class FieldVAE(ModelMixin, ConfigMixin):
    """A :class:`GaussianWorld`'s decoder: a colour a latent pixel, 8 x 8 pixels of it."""

    @register_to_config
    def __init__(
        self,
        size: int,
        latent_channels: int = CHANNELS,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
    ):
        super().__init__()
        self.world = GaussianWorld(size, channels=CHANNELS)
        self.register_buffer("colours", self.world.decoder)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        images = self.world.decode(latents, torch.arange(len(latents)))
        return (interpolate(2 * images.movedim(-1, 1) - 1, scale_factor=8.0),)


class FieldReward(Reward):
    """How well the field's large structures match."""

    name = FIELD_REWARD
    units = "minus a squared distance"
    typical = (-10.0, 0.0)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return REWARDS[FIELD_REWARD](2 * images[:, ::8, ::8] - 1)


FULL_SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
"""SD3.5 medium's: 2.2 billion weights."""
FULL_FLUX = {"guidance_embeds": True}
"""FLUX.1-dev's, by diffusers' own defaults: 11.9 billion weights."""
FULL_VAE = {
    "latent_channels": CHANNELS,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": SIDE,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
FULL_LATENTS = {
    "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
}


def full_size_transformer(arch: str):
    """On torch's default device, in its default precision."""
    if arch == "sd3":
        return SD3Transformer2DModel(**FULL_SD3)
    return FluxTransformer2DModel(**FULL_FLUX)


def full_size_pipeline(arch: str, device: str):
    """In bfloat16."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            parts = {"transformer": full_size_transformer(arch)}
            parts["vae"] = AutoencoderKL(**FULL_VAE, **FULL_LATENTS[arch])
    finally:
        torch.set_default_dtype(usual)
    if arch == "sd3":
        return sd3_pipeline((768, 1280), 4096, torch.bfloat16, **parts).to(device)
    return flux_pipeline(768, 4096, torch.bfloat16, **parts).to(device)


def full_size_rewards(device: str) -> RewardMix:
    """The published demo's two, of files with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
        halved = {name: value.half() for name, value in clip.state_dict().items()}
        torch.save({"state_dict": halved}, models / "HPS_v2.1_compressed.pt")
        blip = ImageRewardNetwork(VISION, TEXT).half().state_dict()
        save_file(blip, models / "ImageReward.safetensors")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
        words += [f"##{number}" for number in range(TEXT["vocab_size"] - 2 - len(words))]
        (models / "vocab.txt").write_text("\n".join(words), "utf-8")
        return load_mix({"imagereward": 1.0, "hps": 0.5}, folders=[models], place=on_device(device))
