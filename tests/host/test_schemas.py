"""What saved workflows rely on, and what every node comes with.

Workflows name nodes by id and store widget values by position. The snapshot is renewed, while
nothing has been released, by ``FLOW_TTRL_SCHEMAS=1`` and a run of this file.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import FOLDER

from flow_ttrl.sampling.strategies.flow_ttrl import FlowTTRL
from flow_ttrl.sampling.strategies.steered import Steered

SNAPSHOT = Path(__file__).parent / "schemas.json"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def ours(server) -> dict[str, dict]:
    info = server.get("/object_info").json()
    return {name: node for name, node in sorted(info.items()) if name.startswith("TTRL")}


def shape(node: dict) -> dict:
    """Inputs in order, each with type and default, and outputs; no text."""
    inputs = []
    for kind in ("required", "optional"):
        for name in node["input_order"].get(kind, []):
            type_, *rest = node["input"][kind][name]
            options = rest[0] if rest else {}
            type_ = "COMBO" if isinstance(type_, list) else type_
            default = options.get("default") if type_ in WIDGETS else None
            inputs.append([name, kind, type_, default])
    outputs = [list(pair) for pair in zip(node["output_name"], node["output"], strict=True)]
    return {"name": node["display_name"], "inputs": inputs, "outputs": outputs}


def test_schemas_are_as_saved_workflows_know_them(ours):
    """But for the reward that comes first, which depends on the files that are there."""
    found = {name: shape(node) for name, node in ours.items()}
    found["TTRLLoadReward"]["inputs"][0][3] = None
    if os.environ.get("FLOW_TTRL_SCHEMAS") == "1":
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text("utf-8"))


@pytest.mark.parametrize(
    ("node", "kind"), [("TTRLSteeredSettings", Steered), ("TTRLPaperSettings", FlowTTRL)]
)
def test_widgets_have_the_ranges_that_settings_accept(ours, node, kind):
    """But for beta1 and beta2, which may be -1 too: as beta."""
    inputs = ours[node]["input"]["required"]
    for one in fields(kind):
        pair = isinstance(one.default, tuple)
        for name in (f"{one.name}_first", f"{one.name}_last") if pair else (one.name,):
            options = inputs[name][1]
            if "range" in one.metadata:
                low, high = one.metadata["range"]
                low = -1 if one.name in ("beta1", "beta2") else low
                assert (options["min"], options["max"]) == (low, high), name


def test_every_node_has_a_help_page_in_two_languages(server, ours):
    for name in ours:
        for page in (f"{name}.md", f"{name}/zh.md"):
            text = server.get(f"/extensions/{FOLDER}/docs/{page}").text
            assert text.startswith("# "), page


def test_translations_name_what_there_is(server, ours):
    told = server.get("/i18n").json()["zh"]["nodeDefs"]
    assert {name for name in told if name.startswith("TTRL")} == set(ours)
    for name, node in ours.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert set(told[name]["inputs"]) <= set(inputs), name
        assert len(told[name]["outputs"]) == len(node["output"]), name


@pytest.mark.parametrize("word", ["ttrl", "best of n", "reward", "prompt"])
def test_nodes_are_found_by_what_people_type(ours, word):
    def told(node: dict) -> str:
        return " ".join(
            [node["display_name"], node["description"], *node.get("search_aliases", [])]
        )

    assert any(word in told(node).lower() for node in ours.values())
