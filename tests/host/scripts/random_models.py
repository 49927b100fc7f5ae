"""Writes diffusion models of the true architectures and widths, a block deep, with random weights.

SD3's, whose width follows from its depth, is small.

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
from small_networks import FLUX, SD3, Z_IMAGE  # noqa: E402

TRUE_FLUX = {
    **FLUX,
    "hidden_size": 3072,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "depth": 1,
    "depth_single_blocks": 1,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
}
TRUE_Z_IMAGE = {
    **Z_IMAGE,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 1,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
}
TRUE_SD3 = {
    **SD3,
    "depth": 4,
    "num_blocks": 4,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 256},
    },
    "num_patches": 36864,
    "pos_embed_max_size": 192,
}
MODELS = {
    "flux": (Flux, TRUE_FLUX, torch.float8_e4m3fn),
    "qwen_image": (QwenImageTransformer2DModel, {"num_layers": 1}, torch.float8_e4m3fn),
    "z_image": (NextDiT, TRUE_Z_IMAGE, torch.float8_e4m3fn),
    "sd3": (OpenAISignatureMMDITWrapper, TRUE_SD3, torch.float16),
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
