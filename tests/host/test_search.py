"""The search in a real ComfyUI server."""

from __future__ import annotations

import re
import time

import graphs
import pytest
import torch

STEPS = 10
ARCHITECTURES = {"sd3": 3.0, "flux": 1.0}


def saved(server, name: str) -> torch.Tensor:
    """The newest latent saved under ``name``."""
    newest = sorted((server.base / "output").glob(f"{name}_*.latent"))[-1]
    return server.load(newest.name)["latent_tensor"]


def total(run, node: str) -> float:
    """The best image's total reward in a Reward Scorer's table."""
    return float(re.findall(r"-?\d+\.\d+", run.text(node))[0])


def ran(server, *graphs_: dict):
    run = server.run({k: v for graph in graphs_ for k, v in graph.items()})
    assert run.status == "success", run.error
    return run


def test_pack_loads_without_a_complaint(server):
    log = server.log.read_text()
    assert "flow-ttrl" in log
    assert "IMPORT FAILED" not in log
    for node in (
        "DemoModel",
        "LoadReward",
        "RewardMixer",
        "RewardScorer",
        "SearchSettings",
        "SDELatentSearch",
    ):
        assert f"TTRL{node}" in server.get(f"/object_info/TTRL{node}").json()


def test_every_input_has_a_tooltip(server):
    info = server.get("/object_info").json()
    ours = {name: node for name, node in info.items() if name.startswith("TTRL")}
    assert len(ours) == 7
    for name, node in ours.items():
        for kind in ("required", "optional"):
            for key, (_, options) in node["input"].get(kind, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"


@pytest.mark.parametrize(("architecture", "cfg"), ARCHITECTURES.items())
def test_search_off_is_stock_euler_bit_for_bit(server, architecture, cfg):
    ran(
        server,
        graphs.demo(architecture, batch=2),
        graphs.stock("stock", 3, STEPS, cfg),
        graphs.search("off", 3, STEPS, cfg, preset="custom", external_reward_timestep=0.0),
    )
    expected = saved(server, "stock")
    assert torch.equal(saved(server, "off"), expected)
    assert torch.equal(saved(server, "off-plain"), expected)


@pytest.mark.parametrize(("architecture", "cfg"), ARCHITECTURES.items())
def test_search_on_raises_the_reward_and_leaves_the_host_as_it_was(server, architecture, cfg):
    gains, demo = [], graphs.demo(architecture)
    ran(server, demo, graphs.stock("before", 7, STEPS, cfg))
    for seed in range(4):
        run = ran(server, demo, graphs.search("on", seed, STEPS, cfg))
        gains.append(total(run, "on searched score") - total(run, "on baseline score"))
        assert not torch.equal(saved(server, "on"), saved(server, "on-plain"))
    assert sum(gains) / len(gains) > 0.02, gains
    again = graphs.stock("after", 7, STEPS, cfg, denoise=0.9999999)
    ran(server, demo, again)
    assert torch.equal(saved(server, "before"), saved(server, "after"))


def test_search_is_reproducible(server):
    demo = graphs.demo()
    ran(server, demo, graphs.search("first", 5, STEPS))
    ran(server, demo, graphs.stock("between", 1, 3))
    ran(server, demo, graphs.search("second", 5, STEPS, target_reward=1e5))
    ran(server, demo, graphs.search("other", 6, STEPS))
    assert torch.equal(saved(server, "first"), saved(server, "second"))
    assert not torch.equal(saved(server, "first"), saved(server, "other"))


def test_exact_gradients_run_and_leave_the_host_as_it_was(server):
    demo = graphs.demo()
    ran(server, demo, graphs.stock("before-exact", 8, STEPS))
    ran(server, demo, graphs.search("paper", 5, STEPS, preset="paper v1"))
    assert not torch.equal(saved(server, "paper"), saved(server, "paper-plain"))
    ran(server, demo, graphs.stock("after-exact", 8, STEPS, denoise=0.9999999))
    assert torch.equal(saved(server, "before-exact"), saved(server, "after-exact"))


def test_batch_item_equals_a_single_run_up_to_rounding(server):
    ran(server, graphs.demo(batch=2), graphs.search("pair", 9, STEPS))
    ran(server, graphs.demo(batch=1), graphs.search("single", 9, STEPS))
    pair, single = saved(server, "pair"), saved(server, "single")
    assert torch.allclose(pair[:1], single, atol=5e-3)


def test_interrupt_stops_at_once_and_the_next_run_is_right(server):
    demo = graphs.demo()
    ran(server, demo, graphs.search("whole", 11, STEPS))
    asked = []

    def interrupt(message):
        if message and message["type"] == "progress" and message["data"]["value"] >= 2:
            if not asked:
                asked.append(time.monotonic())
                server.post("/interrupt", {})

    long = graphs.search("cut", 11, 400)
    run = server.run({**demo, **long}, on_message=interrupt)
    assert asked
    assert "execution_interrupted" in run.kinds()
    assert not run.history["status"]["completed"]
    assert not list((server.base / "output").glob("cut_*"))
    assert not run.history["outputs"]
    ran(server, demo, graphs.search("whole-again", 11, STEPS, target_reward=1e5))
    assert torch.equal(saved(server, "whole"), saved(server, "whole-again"))


def test_progress_and_previews_arrive(server):
    run = ran(server, graphs.demo(), graphs.search("seen", 12, STEPS))
    values = [m["data"]["value"] for m in run.messages if m["type"] == "progress"]
    assert values and values[-1] == STEPS
    assert run.previews >= STEPS


def test_errors_come_before_the_first_model_call(server):
    demo = graphs.demo()
    wrong_prompt = graphs.search("bad", 1, STEPS)
    wrong_prompt["bad search"]["inputs"]["prompt"] = "a cat"
    run = server.run({**demo, **wrong_prompt})
    assert run.status == "error"
    assert "expected a prompt in the words" in run.error
    assert "progress" not in run.kinds()

    too_little = graphs.search("bad", 1, STEPS, max_calls=STEPS - 1)
    run = server.run({**demo, **too_little})
    assert "expected max_calls of at least" in run.error
    assert "progress" not in run.kinds()


def test_mixer_mixes(server):
    mixer = {
        "mixer": {
            "class_type": "TTRLRewardMixer",
            "inputs": {
                "reward_a": ["model", 3],
                **{f"weight_{letter}": 2.0 for letter in "abcd"},
                "white": 0.5,
                "black": 0.0,
                "contrast": 0.0,
                "jpeg_compressibility": 0.0,
                "jpeg_incompressibility": 0.0,
                "verifier": 0.0,
                "scorer": 0.0,
            },
        }
    }
    graph = {**graphs.demo(), **mixer, **graphs.stock("mixed", 2, 4)}
    graph["image"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": ["mixed sampler", 0], "vae": ["model", 2]},
    }
    graph["scores"] = {
        "class_type": "TTRLRewardScorer",
        "inputs": {"images": ["image", 0], "reward": ["mixer", 0], "prompt": graphs.PROMPT},
    }
    run = ran(server, graph)
    header, line = run.text("scores").splitlines()
    values = dict(zip(header.split()[2:], map(float, line.split()[2:]), strict=True))
    assert set(values) == {"total", "verifier", "white"}
    expected = 2 * values["verifier"] + 0.5 * values["white"]
    assert values["total"] == pytest.approx(expected, abs=3e-3)


def test_plot_draws_the_report(server):
    graph = {**graphs.demo(), **graphs.search("plotted", 4, STEPS)}
    graph["plot"] = {
        "class_type": "TTRLRewardPlot",
        "inputs": {"report": ["plotted search", 2], "item": 0},
    }
    graph["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["plot", 0]}}
    run = ran(server, graph)
    image = run.output("shown")["images"][0]
    assert server.view(image)[:4] == b"\x89PNG"
