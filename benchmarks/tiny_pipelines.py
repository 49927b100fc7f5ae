"""Pipelines of the true architectures with tiny random weights, made on the spot."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz,.!"
WIDTH = 32


def _clip(width: int, projected: bool):
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        vocab_size=2 * len(LETTERS) + 2,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return kind(config)


def _clip_tokens() -> CLIPTokenizer:
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _t5(width: int):
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


def _t5_tokens() -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
        scaling_factor=0.9,
        shift_factor=0.05,
    )


def tiny_sd3(dtype: torch.dtype = torch.float32, dynamic: bool = False, **parts):
    """A ``StableDiffusion3Pipeline`` for images of 64 pixels a side.

    Args:
        dynamic: shift the schedule by the size of the image.
        parts: the pipeline's "transformer" or "vae", instead of its own.
    """
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=8,
        caption_projection_dim=WIDTH,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    own = {"transformer": transformer, "vae": _vae()}
    return sd3_pipeline((WIDTH, WIDTH), 2 * WIDTH, dtype, dynamic, **own | parts)


def tiny_flux(dtype: torch.dtype = torch.float32, guided: bool = True, **parts):
    """A ``FluxPipeline``; ``guided`` as dev is by distillation, else as schnell.

    ``parts`` as in :func:`tiny_sd3`.
    """
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=4,
        attention_head_dim=16,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    own = {"transformer": transformer, "vae": _vae()}
    return flux_pipeline(WIDTH, WIDTH, dtype, guided, **own | parts)


def sd3_pipeline(clips: tuple[int, int], t5: int, dtype: torch.dtype, dynamic=False, **parts):
    """A pipeline of a "transformer" and a "vae", with shallow prompt encoders of these widths."""
    pipe = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        text_encoder=_clip(clips[0], True),
        tokenizer=_clip_tokens(),
        text_encoder_2=_clip(clips[1], True),
        tokenizer_2=_clip_tokens(),
        text_encoder_3=_t5(t5),
        tokenizer_3=_t5_tokens(),
        **parts,
    )
    return _ready(pipe, dtype)


def flux_pipeline(clip: int, t5: int, dtype: torch.dtype, dynamic=True, **parts):
    """The same of FLUX."""
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        text_encoder=_clip(clip, False),
        tokenizer=_clip_tokens(),
        text_encoder_2=_t5(t5),
        tokenizer_2=_t5_tokens(),
        **parts,
    )
    return _ready(pipe, dtype)


def _ready(pipe, dtype: torch.dtype):
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            _rouse(model)
            model.eval().requires_grad_(False)
            if dtype != torch.float32:
                model.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _rouse(model: torch.nn.Module) -> None:
    """Weights under which outputs depend well on inputs: none that begin at zero stay there."""
    for name, parameter in model.named_parameters():
        if not name.endswith("norm.weight") and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
