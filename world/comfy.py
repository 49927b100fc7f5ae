"""The tiny world's models as ComfyUI objects: a real MODEL, CLIP and VAE, with no download."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor, nn

from .bundle import SHIFT, load
from .draw import IMAGE_SIZE
from .encoder import FEATURES, MAX_TOKENS, encode_tokens, pad_tokens
from .latents import to_family
from .prompts import VOCABULARY, tokenize

_VAE_CONFIG = {
    "double_z": True,
    "z_channels": 16,
    "resolution": IMAGE_SIZE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
_SD3_CONFIG = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 4,
    "input_size": None,
    "adm_in_channels": FEATURES,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": FEATURES, "out_features": 256},
    },
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
    "qk_norm": "rms",
}
_FLUX_CONFIG = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 256,
    "num_heads": 4,
    "axes_dim": [16, 24, 24],
    "mlp_ratio": 4.0,
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "depth": 1,
    "depth_single_blocks": 3,
    "context_in_dim": FEATURES,
    "vec_in_dim": FEATURES,
    "guidance_embed": True,
    "yak_mlp": False,
    "txt_norm": False,
}


class _SD3(comfy.supported_models.SD3):
    sampling_settings = {**comfy.supported_models.SD3.sampling_settings, "shift": SHIFT}


class _Flux(comfy.supported_models.Flux):
    # The host's shift for FLUX is exponential (mu): this is the same schedule as SHIFT.
    sampling_settings = {"shift": float(torch.tensor(SHIFT).log())}


_FAMILIES = {"sd3": (_SD3, _SD3_CONFIG), "flux": (_Flux, _FLUX_CONFIG)}


def load_model(arch: str) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of ``arch`` ("sd3" or "flux"), in float32, under the host's memory manager.

    Stock detection takes FLUX's head size for granted, so that the configuration is given instead.
    """
    family, unet_config = _FAMILIES[arch]
    management = comfy.model_management
    # The host's mapper takes keys out of the dictionary and writes to its tensors: both are ours.
    weights = comfy.model_detection.convert_diffusers_mmdit(load(arch), "")
    config = family(dict(unet_config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, "").to(management.unet_offload_device())
    patcher_class = getattr(
        comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher
    )
    patcher = patcher_class(
        model,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    model.load_model_weights(weights, "", **({"assign": True} if dynamic else {}))
    return patcher


def load_vae(arch: str) -> comfy.sd.VAE:
    """The world's VAE with its latents in ``arch``'s space."""
    vae = comfy.sd.VAE(
        sd=to_family(load("vae"), arch),
        config={"params": {"ddconfig": dict(_VAE_CONFIG), "embed_dim": 16}},
        dtype=torch.float32,
    )
    vae.latent_channels = 16
    return vae


class _Tokenizer:
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs):
        return {"tiny": [[(token, 1.0) for token in pad_tokens(tokenize(text))]]}

    def untokenize(self, pair):
        return VOCABULARY[pair[0]]

    def state_dict(self):
        return {}


class _TextEncoder(nn.Module):
    """The world's fixed prompt table, with the methods that the host asks of a text encoder."""

    disable_offload = True

    def __init__(self, dtype=None, device=None, model_options=None):
        super().__init__()
        self.dtypes = {torch.float32}
        self.register_buffer("place", torch.eye(MAX_TOKENS), persistent=False)

    def reset_clip_options(self) -> None:
        """Nothing to choose: there are no layers to skip."""

    def set_clip_options(self, options: dict) -> None:
        """Nothing to choose: there are no layers to skip."""

    def encode_token_weights(self, tokens: dict) -> tuple[Tensor, Tensor]:
        indices = torch.tensor([[token for token, *_ in batch] for batch in tokens["tiny"]])
        features, pooled = encode_tokens(indices)
        device = comfy.model_management.intermediate_device()
        return features.to(device), pooled.to(device)

    def load_sd(self, sd: dict):
        return self.load_state_dict(sd, strict=False)


def load_clip() -> comfy.sd.CLIP:
    """A CLIP that encodes the world's closed language."""
    target = SimpleNamespace(params={}, clip=_TextEncoder, tokenizer=_Tokenizer)
    return comfy.sd.CLIP(target, parameters=0, model_options={"dtype": torch.float32})
