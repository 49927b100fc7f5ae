"""Workflows, peak memory and gradients on a card."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import compared, with_random_models
from graphs import node
from test_search import saved

FULL = 1024
"""Pixels."""
CLOSE = 2e-2
"""Of latents after some steps, where the weights' way to the card is another."""


@pytest.fixture(scope="module")
def server(card):
    with card() as running:
        yield running


@pytest.mark.parametrize("workflow", ["02_sd35_medium", "03_flux_dev", "07_z_image_turbo"])
def test_workflow_runs_at_full_size(server, workflow):
    """As it is but for its files, with nothing run out of memory on the way."""
    graph = with_random_models(workflow, 8, 3.0, FULL)
    plot = next(k for k, one in graph.items() if one["class_type"] == "TTRLRewardPlot")
    graph["told"] = node("PreviewAny", source=[plot, 1])
    run = server.run(graph)
    assert run.status == "success", run.error
    host = json.loads(run.text("told"))["host"]
    assert host["ran_out_of_memory"] == {}
    assert host["peak_memory_gib"] > 0


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_search_off_is_ksampler(server, name):
    run = server.run(compared(name, 6, FULL, budget=2.0))
    assert run.status == "success", run.error
    assert torch.equal(saved(server, f"{name}-on-plain"), saved(server, f"{name}-stock"))


def test_a_group_takes_no_more_memory_than_its_rows(server):
    """Peak memory of six rows at once, against that of one row six times over."""
    peaks = {}
    for rows in (1, 6):
        run = server.run(compared("flux", 4, FULL, budget=4.0, micro_batch=rows))
        assert run.status == "success", run.error
        peaks[rows] = json.loads(run.text("flux-on report"))["host"]["peak_memory_gib"]
    assert peaks[1] < peaks[6] < 6 * peaks[1]


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_gradients_are_the_same_under_streamed_weights(server, card, name):
    """The paper's exact gradients with all weights on the card, and with none that stays there."""
    settings = {
        "scale_factor": 500.0,
        "rl_iterations": 2,
        "beta": 2e-4,
        "noise_range_first": 1.5,
        "noise_range_last": 0.5,
        "group_size": 4,
        "internal_reward_timestep": 0.2,
        "external_reward_timestep": 0.5,
        "gradient": "exact",
    }
    found = {}
    with card("--novram") as streamed:
        for key, where in (("resident", server), ("streamed", streamed)):
            info = where.get("/object_info/TTRLPaperSettings").json()["TTRLPaperSettings"]
            inputs = info["input"]["required"]
            start = {k: o["default"] for k, (_, o) in inputs.items() if "default" in o}
            paper = node("TTRLPaperSettings", **{**start, **settings})
            run = where.run(compared(name, 6, 512, settings=paper))
            assert run.status == "success", run.error
            found[key] = saved(where, f"{name}-on")
    plain = saved(server, f"{name}-on-plain")
    assert (found["resident"] - plain).abs().max() > CLOSE  # the gradients did move it
    assert (found["streamed"] - found["resident"]).abs().max() < CLOSE
