"""The tiny world's models as diffusers objects, in the configurations of its weights."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor

from ..rewards import RewardMix
from ..sampling import shifted_sigmas
from ..sampling.hosts.diffusers import DiffusersFlow, Prompt
from .bundle import SHIFT, load
from .draw import IMAGE_SIZE
from .encoder import FEATURES, encode_prompts
from .latents import SCALE_SHIFT, to_family

LATENT_CHANNELS = 16
LATENT_SIZE = IMAGE_SIZE // 8

VAE_CONFIG = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": IMAGE_SIZE,
}
SD3_CONFIG = {
    "sample_size": LATENT_SIZE,
    "patch_size": 2,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "caption_projection_dim": 256,
    "joint_attention_dim": FEATURES,
    "pooled_projection_dim": FEATURES,
    "pos_embed_max_size": 16,
    "qk_norm": "rms_norm",
}
FLUX_CONFIG = {
    "patch_size": 1,
    "in_channels": 4 * LATENT_CHANNELS,
    "num_layers": 1,
    "num_single_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "joint_attention_dim": FEATURES,
    "pooled_projection_dim": FEATURES,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 24, 24),
}


def build_vae() -> AutoencoderKL:
    """The world's VAE (8x, 16 channels), freshly initialised."""
    return AutoencoderKL(**VAE_CONFIG)


def build_transformer(arch: str) -> SD3Transformer2DModel | FluxTransformer2DModel:
    """The flow transformer of ``arch`` ("sd3" or "flux"), freshly initialised."""
    if arch == "sd3":
        return SD3Transformer2DModel(**SD3_CONFIG)
    return FluxTransformer2DModel(**FLUX_CONFIG)


GUIDANCE = {"sd3": 3.0, "flux": 4.5}
"""Guidance scales that the world's models do best at: CFG for SD3, distilled for FLUX."""


@lru_cache(maxsize=4)
def load_models(arch: str) -> tuple[SD3Transformer2DModel | FluxTransformer2DModel, AutoencoderKL]:
    """The bundled transformer and VAE of ``arch``, in float32 and frozen."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        transformer = build_transformer(arch)
        transformer.load_state_dict(load(arch))
        scale, shift = SCALE_SHIFT[arch]
        vae = AutoencoderKL(**VAE_CONFIG, scaling_factor=scale, shift_factor=shift)
        vae.load_state_dict(to_family(load("vae"), arch))
        return transformer.eval().requires_grad_(False), vae.eval().requires_grad_(False)


def world_flow(arch: str, prompts: list[str], reward: RewardMix, steps: int) -> DiffusersFlow:
    """The bundled models of ``arch`` on ``prompts`` as a flow, judged by ``reward``.

    Raises:
        ValueError: a prompt outside the world's language.
    """
    transformer, vae = load_models(arch)
    return DiffusersFlow(
        transformer,
        vae,
        Prompt(*encode_prompts(prompts)),
        Prompt(*encode_prompts([""])),
        guidance=GUIDANCE[arch],
        sigmas=shifted_sigmas(steps, SHIFT),
        judge=reward.judge(prompts),
    )


def start_noise(seed: int, items: int = 1, first: int = 0) -> Tensor:
    """Starting noise [items, 16, 12, 12]; that of item ``first`` + k is the same in any batch."""
    shape = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)

    def draw(item: int) -> Tensor:
        # apart from a plain generator's, so that an item's noise is not another seed's
        digest = hashlib.blake2b(f"{seed} {item}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(shape, generator=generator)

    return torch.stack([draw(first + item) for item in range(items)])
