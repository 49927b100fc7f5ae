"""Vision-language models of the true architectures at tiny sizes, as Hugging Face folders.

Weights are random. A head can be fitted, so that the model answers yes or no and knows a red square
from a blue one, which no random one does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from flow_ttrl.rewards.networks import on_device
from flow_ttrl.rewards.vlm import NO, YES, VisionLanguageModel
from flow_ttrl.rewards.vlm_folder import FolderVLM

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "smolvlm")
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SMOL = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<row_1_col_1>",
)
QWEN_CHAT = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL_CHAT = (
    "<|im_start|>{% for turn in messages %}{{ turn.role | capitalize }}:"
    "{% for part in turn.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}
QWEN3_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "depth": 4,
    "num_heads": 2,
    "deepstack_visual_indexes": [0, 1, 2],
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 2304,
}
PREPROCESSOR = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary in which yes and no are whole words, and its merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges = []
    for word in (*YES, *NO):
        pieces = word.replace(" ", "Ġ")
        for end in range(2, len(pieces) + 1):
            pair = pieces[: end - 1], pieces[end - 1]
            if pair not in merges:
                merges.append(pair)
                vocabulary[pieces[:end]] = len(vocabulary)
    return vocabulary, merges


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary, merges = words()
    made = Qwen2Tokenizer(vocabulary, merges)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return made


def smol_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary, merges = words()
    made = Qwen2Tokenizer(vocabulary, merges)
    made.add_special_tokens({"additional_special_tokens": list(SMOL)})
    made.add_special_tokens({"bos_token": "<|im_start|>", "pad_token": "<end_of_utterance>"})
    return made


def qwen3_config(ids: dict[str, int], vocabulary: int, **text) -> Qwen3VLConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}
    text = {**TEXT, "vocab_size": vocabulary, "rope_parameters": rope, **text}
    return Qwen3VLConfig(
        text_config=text,
        vision_config=QWEN3_VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def _qwen2_5_config(ids: dict[str, int], vocabulary: int) -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": vocabulary, "rope_parameters": rope},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "depth": 4,
            "num_heads": 2,
            "out_hidden_size": TEXT["hidden_size"],
            "fullatt_block_indexes": [3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _smol_config(ids: dict[str, int], vocabulary: int) -> SmolVLMConfig:
    return SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": vocabulary},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=ids["<end_of_utterance>"],
        tie_word_embeddings=False,
    )


def fill(module: nn.Module, seed: int = 0) -> None:
    """Values under which outputs depend well on inputs; logits are of unit size or below."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            wide = 0.1 if "embed_tokens" in name else 0.08
            parameter.copy_(1 + 0.1 * drawn if norm else wide * drawn)


def write(folder: Path, family: str, *, tokenizer=None, config=None, fitted: bool = True) -> Path:
    """A folder of ``family``; its tokenizer and config may be others than the tiny ones."""
    folder.mkdir(parents=True, exist_ok=True)
    smol = family == "smolvlm"
    tokenizer = tokenizer or (smol_tokenizer() if smol else qwen_tokenizer())
    tokenizer.save_pretrained(folder)
    make = {"qwen3_vl": qwen3_config, "qwen2_5_vl": _qwen2_5_config, "smolvlm": _smol_config}
    config = config or make[family](tokenizer.get_vocab(), len(tokenizer))
    model = AutoModelForImageTextToText.from_config(config)
    fill(model)
    preprocessor, processor = dict(PREPROCESSOR), {"processor_class": "Qwen3VLProcessor"}
    if family == "qwen2_5_vl":
        preprocessor |= {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 1 << 23}}
        preprocessor |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        processor["processor_class"] = "Qwen2_5_VLProcessor"
    if smol:
        preprocessor = {
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 64},
            "max_image_size": {"longest_edge": 64},
            "do_image_splitting": False,
        }
        processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    for name, content in (("preprocessor_config", preprocessor), ("processor_config", processor)):
        told = content | {"processor_class": processor["processor_class"]}
        (folder / f"{name}.json").write_text(json.dumps(told), "utf-8")
    (folder / "chat_template.jinja").write_text(SMOL_CHAT if smol else QWEN_CHAT, "utf-8")
    model.save_pretrained(folder)
    if fitted:
        judge = FolderVLM(folder, on_device("cpu"))
        module = judge.network.module.model
        fit(judge, module.get_output_embeddings().weight)
        module.save_pretrained(folder)
    return folder


@torch.no_grad()
def fit(model: VisionLanguageModel, head: Tensor) -> None:
    """Set ``head`` [V, C] so that ``model`` answers, and knows red from blue.

    With the unit matrix as its head, its logits are the hidden states that the rows for yes and no
    are then solved from.
    """
    questions = ["Is this image red? Please answer yes or no."]
    squares = torch.zeros(2, 256, 256, 3)
    squares[0, ..., 0] = squares[1, ..., 2] = 1
    width = head.shape[1]
    head.zero_()
    head[:width] = torch.eye(width)
    seen = [model.look(square) for square in squares.split(1)]
    hidden = torch.cat([model.next_logits([one], questions)[:, :width] for one in seen]).cpu()
    head.zero_()
    for chosen, logits in ((YES, (22.0, 18.0)), (NO, (18.0, 22.0))):
        row = torch.linalg.pinv(hidden.double()) @ torch.tensor(logits, dtype=torch.float64)
        for word in chosen:
            if (token := model.token(word)) is not None:
                head[token] = row.to(head)
