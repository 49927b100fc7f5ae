"""What a question costs a vision-language judge, by formula: tokens, arithmetic, memory.

    python benchmarks/vlm.py

Qwen3-VL at its true sizes on the meta device: nothing is loaded and nothing measured. Prints the
table of docs/rewards.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from flow_ttrl.rewards.vlm import working_memory

GIB = 1024**3
SIDES = (512, 1024)
TEXT = 48
"""Tokens of the template and of a question."""
SIZES = {
    "4B": {
        "text": {"hidden_size": 2560, "intermediate_size": 9728},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24},
        "tied": True,
    },
    "8B": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288},
        "vision": {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27},
        "tied": False,
    },
}


@dataclass(frozen=True)
class Model:
    """A model's sizes.

    Attributes:
        config: as transformers has it.
        whole, vision, layers: parameters in all, of the vision tower, of the language layers.
    """

    config: Qwen3VLConfig
    whole: int
    vision: int
    layers: int

    def weights(self, precision: str) -> int:
        """Bytes: all in bf16, or the language layers in fp8."""
        return 2 * self.whole - (self.layers if precision == "fp8" else 0)

    def tokens(self, side: int) -> int:
        """Of one question about a square image, a token for 32 x 32 pixels."""
        return (side // 32) ** 2 + TEXT

    def operations(self, side: int) -> float:
        """Multiplications and additions of one question: two a parameter and token, and what
        attention takes, which is causal in the language layers alone."""
        text, vision = self.config.text_config, self.config.vision_config
        tokens, patches = self.tokens(side), (side // 16) ** 2
        heads = text.num_attention_heads * text.head_dim
        language = 2 * self.layers * tokens + 2 * text.num_hidden_layers * tokens**2 * heads
        seen = 2 * self.vision * patches + 4 * vision.depth * patches**2 * vision.hidden_size
        return language + seen

    def working(self) -> int:
        """Bytes that are kept free for it under ComfyUI, in bf16."""
        text = self.config.text_config
        sizes = text.hidden_size, text.intermediate_size, text.vocab_size
        return working_memory(*sizes, torch.bfloat16)


def model(name: str) -> Model:
    sizes = SIZES[name]
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            **sizes["text"],
        },
        vision_config={
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": sizes["text"]["hidden_size"],
            **sizes["vision"],
        },
        tie_word_embeddings=sizes["tied"],
    )
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(config)
    made.tie_weights()

    def count(module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    return Model(
        config, count(made), count(made.model.visual), count(made.model.language_model.layers)
    )


def table() -> str:
    """Markdown."""
    columns = ("judge", "image", "tokens", "TFLOP a question", "weights, bf16", "weights, fp8")
    lines = [f"| {' | '.join([*columns, 'beside them'])} |", "|---" * 7 + "|"]
    for name in SIZES:
        found = model(name)
        for side in SIDES:
            cells = [f"Qwen3-VL {name}", f"{side} px", f"{found.tokens(side):,}"]
            cells += [f"{found.operations(side) / 1e12:.1f}"]
            cells += [f"{found.weights(kind) / GIB:.1f}" for kind in ("bf16", "fp8")]
            lines.append(f"| {' | '.join([*cells, f'{found.working() / GIB:.1f}'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
