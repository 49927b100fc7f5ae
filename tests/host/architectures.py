"""Graphs on networks of the true architectures and widths, a block deep, with random weights.

In place of text encoders stands conditioning of the same width, in place of the VAE the demo
model's, in place of the reward one without files. ``scripts/random_models.py`` writes the files.
"""

from __future__ import annotations

from graphs import api_form, node, search, stock

CONDITIONING = {
    "flux": (4096, 768),
    "qwen_image": (3584, 768),
    "z_image": (2560, 768),
    "sd3": (4096, 2048),
}
"""Width of the features and of the pooled vector that each takes."""
WORKFLOWS = {
    "02_sd35_medium": "sd3",
    "03_flux_dev": "flux",
    "04_flux_dev_fp8_24gb": "flux",
    "05_flux_inpaint": "flux",
    "06_qwen_image": "qwen_image",
    "07_z_image_turbo": "z_image",
}
SIDE = 64
TEXT = {"CLIPLoader", "DualCLIPLoader", "VAELoader", "CLIPTextEncode", "TTRLLoadReward"}


def parts(name: str, side: int = SIDE) -> dict:
    """Nodes "model", "positive", "negative", "latent", "demo" and "reward"."""
    width, pooled = CONDITIONING[name]
    return {
        "model": node("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default"),
        "positive": node("RandomConditioning", width=width, pooled=pooled, seed=1),
        "negative": node("RandomConditioning", width=width, pooled=pooled, seed=2),
        "latent": node("EmptySD3LatentImage", width=side, height=side, batch_size=1),
        "demo": node("TTRLDemoModel", architecture="sd3", reward="verifier"),
        "reward": node("TTRLLoadReward", reward="white", path="", text="", preprocess="official"),
    }


def compared(name: str, steps: int, side: int = SIDE, *, settings=None, **widgets) -> dict:
    """A stock sampler, "<name>-stock", and the search, "<name>-on", on the same wires."""
    inputs = {"vae": ["demo", 2], "reward": ["reward", 0], "prompt": ""}
    graph = parts(name, side) | stock(f"{name}-stock", 5, steps)
    graph |= search(f"{name}-on", 5, steps, inputs=inputs, settings=settings, **widgets)
    graph = {k: n for k, n in graph.items() if n["class_type"] != "TTRLRewardScorer"}
    for one in graph.values():
        if one["class_type"] == "VAEDecode":
            one["inputs"]["vae"] = ["demo", 2]
    return graph


def with_random_models(workflow: str, steps: int, budget: float, side: int = SIDE) -> dict:
    """The workflow's graph, small, on the random models."""
    graph, name = api_form(workflow), WORKFLOWS[workflow]
    spare = parts(name, side)
    role = {"CLIPTextEncode": "positive", "VAELoader": ("demo", 2), "TTRLLoadReward": ("reward", 0)}
    empty = {k for k, n in graph.items() if n["inputs"].get("text") == ""}
    for one in graph.values():
        for key, value in one["inputs"].items():
            if not isinstance(value, list):
                continue
            source = graph[value[0]]["class_type"]
            if source == "CLIPTextEncode":
                one["inputs"][key] = ["negative" if value[0] in empty else role[source], 0]
            elif source in role:
                one["inputs"][key] = list(role[source])
            elif source == "CheckpointLoaderSimple":
                one["inputs"][key] = [["model", 0], ["positive", 0], ["demo", 2]][value[1]]
        inputs = one["inputs"]
        sizes = {"width": side, "height": side, "steps": steps, "budget": budget}
        inputs |= {k: v for k, v in sizes.items() if isinstance(inputs.get(k), (int, float))}
        if one["class_type"] == "UNETLoader":
            inputs |= spare["model"]["inputs"]
        if one["class_type"] == "VAEEncode":
            inputs["pixels"] = ["small", 0]
        if one["class_type"] == "SetLatentNoiseMask":
            inputs["mask"] = ["small mask", 0]
    drop = TEXT | {"CheckpointLoaderSimple"}
    graph = {k: n for k, n in graph.items() if n["class_type"] not in drop}
    graph["small"] = node("EmptyImage", width=96, height=96, batch_size=1, color=0xFF0000)
    graph["small mask"] = node("SolidMask", width=96, height=96, value=1.0)
    return spare | graph
