"""Writes diffusion models of the true architectures and widths, a block deep, with random weights.

    COMFYUI_PATH=... <the host's python> random_models.py FOLDER

The files are of the layouts that people download, in float8 but for sd3's, so that the host's own
loader recognises them. Prints a JSON object: bytes by file.
"""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy.ldm.flux.model import Flux  # noqa: E402
from comfy.ldm.lumina.model import NextDiT  # noqa: E402
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper  # noqa: E402
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
Z_IMAGE = {
    "patch_size": 2,
    "in_channels": 16,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 1,
    "qk_norm": True,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
SD3 = {
    "input_size": None,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 4,
    "num_blocks": 4,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 256},
    },
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
}
MODELS = {
    "flux": (Flux, FLUX, torch.float8_e4m3fn),
    "qwen_image": (QwenImageTransformer2DModel, {"num_layers": 1}, torch.float8_e4m3fn),
    "z_image": (NextDiT, Z_IMAGE, torch.float8_e4m3fn),
    "sd3": (OpenAISignatureMMDITWrapper, SD3, torch.float16),
}


def weights(kind, config: dict, storage: torch.dtype) -> dict[str, torch.Tensor]:
    """Random weights under the names and of the shapes that the host's own network has."""
    with torch.device("meta"):
        network = kind(**config, dtype=torch.float32, device="meta", operations=torch.nn)
    draws, state = torch.Generator().manual_seed(0), {}
    for name, shape in ((k, v.shape) for k, v in network.state_dict().items()):
        values = torch.randn(shape, generator=draws) / (shape[-1] if len(shape) > 1 else 25) ** 0.5
        state[name] = (values + 1 if "norm" in name and len(shape) == 1 else values).to(storage)
    return state


sizes = {}
for name, (kind, config, storage) in MODELS.items():
    path = FOLDER / f"{name}.safetensors"
    prefix = "model.diffusion_model." if name == "sd3" else ""
    save_file({prefix + k: v for k, v in weights(kind, config, storage).items()}, path)
    sizes[name] = path.stat().st_size
sys.stdout.write("\n" + json.dumps(sizes))
