"""The search in a real ComfyUI server."""

from __future__ import annotations

import json
import re

import graphs
import pytest
import torch
from conftest import FOLDER

STEPS = 10
ARCHITECTURES = {"sd3": 3.0, "flux": 1.0}
NODES = (
    "DemoModel",
    "LoadReward",
    "RewardMixer",
    "RewardScorer",
    "SearchSettings",
    "PaperSettings",
    "SteeredSettings",
    "SDELatentSearch",
    "RewardPlot",
    "Sampler",
    "RunResult",
    "SaveImage",
    "VLMReward",
)
ROUNDING = 5e-3
"""Of latents, whose standard deviation is about 1, after some steps in batches of another size."""


def saved(server, name: str) -> torch.Tensor:
    """The newest latent saved under ``name``."""
    newest = sorted((server.base / "output").glob(f"{name}_*.latent"))[-1]
    return server.load(newest.name)["latent_tensor"]


def total(run, node: str) -> float:
    """The best image's total reward in a Reward Scorer's table."""
    return float(re.findall(r"-?\d+\.\d+", run.text(node))[0])


def report(run, name: str) -> dict:
    return json.loads(run.text(f"{name} report"))


def ran(server, *graphs_: dict):
    run = server.run({k: v for graph in graphs_ for k, v in graph.items()})
    assert run.status == "success", run.error
    return run


def refused(server, *graphs_: dict) -> str:
    """The error that ends a run before the first model call."""
    run = server.run({k: v for graph in graphs_ for k, v in graph.items()})
    assert run.status == "error"
    assert "progress" not in run.kinds()
    return run.error


@pytest.fixture(scope="module")
def strategies(server) -> list[str]:
    """Every strategy that ComfyUI can carry out, as the settings node offers them."""
    info = server.get("/object_info/TTRLSearchSettings").json()["TTRLSearchSettings"]
    kind, options = info["input"]["required"]["strategy"]
    names = options["options"] if kind == "COMBO" else kind
    assert names[0] == "steered"
    return [name for name in names if name != "reward_gradient"]


def test_pack_loads_without_a_complaint(server):
    log = server.log.read_text()
    assert FOLDER in log
    assert "IMPORT FAILED" not in log


def test_every_input_has_a_tooltip(server):
    info = server.get("/object_info").json()
    ours = {name: node for name, node in info.items() if name.startswith("TTRL")}
    assert set(ours) == {f"TTRL{name}" for name in NODES}
    for name, node in ours.items():
        for kind in ("required", "optional"):
            for key, (_, options) in node["input"].get(kind, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"


# Plain sampling


@pytest.mark.parametrize(("architecture", "cfg"), ARCHITECTURES.items())
def test_search_off_is_stock_euler_bit_for_bit(server, strategies, architecture, cfg):
    searches = [
        graphs.search(f"off-{name}", 3, STEPS, cfg, strategy=name, budget=1.0)
        for name in strategies
    ]
    ran(server, graphs.demo(architecture, batch=2), graphs.stock("stock", 3, STEPS, cfg), *searches)
    expected = saved(server, "stock")
    for name in strategies:
        assert torch.equal(saved(server, f"off-{name}"), expected), name
        assert torch.equal(saved(server, f"off-{name}-plain"), expected), name


@pytest.mark.parametrize("denoise", [0.3, 1.0])
def test_the_start_is_the_hosts_own_bit_for_bit(server, denoise):
    """With images, of which a mask keeps a half, in place of an empty latent."""
    ran(
        server,
        {**graphs.demo(batch=2), **graphs.inpainting(2)},
        graphs.stock("stock", 3, STEPS, denoise=denoise),
        graphs.search("off", 3, STEPS, inputs={"denoise": denoise}, budget=1.0),
        graphs.search("on", 3, STEPS, inputs={"denoise": denoise}),
    )
    expected = saved(server, "stock")
    assert torch.equal(saved(server, "off"), expected)
    assert torch.equal(saved(server, "off-plain"), expected)
    assert torch.equal(saved(server, "on-plain"), expected)
    assert not torch.equal(saved(server, "on"), expected)


# Searching


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


@pytest.mark.parametrize(("architecture", "cfg"), ARCHITECTURES.items())
def test_every_strategy_runs(server, strategies, architecture, cfg):
    searches = [
        graphs.search(f"by-{name}", 3, STEPS, cfg, strategy=name, budget=3.0) for name in strategies
    ]
    run = ran(server, graphs.demo(architecture, batch=2), *searches)
    for name in strategies:
        told = report(run, f"by-{name}")
        assert told["settings"]["strategy"] == name
        assert 1.2 < told["cost"]["times_plain"] <= 3
        assert len(told["search_steps"]) > 0
        assert len(told["rewards"]) == len(told["plain_rewards"]) == 2
        latent = saved(server, f"by-{name}")
        assert latent.isfinite().all()
        assert not torch.equal(latent, saved(server, f"by-{name}-plain")), name


def test_a_strategy_that_needs_the_rewards_gradient_is_refused(server):
    search = graphs.search("bad", 3, STEPS, strategy="reward_gradient")
    error = refused(server, graphs.demo(), search)
    assert "ComfyUI does not offer" in error
    assert "choose another strategy" in error


def test_default_settings_run(server):
    """Without a settings node, and with the three as they come."""
    searches = {
        "unwired": graphs.search("unwired", 3, STEPS),
        "search": graphs.search(
            "search", 3, STEPS, settings=graphs.defaults(server, "TTRLSearchSettings")
        ),
        "steered": graphs.search(
            "steered", 3, STEPS, settings=graphs.defaults(server, "TTRLSteeredSettings")
        ),
        "paper": graphs.search(
            "paper", 3, STEPS, settings=graphs.defaults(server, "TTRLPaperSettings")
        ),
    }
    del searches["unwired"]["unwired search"]["inputs"]["settings"]
    run = ran(server, graphs.demo(), *searches.values())
    told = {name: report(run, name)["settings"] for name in searches}
    assert told["unwired"]["strategy"] == "steered"
    assert told["unwired"]["budget"] == 6
    assert told["unwired"]["keep_better"]
    assert told["search"] == told["steered"] == told["unwired"]
    assert told["unwired"]["micro_batch"] == 0
    for name in ("search", "steered"):
        assert torch.equal(saved(server, name), saved(server, "unwired"))
    paper = told["paper"]
    assert (paper["strategy"], paper["budget"], paper["keep_better"]) == ("flow_ttrl", 0, True)
    assert paper["parameters"]["beta1"] == paper["parameters"]["beta2"] == 2e-4
    assert paper["parameters"]["noise_range"] == [1.5, 0.5]


def test_a_reports_settings_give_the_same_image(server):
    paper = graphs.defaults(
        server, "TTRLPaperSettings", beta=0.01, beta2=0.0, noise_range_last=0.4, clip=0.1
    )
    limits = graphs.search_settings(keep_better=True, micro_batch=2, strategy="drafts")
    paper["inputs"]["settings"] = ["limits", 0]
    run = ran(
        server, graphs.demo(), {"limits": limits}, graphs.search("told", 5, STEPS, settings=paper)
    )
    settings = report(run, "told")["settings"]
    assert settings["strategy"] == "flow_ttrl"
    assert settings["keep_better"]
    assert settings["micro_batch"] == 2
    parameters = settings["parameters"]
    assert (parameters["beta1"], parameters["beta2"], parameters["clip"]) == (0.01, 0.0, 0.1)
    assert parameters["noise_range"] == [1.5, 0.4]
    again = graphs.search("again", 5, STEPS, settings_json=json.dumps(settings))
    run = ran(server, graphs.demo(), again)
    assert report(run, "again")["settings"] == settings
    assert torch.equal(saved(server, "told"), saved(server, "again"))


def test_search_is_reproducible(server):
    demo = graphs.demo()
    ran(server, demo, graphs.search("first", 5, STEPS))
    ran(server, demo, graphs.stock("between", 1, 3))
    ran(server, demo, graphs.search("second", 5, STEPS, target_reward=1e5))
    ran(server, demo, graphs.search("other", 6, STEPS))
    assert torch.equal(saved(server, "first"), saved(server, "second"))
    assert not torch.equal(saved(server, "first"), saved(server, "other"))


@pytest.mark.parametrize(("architecture", "cfg"), ARCHITECTURES.items())
def test_exact_gradients_run_and_leave_the_host_as_it_was(server, architecture, cfg):
    demo = graphs.demo(architecture, batch=2)
    ran(server, demo, graphs.stock("before-exact", 8, STEPS, cfg))
    paper = graphs.defaults(server, "TTRLPaperSettings")
    run = ran(server, demo, graphs.search("paper", 5, STEPS, cfg, settings=paper))
    assert report(run, "paper")["cost"]["backwards"] > 0
    assert not torch.equal(saved(server, "paper"), saved(server, "paper-plain"))
    ran(server, demo, graphs.stock("after-exact", 8, STEPS, cfg, denoise=0.9999999))
    assert torch.equal(saved(server, "before-exact"), saved(server, "after-exact"))


@pytest.mark.parametrize("strategy", ["steered", "rbf", "flow_ttrl"])
def test_batch_item_equals_a_single_run(server, strategy):
    """Each of three images, with its own noise, image and mask; rbf leaves items out on the way."""
    graph = {**graphs.demo(batch=3), **graphs.inpainting(3)}
    inputs = {"denoise": 0.9}
    graph |= graphs.search("trio", 9, STEPS, inputs=inputs, strategy=strategy)
    for item in range(3):
        inputs = {"denoise": 0.9, "latent_image": [f"item {item}", 0]}
        graph |= graphs.only(item)
        graph |= graphs.search(f"single{item}", 9, STEPS, inputs=inputs, strategy=strategy)
    run = ran(server, graph)
    trio, plain = saved(server, "trio"), saved(server, "trio-plain")
    for item in range(3):
        single = saved(server, f"single{item}")[0]
        assert not torch.allclose(single, plain[item], atol=10 * ROUNDING)
        assert torch.allclose(trio[item], single, atol=ROUNDING), item
        reward = report(run, f"single{item}")["rewards"][0]
        assert report(run, "trio")["rewards"][item] == pytest.approx(reward, abs=ROUNDING)


def test_no_toggle_changes_the_searched_image(server):
    ran(
        server,
        graphs.demo(batch=2),
        graphs.search("usual", 9, STEPS),
        graphs.search("alone", 9, STEPS, inputs={"baseline": False}),
        graphs.search("small", 9, STEPS, micro_batch=1),
        graphs.search("limited", 9, STEPS, max_seconds=3600.0, target_reward=1e5),
    )
    usual = saved(server, "usual")
    assert torch.equal(saved(server, "alone"), usual)
    assert torch.equal(saved(server, "limited"), usual)
    assert torch.allclose(saved(server, "small"), usual, atol=ROUNDING)
    assert not list((server.base / "output").glob("alone-plain*"))


def test_keep_better_never_scores_below_plain(server):
    """Also where the search does harm, and for each image of a batch."""
    harm = graphs.defaults(server, "TTRLPaperSettings", scale_factor=1e5, gradient="jacobian_free")
    harm["inputs"]["settings"] = ["limits", 0]
    limits = {"limits": graphs.search_settings(keep_better=True)}
    demo = graphs.demo(batch=4)
    weak = graphs.search("weak", 4, STEPS, keep_better=True, strategy="particles", budget=2.0)
    run = ran(server, demo, limits, weak, graphs.search("harm", 4, STEPS, settings=harm))
    for name in ("weak", "harm"):
        told = report(run, name)
        assert all(a >= b for a, b in zip(told["rewards"], told["plain_rewards"], strict=True))
        latent, plain = saved(server, name), saved(server, f"{name}-plain")
        for item, kept in enumerate(told["kept_plain"]):
            assert torch.equal(latent[item], plain[item]) == kept
    assert any(report(run, "harm")["kept_plain"])


# On the way


def test_interrupt_stops_at_once_and_the_next_run_is_right(server):
    demo = graphs.demo()
    ran(server, demo, graphs.search("whole", 11, STEPS))
    seen = []

    def interrupt(message):
        if message and message["type"] == "progress":
            seen.append(message["data"])
            if seen[-1]["value"] >= 2 > (seen[-2]["value"] if seen[1:] else 0):
                server.post("/interrupt", {})

    long = graphs.search("cut", 11, 400, keep_better=True)
    run = server.run({**demo, **long}, on_message=interrupt)
    assert 2 <= seen[-1]["value"] < seen[-1]["max"] / 4
    assert "execution_interrupted" in run.kinds()
    assert not run.history["status"]["completed"]
    assert not list((server.base / "output").glob("cut*"))
    assert not run.history["outputs"]
    ran(server, demo, graphs.search("whole-again", 11, STEPS, target_reward=1e5))
    assert torch.equal(saved(server, "whole"), saved(server, "whole-again"))


def test_progress_and_previews_arrive(server, strategies):
    names = {name: f"seen-{name}" for name in strategies}
    searches = [graphs.search(seen, 12, STEPS, strategy=name) for name, seen in names.items()]
    run = ran(server, graphs.demo(), *searches)
    told = [m["data"] for m in run.messages if m["type"] == "progress"]
    for name, seen in names.items():
        values = [data["value"] for data in told if data["node"] == f"{seen} search"]
        assert values == sorted(values), name
        assert len(set(values)) > 2, name
        assert 1 <= values[0] < STEPS, name
        cost = report(run, seen)
        planned = cost["planned_calls"] + cost["plain_calls"] + cost["host"]["check_calls"]
        assert {data["max"] for data in told if data["node"] == f"{seen} search"} == {planned}
        assert values[-1] == planned, name
    assert run.previews >= STEPS * len(names)


def test_finish_now_keeps_the_best_so_far(server):
    asked = []

    def finish(message):
        if (
            message
            and message["type"] == "progress"
            and message["data"]["value"] > 60
            and not asked
        ):
            asked.append(server.post("/flow-ttrl/finish", {}).json())

    long = graphs.search("finished", 11, 30, strategy="zero_order", budget=20.0)
    run = server.run({**graphs.demo(), **long}, on_message=finish)
    assert run.status == "success", run.error
    assert asked == [{"asked": True}]
    told = report(run, "finished")
    assert told["stopped"] == "finish_now"
    assert told["cost"]["times_plain"] < 15
    assert told["rewards"][0] >= told["plain_rewards"][0]
    assert "stopped by finish_now" in told["host"]["verdict"]
    again = ran(server, graphs.demo(), graphs.search("unfinished", 11, STEPS))
    assert report(again, "unfinished")["stopped"] is None


def test_the_last_candidates_can_be_looked_at(server):
    """All that were judged together, be it one by one."""
    names = ("seen", "apart", "one")
    sheets = {f"{n} sheet": graphs.node("PreviewImage", images=[f"{n} search", 3]) for n in names}
    demo = graphs.demo(batch=2)
    apart = graphs.search("apart", 3, STEPS, micro_batch=1)
    one = graphs.search("one", 3, STEPS, budget=1.0)
    run = ran(server, demo, graphs.search("seen", 3, STEPS), apart, one, sheets)
    for name in names[:2]:
        judged = report(run, name)["search_steps"][-1]["rewards"]
        assert len(judged[0]) > 1
        assert len(run.output(f"{name} sheet")["images"]) == sum(len(item) for item in judged)
    assert "one sheet" not in run.history["outputs"]


# What is refused


def test_errors_come_before_the_first_model_call(server):
    demo = graphs.demo()
    wrong_prompt = graphs.search("bad", 1, STEPS, inputs={"prompt": "a cat"})
    assert "expected a prompt in the words" in refused(server, demo, wrong_prompt)
    not_json = graphs.search("bad", 1, STEPS, settings_json="budget: 3")
    assert "expected settings_json to be JSON" in refused(server, demo, not_json)
    unknown = graphs.search("bad", 1, STEPS, settings_json='{"strategy": "guessing"}')
    assert "expected a strategy out of steered" in refused(server, demo, unknown)
    half = graphs.search("bad", 1, STEPS, settings_json='{"budget": 0.5}')
    assert "expected budget within 1..1000" in refused(server, demo, half)
    lonely = '{"strategy": "flow_ttrl", "parameters": {"group_size": 1}}'
    alone = graphs.search("bad", 1, STEPS, settings_json=lonely)
    assert "expected group_size within 2..256" in refused(server, demo, alone)


def test_a_target_needs_a_reward_of_fixed_scale(server):
    weights = {f"weight_{letter}": 1.0 for letter in "abcdefgh"}
    inputs = {**weights, "reward_a": ["model", 3], "mode": "rank"}
    mixer = {"mixer": {"class_type": "TTRLRewardMixer", "inputs": inputs}}
    search = graphs.search("bad", 1, STEPS, inputs={"reward": ["mixer", 0]}, target_reward=0.9)
    assert "take mode 'raw' or clear it" in refused(server, graphs.demo(), mixer, search)


def patched(server, class_type: str, **inputs) -> dict:
    node = {"class_type": class_type, "inputs": {"model": ["model", 0], **inputs}}
    search = graphs.search("bad", 1, STEPS, inputs={"model": ["patched", 0]})
    return {**graphs.demo(), "patched": node, **search}


def test_a_model_of_another_kind_is_refused(server):
    graph = patched(server, "ModelSamplingDiscrete", sampling="eps", zsnr=False)
    assert "Expected a flow-matching MODEL" in refused(server, graph)


def test_a_model_on_scaled_noise_is_refused(server):
    if "ModelNoiseScale" not in server.get("/object_info").json():
        pytest.skip("this host has no scaled noise")
    graph = patched(server, "ModelNoiseScale", noise_scale=8.0)
    assert "got one of 8" in refused(server, graph)


def test_mixer_mixes(server):
    """Also two of one kind; of one that comes in twice the weights add up."""

    def loaded(reward: str, text: str = "") -> dict:
        return graphs.node(
            "TTRLLoadReward", reward=reward, path="", text=text, preprocess="official"
        )

    sockets = {"reward_a": ["model", 3], "reward_b": ["again", 0], "reward_d": ["model", 3]}
    weights = {f"weight_{letter}": 1.0 for letter in "abcdefgh"} | {"weight_b": 0.5}
    inputs = {**sockets, "reward_c": ["white", 0], **weights, "mode": "raw"}
    mixer = {
        "mixer": graphs.node("TTRLRewardMixer", **inputs),
        "white": loaded("white"),
        "again": loaded("verifier"),
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
    assert set(values) == {"total", "verifier", "verifier_2", "white"}
    assert values["verifier"] == values["verifier_2"]
    expected = 2.5 * values["verifier"] + values["white"]
    assert values["total"] == pytest.approx(expected, abs=3e-3)


def test_plot_draws_the_report(server):
    run = ran(server, graphs.demo(), graphs.search("plotted", 4, STEPS))
    image = run.output("plotted plotted")["images"][0]
    assert server.view(image)[:4] == b"\x89PNG"
    told = report(run, "plotted")
    assert told["reward"]["weights"] == {"verifier": 1.0}
    assert told["search_steps"]
