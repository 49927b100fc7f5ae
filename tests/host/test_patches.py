"""Stock nodes between loader and search: every velocity is what a fresh run would give."""

from __future__ import annotations

import graphs
import pytest
import torch
from test_search import ROUNDING, STEPS, ran, report, saved

MODEL = {"model": ["patched", 0]}
ALWAYS = {"start_percent": 0.0, "end_percent": 1.0}
CACHES = ("EasyCache", "LazyCache")


def patched(server, class_type: str, **widgets) -> dict:
    """Node "patched": a stock node with its own defaults after the demo model."""
    info = server.get(f"/object_info/{class_type}").json()[class_type]["input"]
    required = {**info.get("required", {}), **info.get("optional", {})}
    values = {n: o[1]["default"] for n, o in required.items() if len(o) > 1 and "default" in o[1]}
    inputs = {**values, "model": ["model", 0], **widgets}
    return {"patched": {"class_type": class_type, "inputs": inputs}}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_is_bypassed_by_a_search_and_counts_without_one(server, cache):
    """In FLUX, since the host's EasyCache does nothing in SD3."""
    cached = patched(server, cache, reuse_threshold=3.0, start_percent=0.0)
    demo = {**graphs.demo("flux"), **cached}
    run = ran(
        server,
        demo,
        graphs.stock("cached", 3, STEPS, model=["patched", 0]),
        graphs.stock("uncached", 3, STEPS),
        graphs.search("off", 3, STEPS, inputs=MODEL, budget=1.0),
        graphs.search("on", 3, STEPS, inputs=MODEL),
        graphs.search("without", 3, STEPS),
    )
    assert not torch.equal(saved(server, "cached"), saved(server, "uncached"))
    assert torch.equal(saved(server, "off"), saved(server, "cached"))
    assert torch.equal(saved(server, "on"), saved(server, "without"))
    assert torch.equal(saved(server, "on-plain"), saved(server, "uncached"))
    assert report(run, "on")["host"]["bypassed"] == [cache]
    assert "bypassed" not in report(run, "off")["host"]


def test_a_momentum_is_refused_by_name(server):
    demo = {**graphs.demo(), **patched(server, "APG", momentum=-0.5)}
    run = server.run({**demo, **graphs.search("bad", 3, STEPS, inputs=MODEL)})
    error = run.error
    assert "that remembers earlier steps" in error
    assert "APG" in error
    ran(
        server,
        demo,
        graphs.search("off", 3, STEPS, inputs=MODEL, budget=1.0),
        graphs.stock("stock", 3, STEPS, model=["patched", 0]),
    )
    assert torch.equal(saved(server, "off"), saved(server, "stock"))


@pytest.mark.parametrize(
    ("node", "widgets"),
    [
        ("APG", {"momentum": 0.0}),
        ("CFGZeroStar", {}),
        ("TemporalScoreRescaling", {}),
        ("SkipLayerGuidanceDiT", {"double_layers": "1", "rescaling_scale": 0.7, **ALWAYS}),
        ("RescaleCFG", {}),
    ],
)
def test_a_patch_without_a_memory_takes_part(server, node, widgets):
    """Candidates go one by one under it: of these five, two mix or refuse the rows of a batch."""
    demo = {**graphs.demo(), **patched(server, node, **widgets)}
    run = ran(
        server,
        demo,
        graphs.stock("stock", 4, STEPS, model=["patched", 0]),
        graphs.search("on", 4, STEPS, inputs=MODEL),
        graphs.search("again", 5, STEPS, inputs=MODEL),
        graphs.search("without", 4, STEPS),
    )
    host = report(run, "on")["host"]
    assert any(node in name for name in host["patches"])
    assert host["rows_at_once"] == 1
    # a node's own closure is trusted from then on; what else there is has its state elsewhere
    assert host["check_calls"] in (0, 10)
    assert report(run, "again")["host"]["check_calls"] in (0, 10)
    assert torch.equal(saved(server, "on-plain"), saved(server, "stock"))
    assert not torch.allclose(saved(server, "on"), saved(server, "without"), atol=ROUNDING)
    assert report(run, "without")["host"]["check_calls"] == 0


def test_exact_gradients_survive_a_patch_that_writes_in_place(server):
    paper = graphs.defaults(server, "TTRLPaperSettings")
    demo = {
        **graphs.demo("flux"),
        **patched(server, "SkipLayerGuidanceDiT", single_layers="1", rescaling_scale=0.7, **ALWAYS),
    }
    run = ran(server, demo, graphs.search("exact", 4, STEPS, 3.0, inputs=MODEL, settings=paper))
    assert report(run, "exact")["cost"]["backwards"] > 0
