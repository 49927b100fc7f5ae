"""The official side: random weights in the official files' layout, and the official pipelines.

Runs in an environment of its own that holds the official packages (``make parity``).

    python official.py FOLDER
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import torch
from cases import PROMPTS, pairs
from PIL import Image

GAIN = 2.0
"""Weights are drawn this much larger than usual, so that scores differ from image to image."""


def redraw(module: torch.nn.Module, seed: int, gain: float = GAIN) -> None:
    """Random weights under which the output depends on the input well above rounding."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=draw) * gain / fan_in**0.5
        else:
            # biases and the scales of norms: near what they were
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)


def opened(folder: Path, name: str) -> Image.Image:
    return Image.open(folder / "images" / f"{name}.png").convert("RGB")


def hps(folder: Path) -> list[float]:
    """hpsv2's own ``score``; its model is built as it builds it, without LAION's weights first."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms

    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device="cpu",
        light_augmentation=True,
        aug_cfg={},
        output_dict=True,
        with_score_predictor=False,
        with_region_predictor=False,
    )
    redraw(model, 0)
    path = folder / "reward_models" / "HPS_v2.1_compressed.pt"
    half = {key: value.half() for key, value in model.state_dict().items()}
    torch.save({"state_dict": half}, path)
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    scores = {}
    for prompt in PROMPTS:
        names = [name for name, asked in pairs() if asked == prompt]
        found = img_score.score([opened(folder, n) for n in names], prompt, cp=str(path))
        scores |= {(name, prompt): float(s) for name, s in zip(names, found, strict=True)}
    return [scores[pair] for pair in pairs()]


def vocabulary(folder: Path) -> None:
    """A vocabulary of bert-base-uncased's size and layout: its special tokens, letters, words."""
    words = sorted({w.strip(".,;!&()\"'").lower() for p in PROMPTS for w in p.split()} - {""})
    letters = [chr(code) for code in range(33, 127)] + list("\u2019\u201c\u201d\u00e9\u00e0\u65e5")
    pieces = [*letters, *(f"##{letter}" for letter in letters), *words[::2]]
    special = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rows = list(dict.fromkeys([*special, *pieces]))
    rows += [f"[unused{n}]" for n in range(1000, 1000 + 30522 - len(rows))]
    (folder / "reward_models" / "bert-base-uncased").mkdir(parents=True, exist_ok=True)
    path = folder / "reward_models" / "bert-base-uncased" / "vocab.txt"
    path.write_text("\n".join(rows) + "\n", "utf-8")


def imagereward(folder: Path) -> list[float]:
    import ImageReward
    from ImageReward.ImageReward import ImageReward as Model

    vocabulary(folder)
    # the package asks transformers for "bert-base-uncased", which a folder of that name answers
    os.chdir(folder / "reward_models")
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30524,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    Path("med_config.json").write_text(json.dumps(config))
    model = Model(med_config="med_config.json")
    redraw(model, 1)
    torch.save(model.state_dict(), "ImageReward.pt")
    model = ImageReward.load("ImageReward.pt", device="cpu", med_config="med_config.json")
    with torch.no_grad():
        return [model.score(prompt, opened(folder, name)) for name, prompt in pairs()]


def clip_processor(folder: Path):
    """The official processor; its vocabulary is CLIP's own, as hpsv2x carries it."""
    import hpsv2.src.open_clip as vendored
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizerFast

    packed = Path(vendored.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    merges = merges[1 : 49152 - 256 - 2 + 1]
    encoder = vendored.tokenizer.SimpleTokenizer().encoder
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (folder / "vocab.json").write_text(
        json.dumps({names.get(word, word): index for word, index in encoder.items()})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CLIPProcessor(CLIPImageProcessor(), tokenizer)


def clip_config(name: str):
    """The sizes in the official config.json of OpenAI's ViT-L/14 and LAION's ViT-H/14."""
    from transformers import CLIPConfig

    if name == "L":
        return CLIPConfig(
            projection_dim=768,
            text_config_dict={
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
            }
            | {"num_attention_heads": 12, "projection_dim": 768},
            vision_config_dict={"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14}
            | {"num_hidden_layers": 24, "num_attention_heads": 16, "projection_dim": 768},
        )
    return CLIPConfig(
        projection_dim=1024,
        text_config_dict={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        | {"num_attention_heads": 16, "projection_dim": 1024, "hidden_act": "gelu"},
        vision_config_dict={"hidden_size": 1280, "intermediate_size": 5120, "patch_size": 14}
        | {"num_hidden_layers": 32, "num_attention_heads": 16, "projection_dim": 1024}
        | {"hidden_act": "gelu"},
    )


@torch.no_grad()
def clip_family(folder: Path, size: str, name: str, seed: int):
    """A random CLIP saved where the catalogue looks for it; per pair: logit, image features."""
    from transformers import CLIPModel

    model = CLIPModel(clip_config(size)).eval()
    redraw(model, seed)
    model.logit_scale.data.fill_(4.6052)
    model.save_pretrained(folder / "reward_models" / name)
    (folder / "reward_models" / name / "config.json").unlink()
    processor = clip_processor(folder)
    logits, features = [], []
    for image, prompt in pairs():
        given = processor(
            images=opened(folder, image),
            text=prompt,
            padding=True,
            truncation=True,
            max_length=77,
            return_tensors="pt",
        )
        seen = model.get_image_features(pixel_values=given["pixel_values"])
        read = model.get_text_features(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"]
        )
        seen, read = (x / x.norm(dim=-1, keepdim=True) for x in (seen, read))
        logits.append(float(model.logit_scale.exp() * (seen * read).sum()))
        features.append(seen)
    return logits, features


@torch.no_grad()
def clip_l(folder: Path) -> dict[str, list[float]]:
    from ImageReward.models.AestheticScore import MLP

    logits, features = clip_family(folder, "L", "clip-vit-large-patch14", 2)
    head = MLP(768).eval()
    redraw(head, 3, gain=1.0)
    torch.save(head.state_dict(), folder / "reward_models" / "sac+logos+ava1-l14-linearMSE.pth")
    return {
        "clipscore": [logit / 30 for logit in logits],
        "aesthetic": [float(head(seen)) for seen in features],
        "image_similarity": [float((seen * features[0]).sum()) for seen in features],
    }


def pickscore(folder: Path) -> list[float]:
    logits, _ = clip_family(folder, "H", "PickScore_v1", 4)
    return [logit / 26 for logit in logits]


@torch.no_grad()
def aesthetic_v2_5(folder: Path) -> list[float]:
    """SigLIP's own processor and pooled output of length 1, then five linear layers."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    model = SiglipVisionModel(config).eval()
    redraw(model, 5)
    model.save_pretrained(folder / "reward_models" / "siglip-so400m-patch14-384")
    (folder / "reward_models" / "siglip-so400m-patch14-384" / "config.json").unlink()
    sizes, layers = (1152, 1024, 128, 64, 16, 1), torch.nn.Sequential()
    for sides in zip(sizes, sizes[1:], strict=False):
        layers.append(torch.nn.Linear(*sides))
        if sides[1] > 1:
            layers.append(torch.nn.Dropout())
    redraw(layers.eval(), 6, gain=1.0)
    state = {f"scoring_head.{key}": value for key, value in layers.state_dict().items()}
    torch.save(state, folder / "reward_models" / "aesthetic_predictor_v2_5.pth")
    processor = SiglipImageProcessor(size={"height": 384, "width": 384}, resample=3)
    scores = []
    for name, _ in pairs():
        pixels = processor(images=opened(folder, name), return_tensors="pt")["pixel_values"]
        seen = model(pixel_values=pixels).pooler_output
        scores.append(float(layers(seen / seen.norm(dim=-1, keepdim=True))))
    return scores


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    (folder / "reward_models").mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    scores = {"hps": hps(folder)}
    scores["imagereward"] = imagereward(folder)
    scores |= clip_l(folder)
    scores["pickscore"] = pickscore(folder)
    scores["aesthetic_v2_5"] = aesthetic_v2_5(folder)
    (folder / "official.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
