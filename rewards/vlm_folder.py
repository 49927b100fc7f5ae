"""Vision-language models from a Hugging Face folder on this machine, by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import eight_bits
from .networks import Place, WideRange
from .vlm import VisionLanguageModel

FAMILIES = {"qwen3_vl": 32, "qwen2_5_vl": 28, "smolvlm": 1, "idefics3": 1}
"""By config.json's ``model_type``, the pixels that an image's sides are multiples of."""
_WORDS_AT_ONCE = 1 << 14


class _FirstToken(WideRange):
    """A processor's inputs to float32 logits [N, V] of the token that comes next."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs) -> Tensor:
        last = inputs["attention_mask"].sum(1) - 1  # padded to the right
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        hidden = hidden[torch.arange(len(last), device=last.device), last].float()
        # in float32 a part of the vocabulary at a time: lower precisions know but few logits apart
        parts = self.model.get_output_embeddings().weight.split(_WORDS_AT_ONCE)
        return torch.cat([functional.linear(hidden, part.float()) for part in parts], -1)


class FolderVLM(VisionLanguageModel):
    """Qwen3-VL, Qwen2.5-VL or SmolVLM, with its own processor and chat template.

    Args:
        folder: with config.json, safetensors, tokenizer, processor and chat template.

    Raises:
        ValueError: a model of another family, or tensors that are missing or left over.
        OSError: files that are missing.
    """

    def __init__(self, folder: Path, place: Place):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.multiple = FAMILIES[_family(folder)]
        local = {"local_files_only": True}
        self.processor = AutoProcessor.from_pretrained(folder, **local)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "right"
        self.control_words = tuple(self.tokenizer.get_added_vocab())
        if not self.processor.chat_template:
            raise ValueError(
                f"expected a chat template in {folder}, got none; get chat_template.jinja (or "
                "chat_template.json) of the same repository"
            )
        model, told = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True, **local
        )
        wrong = {what: sorted(map(str, keys)) for what, keys in told.items() if keys}
        if wrong:
            what, names = next(iter(wrong.items()))
            raise ValueError(
                f"expected the tensors of {type(model).__name__} in {folder}, got "
                f"{what.replace('_', ' ')} such as {names[0]}; the files are damaged or of another "
                "model: get them again"
            )
        self.network = place(_FirstToken(model.eval().requires_grad_(False)))

    def token(self, word: str) -> int | None:
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        return ids[0] if len(ids) == 1 and self.tokenizer.decode(ids) == word else None

    def look(self, image: Tensor) -> object:
        return eight_bits(image)[0]

    def next_logits(self, seen: list, questions: list[str]) -> Tensor:
        inputs = self.processor(
            text=[self._conversation(question) for question in questions],
            images=[[image] for image in seen],
            padding=True,
            return_tensors="pt",
        )
        return self.network(inputs)

    def _conversation(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turns, add_generation_prompt=True)


def _family(folder: Path) -> str:
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"expected a Hugging Face folder with config.json at {folder}, got none there; name "
            "the folder that holds it"
        )
    family = json.loads(config.read_text("utf-8")).get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"expected a model of {', '.join(FAMILIES)} in {folder}, got {family!r}; take a "
            "Qwen3-VL, Qwen2.5-VL or SmolVLM"
        )
    return family
