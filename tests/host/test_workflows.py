"""The example workflows in API form, as the browser tests exported them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DEMO = "01_demo_no_downloads"


def api_form(name: str) -> dict:
    path = Path(__file__).parent / "workflows_api" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_template_browser_lists_every_workflow_with_its_picture(server):
    listed = server.get("/workflow_templates").json()["flow-ttrl"]
    assert sorted(listed) == [path.stem for path in WORKFLOWS]
    for name in listed:
        address = f"/api/workflow_templates/flow-ttrl/{name}"
        assert server.get(f"{address}.json").json()["nodes"]
        assert server.get(f"{address}.jpg").content[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_workflow_runs(server, name):
    run = server.run(api_form(name))
    assert run.status == "success", run.error


def test_demo_search_finds_what_plain_sampling_misses(server):
    graph = api_form(DEMO)
    run = server.run(graph)
    scores = {
        node["_meta"]["title"]: float(run.text(key).splitlines()[1].split()[2])
        for key, node in graph.items()
        if node["class_type"] == "TTRLRewardScorer"
    }
    assert scores["Score the searched image"] > scores["Score the plain image"] + 0.2
