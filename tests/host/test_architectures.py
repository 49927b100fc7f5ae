"""Networks of the true architectures and widths, read by the host's own loader.

Their weights are random and they are a block deep. In place of text encoders stands conditioning of
the same width, in place of the VAE the demo model's, in place of the reward one without files.
"""

from __future__ import annotations

import json

import pytest
import torch
from graphs import node, search, stock
from test_search import saved
from test_workflows import api_form

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
STEPS, BUDGET, SIDE = 4, 3.0, 64
TEXT = {"CLIPLoader", "DualCLIPLoader", "VAELoader", "CLIPTextEncode", "TTRLLoadReward"}


@pytest.fixture(scope="module", autouse=True)
def files(server, in_host) -> dict:
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    return in_host("random_models.py", str(folder))


def parts(name: str) -> dict:
    """Nodes "model", "positive", "negative", "latent", "demo" and "reward"."""
    width, pooled = CONDITIONING[name]
    return {
        "model": node("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default"),
        "positive": node("RandomConditioning", width=width, pooled=pooled, seed=1),
        "negative": node("RandomConditioning", width=width, pooled=pooled, seed=2),
        "latent": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
        "demo": node("TTRLDemoModel", architecture="sd3", reward="verifier"),
        "reward": node("TTRLLoadReward", reward="white", path="", text="", preprocess="official"),
    }


@pytest.mark.parametrize("name", CONDITIONING)
def test_search_off_is_ksampler_and_on_it_gains(server, name):
    inputs = {"vae": ["demo", 2], "reward": ["reward", 0], "prompt": ""}
    graph = parts(name) | stock(f"{name}-stock", 5, STEPS)
    graph |= search(f"{name}-on", 5, STEPS, inputs=inputs, budget=BUDGET)
    for key in [k for k, n in graph.items() if n["class_type"] in ("TTRLRewardScorer",)]:
        del graph[key]
    for one in graph.values():
        if one["class_type"] == "VAEDecode":
            one["inputs"]["vae"] = ["demo", 2]
    run = server.run(graph)
    assert run.status == "success", run.error
    expected, plain, found = (
        saved(server, f"{name}-{kind}") for kind in ("stock", "on-plain", "on")
    )
    assert torch.equal(plain, expected)
    assert found.shape == expected.shape
    assert found.isfinite().all()
    report = json.loads(run.text(f"{name}-on report"))
    assert report["rewards"][0] > report["plain_rewards"][0]
    assert report["cost"]["model_calls"] <= BUDGET * STEPS


def with_random_models(workflow: str) -> dict:
    """The workflow's graph, small, on the random models."""
    graph, name = api_form(workflow), WORKFLOWS[workflow]
    spare = parts(name)
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
        sizes = {"width": SIDE, "height": SIDE, "steps": STEPS, "budget": BUDGET}
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


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflow_runs_on_its_own_architecture(server, workflow):
    run = server.run(with_random_models(workflow))
    assert run.status == "success", run.error
    images = [o for output in run.history["outputs"].values() for o in output.get("images", [])]
    assert len(images) >= 2
