"""Random checkpoints of the official layouts at tiny sizes, written into a models folder."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

WIDTH, LAYERS = 64, 2
LEARNED = (
    "hps",
    "hps_v2",
    "imagereward",
    "pickscore",
    "clipscore",
    "aesthetic",
    "aesthetic_v2_5",
    "image_similarity",
)
PATHS = {"hps": "hps_v2.1", "hps_v2": "hps_v2.0", "imagereward": "imagereward"}
"""Folders of rewards whose official file has no room for the sizes of a tiny model."""

_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
CLIP = {
    "projection_dim": 48,
    "text_config": {**_TOWER, "vocab_size": 49408, "eos_token_id": 49407, "hidden_act": "gelu"},
    "vision_config": {**_TOWER, "image_size": 56, "patch_size": 14, "hidden_act": "gelu"},
}
OPEN_CLIP = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 56,
        "layers": LAYERS,
        "width": WIDTH,
        "head_width": 16,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 4,
        "layers": LAYERS,
    },
}
BLIP = {
    "vision_config": {**_TOWER, "image_size": 64, "patch_size": 16, "layer_norm_eps": 1e-6},
    "text_config": {**_TOWER, "vocab_size": 130, "max_position_embeddings": 512},
}
WORDS = ("a", "photo", "of", "red", "fox", "cat", "the", "sign", "##s")


def _draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    scale = 1.5 / max(1, shape[-1]) ** 0.5 if len(shape) > 1 else 0.1
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redrawn(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same keys and shapes, with values under which outputs depend well on inputs."""
    new = {}
    for number, (key, value) in enumerate(state.items()):
        drawn = _draw(1000 * seed + number, tuple(value.shape))
        norm = value.ndim == 1 and key.endswith("weight")
        new[key] = drawn + 1 if norm else drawn if value.ndim else value
    return new


def _write_config(folder: Path, config: dict, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config), "utf-8")
    return folder


def clip_state(seed: int) -> dict[str, Tensor]:
    state = redrawn(CLIPModel(CLIPConfig(**CLIP)).state_dict(), seed)
    return state | {"logit_scale": torch.tensor(4.6052)}


def write_clip(folder: Path, seed: int) -> None:
    """As safetensors of a Hugging Face folder."""
    save_file(clip_state(seed), _write_config(folder, CLIP) / "model.safetensors")


def write_pickled_clip(folder: Path, seed: int) -> None:
    """As the older pytorch_model.bin, which also holds position ids."""
    ids = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    torch.save(clip_state(seed) | ids, _write_config(folder, CLIP) / "pytorch_model.bin")


def write_hps(folder: Path, seed: int) -> None:
    """As the official .pt: half precision, under "state_dict"."""
    state = redrawn(open_clip.CLIP(**OPEN_CLIP).state_dict(), seed)
    half = {key: value.half() for key, value in state.items()}
    _write_config(folder, {"model_cfg": OPEN_CLIP}, "open_clip_config.json")
    torch.save({"epoch": 3, "state_dict": half}, folder / "open_clip_pytorch_model.bin")


def linear_keys(prefix: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def imagereward_shapes() -> dict[str, tuple[int, ...]]:
    """The official file's keys, written out from the package's modules, at tiny sizes."""
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    w, m = WIDTH, 2 * WIDTH
    shapes = {
        f"{vision}.cls_token": (1, 1, w),
        f"{vision}.pos_embed": (1, 17, w),
        f"{vision}.patch_embed.proj.weight": (w, 3, 16, 16),
        f"{vision}.patch_embed.proj.bias": (w,),
        f"{vision}.norm.weight": (w,),
        f"{vision}.norm.bias": (w,),
        f"{text}.embeddings.position_ids": (1, 512),
        f"{text}.embeddings.word_embeddings.weight": (130, w),
        f"{text}.embeddings.position_embeddings.weight": (512, w),
        f"{text}.embeddings.LayerNorm.weight": (w,),
        f"{text}.embeddings.LayerNorm.bias": (w,),
        **linear_keys("blip.vision_proj", 32, w),
        **linear_keys("blip.text_proj", 32, w),
    }
    for n in range(LAYERS):
        block, layer = f"{vision}.blocks.{n}", f"{text}.encoder.layer.{n}"
        for norm in (f"{block}.norm1", f"{block}.norm2"):
            shapes |= {f"{norm}.weight": (w,), f"{norm}.bias": (w,)}
        shapes |= linear_keys(f"{block}.attn.qkv", 3 * w, w)
        shapes |= linear_keys(f"{block}.attn.proj", w, w)
        shapes |= linear_keys(f"{block}.mlp.fc1", m, w) | linear_keys(f"{block}.mlp.fc2", w, m)
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                shapes |= linear_keys(f"{layer}.{attention}.self.{part}", w, w)
            shapes |= linear_keys(f"{layer}.{attention}.output.dense", w, w)
            norm = f"{layer}.{attention}.output.LayerNorm"
            shapes |= {f"{norm}.weight": (w,), f"{norm}.bias": (w,)}
        shapes |= linear_keys(f"{layer}.intermediate.dense", m, w)
        shapes |= linear_keys(f"{layer}.output.dense", w, m)
        norm = f"{layer}.output.LayerNorm"
        shapes |= {f"{norm}.weight": (w,), f"{norm}.bias": (w,)}
    sizes = (w, 1024, 128, 64, 16, 1)
    for number, (i, o) in zip((0, 2, 4, 6, 7), zip(sizes, sizes[1:], strict=False), strict=True):
        shapes |= linear_keys(f"mlp.layers.{number}", o, i)
    return shapes


def imagereward_state(seed: int) -> dict[str, Tensor]:
    shapes = imagereward_shapes()
    state = redrawn({key: torch.empty(shape) for key, shape in shapes.items()}, seed)
    return state | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}


def write_imagereward(folder: Path, seed: int) -> None:
    torch.save(imagereward_state(seed), _write_config(folder, BLIP) / "pytorch_model.bin")


def write_vocabulary(path: Path) -> None:
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    rows = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *WORDS]
    rows = list(dict.fromkeys(rows))
    rows += [f"[unused{n}]" for n in range(BLIP["text_config"]["vocab_size"] - 2 - len(rows))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", "utf-8")


def head_state(prefix: str, numbers: tuple[int, ...], width: int, seed: int) -> dict[str, Tensor]:
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = {
        f"{prefix}.{number}": nn.Linear(*sides)
        for number, sides in zip(numbers, zip(sizes, sizes[1:], strict=False), strict=True)
    }
    state = {f"{k}.{n}": v for k, layer in layers.items() for n, v in layer.state_dict().items()}
    return redrawn(state, seed)


def write_siglip(folder: Path, seed: int) -> None:
    config = SiglipConfig(
        text_config={**_TOWER, "vocab_size": 100},
        vision_config={**_TOWER, "image_size": 56, "patch_size": 14},
    )
    state = redrawn(SiglipModel(config).state_dict(), seed)
    _write_config(folder, config.to_dict())
    save_file(state, folder / "model.safetensors")


def write_models(folder: Path) -> Path:
    """Every learned reward's files."""
    write_clip(folder / "clip-vit-large-patch14", 1)
    write_pickled_clip(folder / "PickScore_v1", 2)
    write_siglip(folder / "siglip-so400m-patch14-384", 3)
    write_hps(folder / PATHS["hps"], 4)
    write_hps(folder / PATHS["hps_v2"], 5)
    write_imagereward(folder / PATHS["imagereward"], 6)
    write_vocabulary(folder / "bert-base-uncased" / "vocab.txt")
    laion = head_state("layers", (0, 2, 4, 6, 7), 48, 7)
    torch.save(laion, folder / "sac+logos+ava1-l14-linearMSE.pth")
    v2_5 = head_state("scoring_head", (0, 2, 4, 6, 8), WIDTH, 8)
    torch.save(v2_5, folder / "aesthetic_predictor_v2_5.pth")
    return folder
