"""Memory of a search on a card, by ComfyUI's own formulas: weights, rows, decode, reward.

    COMFYUI_PATH=/path/to/ComfyUI <its python> benchmarks/memory.py

The models are made on the meta device, at their true sizes: nothing is loaded and nothing measured.
Prints the table of docs/memory.md.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path

sys.argv[1:] = ["--cpu"]
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
import comfy.supported_models as families  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack
GIB = 1024**3
CARDS = (12, 16, 24, 48)
OWN = 1.2
"""GiB that the system and CUDA keep, and that ComfyUI leaves free."""
REWARD = 0.8
"""GiB of one ViT-L tower in half precision (hps: 2.0)."""

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 3072,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "mlp_ratio": 4.0,
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "depth": 19,
    "depth_single_blocks": 38,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "guidance_embed": True,
    "yak_mlp": False,
    "txt_norm": False,
}


def sd3(depth: int, dual: int) -> dict:
    return {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "depth": depth,
        "input_size": None,
        "adm_in_channels": 2048,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 64 * depth},
        },
        "num_patches": 384 * 384 if dual else 36864,
        "pos_embed_max_size": 384 if dual else 192,
        "pos_embed_scaling_factor": None,
        "qk_norm": "rms",
        "x_block_self_attn_layers": list(range(dual)),
    }


MODELS = (
    ("FLUX.1-dev, bf16", families.Flux, FLUX, 2.0, 1),
    ("FLUX.1-dev, fp8", families.Flux, FLUX, 1.0, 1),
    ("FLUX.1-dev, GGUF Q8", families.Flux, FLUX, 8.5 / 8, 1),
    ("SD3.5 large, bf16", families.SD3, sd3(38, 0), 2.0, 2),
    ("SD3.5 large, fp8", families.SD3, sd3(38, 0), 1.0, 2),
    ("SD3.5 medium, bf16", families.SD3, sd3(24, 13), 2.0, 2),
)
"""Name, family, configuration, bytes a weight, rows of a call (two with guidance)."""


def main() -> None:
    rows_at_once = importlib.import_module("pack.sampling.hosts.comfy_memory").rows_at_once
    management.pytorch_attention_flash_attention = lambda: True  # as on a card
    shape = (1, 16, 128, 128)
    rows = rows_at_once(shape)
    decode = 2178 * 128 * 128 * 64 * 2 / GIB  # the host's estimate for an image of 1024 px, bf16
    lines = [f"| model | weights | {rows} candidates | decode | fits whole on |"]
    lines.append("|---|---|---|---|---|")
    for name, family, config, size, per_call in MODELS:
        made = family(dict(config))
        made.set_inference_dtype(torch.bfloat16, None)
        model = made.get_model({}, "", device="meta")
        weights = sum(p.numel() for p in model.parameters()) * size / GIB
        needs = model.memory_required([rows * per_call, *shape[1:]]) / GIB
        whole = weights + max(needs, decode) + REWARD + OWN
        cards = [f"{card} GB" for card in CARDS if whole <= card * 0.98]
        fits = f"{cards[0]} and more" if cards else "none of these: streamed"
        lines.append(f"| {name} | {weights:.1f} | {needs:.1f} | {decode:.1f} | {fits} |")
    sys.stdout.write("\n".join(lines) + "\n")


main()
