"""The example workflows in API form, as the browser tests exported them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import FOLDER
from graphs import LOADS_QWEN3_VL, api_form
from graphs import node as node_

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DEMO = "01_demo_no_downloads"


def test_template_browser_lists_every_workflow_with_its_picture(server):
    listed = server.get("/workflow_templates").json()[FOLDER]
    assert sorted(listed) == [path.stem for path in WORKFLOWS]
    for name in listed:
        address = f"/api/workflow_templates/{FOLDER}/{name}"
        assert server.get(f"{address}.json").json()["nodes"]
        assert server.get(f"{address}.jpg").content[:3] == b"\xff\xd8\xff"


LOADERS = {"CheckpointLoaderSimple", "UNETLoader", "DualCLIPLoader", "CLIPLoader", "VAELoader"}
"""What stands for files: swapped for the demo model's own model, text encoder and VAE."""
OUTPUT = {"MODEL": 0, "CLIP": 1, "VAE": 2}


def swapped(name: str) -> dict:
    """A workflow's graph with its loaders and rewards swapped for the demo model's.

    And with them what goes with the model: size, prompt, and the reward's own prompt. A
    vision-language judge gets node "tiny" for its CLIP.
    """
    graph = api_form(name)
    if not any(node["class_type"] in LOADERS for node in graph.values()):
        return graph
    flux = "flux" in name or "ocr" in name or "turbo" in name
    kinds = {"CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"), "UNETLoader": ("MODEL",)}
    kinds |= {"DualCLIPLoader": ("CLIP",), "CLIPLoader": ("CLIP",), "VAELoader": ("VAE",)}
    loaders = {k: kinds[n["class_type"]] for k, n in graph.items() if n["class_type"] in kinds}
    rewards = {k for k, node in graph.items() if node["class_type"] == "TTRLLoadReward"}
    size = {"width": 96, "height": 96}
    for node in graph.values():
        inputs = node["inputs"]
        for key, value in inputs.items():
            if isinstance(value, list) and value[0] in loaders:
                inputs[key] = ["demo", OUTPUT[loaders[value[0]][value[1]]]]
            elif isinstance(value, list) and value[0] in rewards:
                inputs[key] = ["demo", 3]
        if node["class_type"] == "TTRLVLMReward":
            inputs["clip"] = ["tiny", 0]
        if node["class_type"] == "EmptySD3LatentImage":
            inputs |= size
        if node["class_type"] == "CLIPTextEncode" and inputs["text"]:
            inputs["text"] = "a red circle left of a blue square"
        if node["class_type"] == "VAEEncode":
            inputs["pixels"] = ["small", 0]
        if node["class_type"] == "SetLatentNoiseMask":
            inputs["mask"] = ["small mask", 0]
    demo = {"architecture": "flux" if flux else "sd3", "reward": "verifier"}
    graph = {k: v for k, v in graph.items() if k not in loaders and k not in rewards}
    graph["demo"] = node_("TTRLDemoModel", **demo)
    graph["small"] = node_("EmptyImage", **size, batch_size=1, color=0xFF0000)
    graph["small mask"] = node_("SolidMask", **size, value=1.0)
    return graph


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_workflow_runs(server, name, request):
    graph = swapped(name)
    if any(node["class_type"] == "TTRLVLMReward" for node in graph.values()):
        if not LOADS_QWEN3_VL:
            pytest.skip("this ComfyUI does not load Qwen3-VL as a CLIP")
        graph["tiny"] = node_("TinyVLM", weights=request.getfixturevalue("vlm_weights"))
    run = server.run(graph)
    assert run.status == "success", run.error
    images = [o for output in run.history["outputs"].values() for o in output.get("images", [])]
    assert images


def test_demo_search_finds_what_plain_sampling_misses(server):
    graph = api_form(DEMO)
    plot = next(k for k, node in graph.items() if node["class_type"] == "TTRLRewardPlot")
    graph["report"] = node_("PreviewAny", source=[plot, 1])
    told = json.loads(server.run(graph).text("report"))
    assert told["rewards"][0] > told["plain_rewards"][0] + 0.2
