"""The tiny world's models as diffusers objects: models, pipelines, and a flow to search in."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from ..rewards import RewardMix
from ..sampling.hosts.diffusers import DiffusersFlow
from ..sampling.hosts.diffusers_networks import packed, unpacked
from ..sampling.hosts.diffusers_pipelines import call_of
from .bundle import SHIFT, load
from .draw import IMAGE_SIZE
from .encoder import FEATURES, MAX_TOKENS, encode_prompts
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


class TinySD3Pipeline(StableDiffusion3Pipeline):
    """diffusers' SD3 pipeline with the world's prompt encoder."""

    def encode_prompt(
        self,
        prompt,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt=None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        **_,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        if prompt_embeds is None:
            prompts = _repeated(prompt, num_images_per_prompt)
            prompt_embeds, pooled_prompt_embeds = _encoded(self, prompts)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            count = len(prompt_embeds)
            given = _repeated(negative_prompt or "", num_images_per_prompt)
            negatives = given * (count // len(given))
            negative_prompt_embeds, negative_pooled_prompt_embeds = _encoded(self, negatives)
        return (
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )


class TinyFluxPipeline(FluxPipeline):
    """diffusers' FLUX pipeline with the world's prompt encoder."""

    def encode_prompt(
        self,
        prompt,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        **_,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if prompt_embeds is None:
            prompts = _repeated(prompt, num_images_per_prompt)
            prompt_embeds, pooled_prompt_embeds = _encoded(self, prompts)
        return prompt_embeds, pooled_prompt_embeds, prompt_embeds.new_zeros(MAX_TOKENS, 3)


def _repeated(prompt: str | list[str], count: int) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return [one for one in prompts for _ in range(count)]


def _encoded(pipe, prompts: list[str]) -> tuple[Tensor, Tensor]:
    where = pipe._execution_device, pipe.transformer.dtype
    return tuple(t.to(*where) for t in encode_prompts(prompts))


def world_pipeline(arch: str) -> TinySD3Pipeline | TinyFluxPipeline:
    """The bundled models of ``arch`` ("sd3" or "flux") as a pipeline of their own scheduler."""
    transformer, vae = load_models(arch)
    others = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    if arch == "sd3":
        others |= dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    pipe = (TinySD3Pipeline if arch == "sd3" else TinyFluxPipeline)(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        **others,
    )
    pipe.default_sample_size = LATENT_SIZE
    return pipe


class WorldFlow(DiffusersFlow):
    """A call of the world's pipelines, whose latents are [N, 16, 12, 12] in either architecture.

    So they are in ComfyUI, too: an item's draws, and with them its images, are the same there.
    """

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        if not isinstance(self.call.pipe, FluxPipeline):
            return super().velocity(x, sigma, item)
        side = LATENT_SIZE // 2
        return unpacked(super().velocity(packed(x), sigma, item), side, side)

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        return super().decode(packed(x0) if isinstance(self.call.pipe, FluxPipeline) else x0, item)


def world_flow(arch: str, prompts: list[str], reward: RewardMix, steps: int) -> WorldFlow:
    """The bundled models of ``arch`` on ``prompts`` as a flow, judged by ``reward``.

    Raises:
        ValueError: a prompt outside the world's language.
    """
    call = {
        "prompt": prompts,
        "guidance_scale": GUIDANCE[arch],
        "num_inference_steps": steps,
        "sigmas": np.linspace(1, 1 / steps, steps),
        "generator": torch.Generator(),
    }
    pipe = world_pipeline(arch)
    return WorldFlow(call_of(pipe)(pipe, call), reward.judge(prompts))


def start_noise(seed: int, items: int = 1, first: int = 0) -> Tensor:
    """Starting noise [items, 16, 12, 12]; that of item ``first`` + k is the same in any batch."""
    shape = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)

    def draw(item: int) -> Tensor:
        # apart from a plain generator's, so that an item's noise is not another seed's
        digest = hashlib.blake2b(f"{seed} {item}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(shape, generator=generator)

    return torch.stack([draw(first + item) for item in range(items)])
