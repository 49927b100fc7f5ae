"""The embedded tiny world as a loader."""

from __future__ import annotations

from comfy_api.latest import io

from ..rewards import RewardMix
from ..world.rewards import world_reward
from .types import CATEGORY, Reward, schema


class DemoModel(io.ComfyNode):
    """MODEL, CLIP, VAE and REWARD of the tiny world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLDemoModel",
            display_name="Load TTRL Demo Model",
            category=CATEGORY,
            description=(
                "A tiny flow model of coloured shapes that comes with the pack: try the search on "
                "a CPU, without a download. Prompts are sentences like 'a red circle left of a "
                "blue square' or 'three green crosses'; images are 96 x 96."
            ),
            search_aliases=["ttrl", "tiny", "demo", "test model"],
            inputs=[
                io.Combo.Input(
                    "architecture",
                    options=["sd3", "flux"],
                    default="sd3",
                    tooltip="sd3: an SD3.5-like MMDiT; sample with cfg 3. flux: a FLUX-like model "
                    "with distilled guidance; sample with cfg 1.",
                ),
                io.Combo.Input(
                    "reward",
                    options=["verifier", "scorer"],
                    default="verifier",
                    tooltip="What the REWARD output judges by. verifier: reads shapes, colours, "
                    "count and relation off the image, 0..1. scorer: a small learned image-text "
                    "model, cosine -1..1.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                Reward.Output(display_name="reward"),
            ],
        )

    @classmethod
    def execute(cls, architecture: str, reward: str) -> io.NodeOutput:
        from ..world.comfy import load_clip, load_model, load_vae

        mix = RewardMix(((world_reward(reward), 1.0),))
        return io.NodeOutput(load_model(architecture), load_clip(), load_vae(architecture), mix)
