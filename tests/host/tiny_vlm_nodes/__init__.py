"""Test models as a custom node: vision-language CLIPs of ComfyUI's own classes at tiny sizes.

Load CLIP knows the true sizes alone. ``scripts/vlm.py`` fits a head and writes the weights.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from unittest import mock

import comfy.sd
import comfy.utils
from comfy_api.latest import ComfyExtension, io

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "depth": 4,
    "deepstack_visual_indexes": [0, 1, 2],
}


def make(te, tokenizer, key: str, **config) -> comfy.sd.CLIP:
    """A CLIP of the host's, its network of the sizes above."""
    target = SimpleNamespace(params={}, clip=te, tokenizer=tokenizer)
    options = {f"{key}_model_config": SIZES | config}
    return comfy.sd.CLIP(target, model_options=options, parameters=1)


def qwen3_vl(kind: str = "qwen3vl_8b", te=None, tokenizer=None) -> comfy.sd.CLIP:
    """Qwen3-VL as Load CLIP makes it, or inside another family's text encoder."""
    import comfy.text_encoders.qwen3vl as family

    with contextlib.ExitStack() as small:
        small.enter_context(mock.patch.dict(family.QWEN3VL_VISION, {kind: VISION}))
        small.enter_context(mock.patch.dict(family.QWEN3VL_VISION_COMMON, num_heads=2))
        return make(
            te or family.te(model_type=kind), tokenizer or family.tokenizer(model_type=kind), kind
        )


class TinyVLM(io.ComfyNode):
    """A CLIP of Qwen3-VL's classes, from a file of its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyVLM",
            category="tests",
            inputs=[io.String.Input("weights", default="")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, weights: str) -> io.NodeOutput:
        clip = qwen3_vl()
        clip.cond_stage_model.load_state_dict(comfy.utils.load_torch_file(weights))
        return io.NodeOutput(clip)


class TestModels(ComfyExtension):
    async def get_node_list(self):
        return [TinyVLM]


async def comfy_entrypoint() -> TestModels:
    return TestModels()
