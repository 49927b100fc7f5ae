"""TTRL Sampler in graphs with a sampler of their own, and the text that rewards judge by."""

from __future__ import annotations

import graphs
import pytest
import torch
from graphs import PROMPT, node
from test_search import ROUNDING, STEPS, ran, report, saved


def custom(
    name: str,
    seed: int,
    cfg: float = 3.0,
    *,
    ttrl: dict | None = None,
    result: bool = True,
    **widgets,
) -> dict:
    """SamplerCustomAdvanced by a TTRL Sampler: latents, plain latents and report as of a search."""
    usual = {
        "vae": ["model", 2],
        "reward": ["model", 3],
        "prompt": PROMPT,
        "baseline": True,
        "settings": [f"{name} settings", 0],
    }
    graph = {
        f"{name} settings": graphs.search_settings(**widgets),
        f"{name} ttrl": node("TTRLSampler", **{**usual, **(ttrl or {})}),
        f"{name} noise": node("RandomNoise", noise_seed=seed),
        f"{name} guider": node(
            "CFGGuider",
            model=["model", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            cfg=cfg,
        ),
        f"{name} sigmas": node(
            "BasicScheduler", model=["model", 0], scheduler="simple", steps=STEPS, denoise=1.0
        ),
        f"{name} sampled": node(
            "SamplerCustomAdvanced",
            noise=[f"{name} noise", 0],
            guider=[f"{name} guider", 0],
            sampler=[f"{name} ttrl", 0],
            sigmas=[f"{name} sigmas", 0],
            latent_image=["latent", 0],
        ),
        f"{name} saved": node("SaveLatent", samples=[f"{name} sampled", 0], filename_prefix=name),
    }
    return graph | (outcome(name) if result else {})


def outcome(name: str, sampled: str | None = None) -> dict:
    """TTRL Run Result of ``name``'s handle on the latents of ``sampled``."""
    return {
        f"{name} result": node(
            "TTRLRunResult", run=[f"{name} ttrl", 1], latent=[sampled or f"{name} sampled", 0]
        ),
        f"{name} plain": node(
            "SaveLatent", samples=[f"{name} result", 0], filename_prefix=f"{name}-plain"
        ),
        f"{name} plot": node("TTRLRewardPlot", report=[f"{name} result", 1], item=0),
        f"{name} report": node("PreviewAny", source=[f"{name} plot", 1]),
    }


@pytest.mark.parametrize(("architecture", "cfg"), [("sd3", 3.0), ("flux", 1.0)])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_search_node_bit_for_bit(server, architecture, cfg, batch):
    run = ran(
        server,
        graphs.demo(architecture, batch=batch),
        graphs.search("node", 3, STEPS, cfg),
        custom("own", 3, cfg),
        custom("off", 3, cfg, budget=1.0),
        graphs.stock("stock", 3, STEPS, cfg),
    )
    assert torch.equal(saved(server, "own"), saved(server, "node"))
    assert torch.equal(saved(server, "own-plain"), saved(server, "node-plain"))
    assert torch.equal(saved(server, "off"), saved(server, "stock"))
    ours, theirs = report(run, "own"), report(run, "node")
    for name in ("settings", "rewards", "plain_rewards", "cost", "reward", "versions"):
        assert ours[name] == theirs[name]
    assert set(ours["versions"]) == {"flow_ttrl", "comfyui", "torch"}


def test_a_result_finds_its_run_by_the_latent(server):
    """Also where the sampler's output came out of the cache, and with two on one handle."""
    demo = graphs.demo()
    both = custom("one", 1)
    other = custom("two", 2)
    other["two sampled"]["inputs"]["sampler"] = ["one ttrl", 0]
    del other["two ttrl"], other["two settings"]
    second = outcome("one", "two sampled")
    renamed = {key.replace("one", "two"): value for key, value in second.items()}
    for value in renamed.values():
        for name, given in value["inputs"].items():
            if isinstance(given, list) and given[0] != "one ttrl":
                value["inputs"][name] = [given[0].replace("one", "two"), given[1]]
    renamed["two plain"]["inputs"]["filename_prefix"] = "two-plain"
    run = ran(server, demo, both, {**other, **renamed})
    assert report(run, "one")["seed"] == 1
    assert report(run, "two")["seed"] == 2
    assert not torch.equal(saved(server, "one-plain"), saved(server, "two-plain"))

    first = custom("again", 1, result=False)
    ran(server, demo, first)
    ran(server, demo, custom("again", 2, result=False))
    run = ran(server, demo, first, outcome("again"))
    assert report(run, "again")["seed"] == 1
    assert torch.equal(saved(server, "again-plain"), saved(server, "one-plain"))


def test_two_samplers_that_give_the_same_latent_keep_their_own_runs(server):
    """Both plain samples here, by different strategies of budget 1."""
    one = custom("left", 5, budget=1.0)
    two = custom("right", 5, budget=1.0, strategy="drafts")
    run = ran(server, graphs.demo(), one, two)
    assert torch.equal(saved(server, "left"), saved(server, "right"))
    assert report(run, "left")["settings"]["strategy"] == "steered"
    assert report(run, "right")["settings"]["strategy"] == "drafts"


def test_the_first_half_of_a_schedule_gives_its_clean_estimate(server):
    """`denoised_output` of levels that end above 0: stock's own, and with a search an image too."""

    def half(name: str, sampler: list) -> dict:
        graph = custom(name, 4, result=False, budget=1.0 if name == "off" else 3.0)
        graph[f"{name} split"] = node("SplitSigmas", sigmas=[f"{name} sigmas", 0], step=STEPS // 2)
        graph[f"{name} sampled"]["inputs"] |= {"sampler": sampler, "sigmas": [f"{name} split", 0]}
        graph[f"{name} clean"] = node(
            "SaveLatent", samples=[f"{name} sampled", 1], filename_prefix=f"{name}-clean"
        )
        return graph

    euler = {"euler": node("KSamplerSelect", sampler_name="euler")}
    stock = half("plainly", ["euler", 0])
    off, on = half("off", ["off ttrl", 0]), half("on", ["on ttrl", 0])
    ran(server, graphs.demo(), euler, stock, off, on)
    assert torch.equal(saved(server, "off"), saved(server, "plainly"))
    assert torch.allclose(saved(server, "off-clean"), saved(server, "plainly-clean"), atol=1e-5)
    noisy, clean = saved(server, "on"), saved(server, "on-clean")
    assert clean.std() < 0.9 * noisy.std()


def test_another_latent_has_no_run(server):
    graph = {**graphs.demo(), **custom("own", 3), **outcome("own", "stock sampler")}
    graph |= graphs.stock("stock", 77, STEPS)
    run = server.run(graph)
    assert "Expected the LATENT of a sampler that TTRL Sampler is wired to" in run.error


# The text


def judged(run, name: str) -> list[str]:
    return report(run, name)["reward"]["prompts"]


def test_an_empty_prompt_is_the_text_behind_the_conditioning(server):
    """Through FluxGuidance, a combination and a string node; and edited, the new one."""
    empty = {"prompt": ""}
    through = {
        "text": node("PrimitiveString", value=PROMPT),
        "encoded": node("CLIPTextEncode", clip=["model", 1], text=["text", 0]),
        "guided": node("FluxGuidance", conditioning=["encoded", 0], guidance=3.5),
        "zero": node("ConditioningZeroOut", conditioning=["guided", 0]),
        "both": node(
            "ConditioningCombine", conditioning_1=["guided", 0], conditioning_2=["zero", 0]
        ),
    }
    wired = {**empty, "positive": ["both", 0]}
    run = ran(
        server,
        {**graphs.demo(), **through},
        graphs.search("direct", 3, STEPS, inputs=empty),
        graphs.search("through", 3, STEPS, inputs=wired),
        custom("own", 3, ttrl={**empty, "positive": ["guided", 0]}),
        graphs.search("typed", 3, STEPS),
    )
    for name in ("direct", "through", "own", "typed"):
        assert judged(run, name) == [PROMPT]
    assert torch.equal(saved(server, "direct"), saved(server, "typed"))
    edited = "a green circle left of a blue square"
    run = ran(
        server,
        graphs.demo(prompt=edited),
        graphs.search("direct", 3, STEPS, inputs=empty),
        custom("own", 3, ttrl={**empty, "positive": ["positive", 0]}),
    )
    assert judged(run, "direct") == judged(run, "own") == [edited]


def test_no_text_is_an_error_before_sampling(server):
    graph = {**graphs.demo(), **custom("bad", 3, ttrl={"prompt": ""})}
    run = server.run(graph)
    assert "Expected a prompt to judge images by" in run.error
    assert "progress" not in run.kinds()


def test_a_guider_without_a_negative(server):
    """On the search node, negative left out; cfg must be 1 then."""
    demo = graphs.demo("flux")
    search = graphs.search("without", 3, STEPS, 1.0)
    del search["without search"]["inputs"]["negative"]
    ran(server, demo, search, graphs.search("with", 3, STEPS, 1.0))
    assert torch.allclose(saved(server, "without"), saved(server, "with"), atol=ROUNDING)
    search = graphs.search("bad", 3, STEPS, 2.0)
    del search["bad search"]["inputs"]["negative"]
    run = server.run({**demo, **search})
    assert "expected a negative conditioning for cfg 2" in run.error
