"""API-format graphs that the host tests queue."""

from __future__ import annotations

import json
import os
from pathlib import Path

PROMPT = "a red circle left of a blue square"
HOME = Path(os.environ.get("COMFYUI_PATH", ".")).expanduser()
LOADS_QWEN3_VL = (HOME / "comfy" / "text_encoders" / "qwen3vl.py").is_file()


def demo(architecture: str = "sd3", prompt: str = PROMPT, batch: int = 1) -> dict:
    """The demo model with its prompt encoded and an empty latent: nodes "model" to "latent"."""
    return {
        "model": node("TTRLDemoModel", architecture=architecture, reward="verifier"),
        "positive": node("CLIPTextEncode", clip=["model", 1], text=prompt),
        "negative": node("CLIPTextEncode", clip=["model", 1], text=""),
        "latent": node("EmptySD3LatentImage", width=96, height=96, batch_size=batch),
    }


def api_form(name: str) -> dict:
    """A workflow of the pack in API form, as the browser tests exported it."""
    path = Path(__file__).parent / "workflows_api" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def sampling(seed: int, steps: int, cfg: float = 3.0, scheduler: str = "simple") -> dict:
    return {"seed": seed, "steps": steps, "cfg": cfg, "scheduler": scheduler, "denoise": 1.0}


def wires() -> dict:
    return {
        "model": ["model", 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
    }


def stock(name: str, seed: int, steps: int, cfg: float = 3.0, **more) -> dict:
    """A stock KSampler with euler, its latent saved as ``name``."""
    arguments = {**sampling(seed, steps, cfg), **wires(), "sampler_name": "euler", **more}
    return {
        f"{name} sampler": node("KSampler", **arguments),
        f"{name} saved": node("SaveLatent", samples=[f"{name} sampler", 0], filename_prefix=name),
    }


def search(
    name: str,
    seed: int,
    steps: int,
    cfg: float = 3.0,
    *,
    inputs: dict | None = None,
    settings: dict | None = None,
    **widgets,
) -> dict:
    """Our search, its latent saved as ``name``, its images scored, its report shown.

    Args:
        inputs: of the search node, in place of the usual ones.
        settings: a settings node; by default TTRLSearchSettings with ``widgets`` set.
    """
    usual = {
        **sampling(seed, steps, cfg),
        **wires(),
        "vae": ["model", 2],
        "reward": ["model", 3],
        "prompt": PROMPT,
        "baseline": True,
        "settings": [f"{name} settings", 0],
    }
    nodes = {
        f"{name} search": node("TTRLSDELatentSearch", **{**usual, **(inputs or {})}),
        f"{name} settings": settings or search_settings(**widgets),
        f"{name} saved": node("SaveLatent", samples=[f"{name} search", 0], filename_prefix=name),
        f"{name} plain": node(
            "SaveLatent", samples=[f"{name} search", 1], filename_prefix=f"{name}-plain"
        ),
        f"{name} plot": node("TTRLRewardPlot", report=[f"{name} search", 2], item=0),
        f"{name} plotted": node("PreviewImage", images=[f"{name} plot", 0]),
        f"{name} report": node("PreviewAny", source=[f"{name} plot", 1]),
    }
    for kind, output in (("searched", 0), ("baseline", 1)):
        nodes[f"{name} {kind} image"] = node(
            "VAEDecode", samples=[f"{name} search", output], vae=["model", 2]
        )
        nodes[f"{name} {kind} score"] = node(
            "TTRLRewardScorer",
            images=[f"{name} {kind} image", 0],
            reward=["model", 3],
            prompt=PROMPT,
        )
        nodes[f"{name} {kind} preview"] = node("PreviewImage", images=[f"{name} {kind} image", 0])
    return nodes


def search_settings(**widgets) -> dict:
    """TTRLSearchSettings; the API fills in no defaults."""
    start = {
        "strategy": "steered",
        "budget": 6.0,
        "keep_better": False,
        "max_seconds": 0.0,
        "target_reward": 1e6,
        "micro_batch": 0,
    }
    return node("TTRLSearchSettings", **{**start, **widgets})


def defaults(server, class_type: str, **widgets) -> dict:
    """A node whose widgets have the defaults that its schema tells the browser."""
    inputs = server.get(f"/object_info/{class_type}").json()[class_type]["input"]
    start = {
        name: options["default"]
        for name, (_, options) in inputs["required"].items()
        if "default" in options
    }
    return node(class_type, **{**start, **widgets})


def inpainting(batch: int) -> dict:
    """Instead of an empty latent a batch of images, each its own, to be redrawn in the left half.

    Node "latent" holds it, and the sampling that made it is of other seeds than a test's.
    """
    drawn = {**sampling(90, 3), **wires(), "latent_image": ["empty", 0]}
    return {
        "empty": node("EmptySD3LatentImage", width=96, height=96, batch_size=batch),
        "drawn": node("KSampler", **drawn, sampler_name="euler"),
        "nothing": node("SolidMask", value=0.0, width=96, height=96),
        "left": node("SolidMask", value=1.0, width=48, height=96),
        "mask": node(
            "MaskComposite",
            destination=["nothing", 0],
            source=["left", 0],
            x=0,
            y=0,
            operation="add",
        ),
        "latent": node("SetLatentNoiseMask", samples=["drawn", 0], mask=["mask", 0]),
    }


def only(item: int) -> dict:
    """Node "item <number>": one item of node "latent"'s batch, which keeps its noise."""
    return {
        f"item {item}": node("LatentFromBatch", samples=["latent", 0], batch_index=item, length=1)
    }
