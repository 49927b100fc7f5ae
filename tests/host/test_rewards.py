"""Every reward of the catalogue, from official file layouts, in a real ComfyUI server."""

from __future__ import annotations

import os

import graphs
import pytest
import tiny
import torch

ANALYTIC = ("white", "black", "contrast", "jpeg_compressibility", "jpeg_incompressibility")


@pytest.fixture(scope="module")
def models(server):
    """Tiny checkpoints in the server's models folder, one in a folder that a YAML file maps."""
    folder = tiny.write_models(server.base / "models" / "reward_models")
    (folder / "PickScore_v1").rename(server.base / "elsewhere" / "PickScore_v1")
    return folder


def loading(models, name: str, **inputs) -> dict:
    path = str(models / tiny.PATHS[name]) if name in tiny.PATHS else ""
    given = {"reward": name, "path": path, "text": "", "preprocess": "official"} | inputs
    return {"class_type": "TTRLLoadReward", "inputs": given}


def images(count: int = 3) -> dict:
    """A batch of images without any model: noise from a seed, decoded by the demo model."""
    graph = {**graphs.demo(batch=count), **graphs.stock("drawn", 5, 2)}
    del graph["drawn saved"]
    graph["images"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": ["drawn sampler", 0], "vae": ["model", 2]},
    }
    return graph


def scorer(reward: list, **inputs) -> dict:
    given = {"images": ["images", 0], "reward": reward, "prompt": graphs.PROMPT} | inputs
    return {"class_type": "TTRLRewardScorer", "inputs": given}


def table(run, node: str) -> dict[str, list[float]]:
    header, *lines = run.text(node).split("\n\n")[0].splitlines()  # notes come after
    rows = sorted((line.split() for line in lines), key=lambda row: int(row[1]))
    return {
        name: [float(row[2 + column]) for row in rows]
        for column, name in enumerate(header.split()[2:])
    }


@pytest.mark.parametrize("name", [*tiny.LEARNED, *ANALYTIC])
def test_a_reward_loads_and_scores_a_batch(server, models, name):
    more = {"reference": ["images", 0]} if name == "image_similarity" else {}
    graph = {**images(), "load": loading(models, name, **more)}
    graph["scores"] = scorer(["load", 0])
    run = server.run(graph)
    assert run.status == "success", run.error
    scores = table(run, "scores")[name]
    assert len(scores) == 3
    assert len(set(scores)) > 1 or name == "image_similarity"
    assert ("where the official" in run.text("scores")) == (name in tiny.LEARNED)
    assert len(run.output("scores")["images"]) == 3
    assert server.view(run.output("scores")["images"][0])[:4] == b"\x89PNG"


def test_ocr_without_an_engine_says_so_before_anything_runs(server, models):
    graph = {**images(), "load": loading(models, "ocr")}
    graph["scores"] = scorer(["load", 0], prompt='"OPEN"')
    answer = server.post("/prompt", {"prompt": graph, "client_id": "x"})
    assert answer.status_code == 400
    assert "expected an OCR engine" in answer.text
    assert "--no-deps rapidocr" in answer.text


def test_a_missing_file_is_told_when_queued(server, models):
    graph = {**images(), "load": loading(models, "hps", path="")}
    graph["scores"] = scorer(["load", 0])
    answer = server.post("/prompt", {"prompt": graph, "client_id": "x"})
    assert answer.status_code == 400
    for part in (
        "HPS_v2.1_compressed.pt",
        "Apache-2.0",
        "xswu/HPSv2",
        "1,972 MB",
        "--download hps",
    ):
        assert part in answer.text


def test_the_drop_down_shows_what_is_ready(server, models):
    node = server.get("/object_info/TTRLLoadReward").json()["TTRLLoadReward"]
    kind, options = node["input"]["required"]["reward"]
    names = options["options"] if kind == "COMBO" else kind
    headings = [name for name in names if name.startswith("---")]
    ready = names[: names.index(headings[0])]
    assert {"clipscore", "aesthetic", "pickscore", "white"} <= set(ready)
    assert headings[0] == "--- needs HPS_v2.1_compressed.pt ---"
    assert names[names.index(headings[0]) + 1] == "hps"
    assert "--- needs an OCR engine ---" in headings
    others = {"ocr", "vlm", "verifier", "scorer"}
    assert set(names) - set(headings) == {*tiny.LEARNED, *ANALYTIC, *others}


def test_a_heading_of_the_drop_down_is_no_reward(server, models):
    graph = {**images(), "load": loading(models, "hps")}
    graph["load"]["inputs"]["reward"] = "--- needs HPS_v2.1_compressed.pt ---"
    graph["scores"] = scorer(["load", 0])
    answer = server.post("/prompt", {"prompt": graph, "client_id": "x"})
    assert answer.status_code == 400
    assert "Expected a reward, got the heading" in answer.text


def test_rewards_mix_and_drive_a_search(server, models):
    """Two towers beside the model; every reward by name in the report."""
    graph = {**graphs.demo(), **graphs.search("learned", 3, 8)}
    graph["clip"], graph["pick"] = loading(models, "clipscore"), loading(models, "pickscore")
    weights = {f"weight_{letter}": 1.0 for letter in "abcdefgh"}
    sockets = {"reward_a": ["clip", 0], "reward_h": ["pick", 0]}
    graph["mix"] = {
        "class_type": "TTRLRewardMixer",
        "inputs": {**sockets, **weights, "mode": "standardised"},
    }
    graph["learned search"]["inputs"]["reward"] = ["mix", 0]
    run = server.run(graph)
    assert run.status == "success", run.error
    shown = run.text("learned report")
    for part in ('"clipscore"', '"pickscore"', '"standardised"', '"failures": {}'):
        assert part in shown


def test_one_prompt_per_line(server, models):
    graph = {**images(2), "load": loading(models, "clipscore")}
    lines = ["a red fox", "the sign"]
    graph["both"] = scorer(["load", 0], prompt="\n".join(lines), one_prompt_per_line=True)
    for line in lines:
        graph[line] = scorer(["load", 0], prompt=line)
    run = server.run(graph)
    assert run.status == "success", run.error
    both = table(run, "both")["clipscore"]
    assert both == [table(run, line)["clipscore"][k] for k, line in enumerate(lines)]
    graph["both"] = scorer(["load", 0], prompt="only one", one_prompt_per_line=True)
    run = server.run(graph)
    assert "expected a line of prompt for each of 2 images, got 1" in run.error


def test_a_file_put_in_anew_is_loaded_anew(server, models):
    head = models / "sac+logos+ava1-l14-linearMSE.pth"
    graph = {**images(), "load": loading(models, "aesthetic")}
    graph["scores"] = scorer(["load", 0])
    first = table(server.run(graph), "scores")["aesthetic"]
    torch.save(tiny.head_state("layers", (0, 2, 4, 6, 7), 48, 99), head)
    os.utime(head, (1, 1))
    second = table(server.run(graph), "scores")["aesthetic"]
    assert first != second


def test_networks_are_managed_by_the_host(in_host, models):
    """One image tower for two rewards, a head and a text tower, all known to the memory manager."""
    seen = in_host("memory.py", str(models))
    assert seen["networks"] == 2
    assert seen["patchers_for_the_cache"] == 3
    assert all(size > 1000 for size in seen["sizes"])
    assert seen["counted"]
    assert seen["same_scores_after_unloading"]
    assert seen["whole_though_short_of_memory"]
    assert seen["freed_in_part"] == 0


def test_a_tower_in_the_hosts_clip_vision_serves(in_host, models, tmp_path):
    seen = in_host("towers.py", str(models), str(tmp_path))
    assert seen == {
        "first_folder": "reward_models",
        "lacked_before": 1,
        "lacks": [],
        "same_scores": True,
    }
