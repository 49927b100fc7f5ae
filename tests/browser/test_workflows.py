"""Every example workflow, opened and run in the real frontend.

Screenshots go to ``out/browser``. With ``FLOW_TTRL_THUMBNAILS=1`` the run also writes each
workflow's thumbnail (``workflows/<name>.jpg``) and its API form (``tests/host/workflows_api``).
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
from graphs import LOADS_QWEN3_VL

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
API = ROOT / "tests" / "host" / "workflows_api"
OUT = ROOT / "out" / "browser"
WRITE = os.environ.get("FLOW_TTRL_THUMBNAILS") == "1"
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 1280, 250_000
DISPLAY_ONLY = {"PreviewAny"}
"""Nodes whose widgets only show results; their number differs between versions."""
LOADERS = {"CheckpointLoaderSimple", "UNETLoader", "DualCLIPLoader", "CLIPLoader", "VAELoader"}
AGAIN = "run the browser tests with FLOW_TTRL_THUMBNAILS=1 to bring it up to date"
NODES2_AS_TALL = 29
"""0.x from which Nodes 2.0 draws nodes as tall as the canvas does; before, it was a trial."""
FRONTEND_ONLY = {"Note", "MarkdownNote"}
"""Nodes that never reach the server."""


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def check_widgets(workflow: dict, loaded: list[dict]) -> None:
    """Every stored value is at its own widget, and every choice is one that there is."""
    stored = {str(node["id"]): node.get("widgets_values", []) for node in workflow["nodes"]}
    for node in loaded:
        if node["type"] in DISPLAY_ONLY:
            continue
        values = [widget["value"] for widget in node["widgets"]]
        assert values == stored[node["id"]], node["title"]
        for widget in node["widgets"]:
            if widget["options"] and node["type"] not in LOADERS:
                assert widget["value"] in widget["options"], f"{node['title']}: {widget['name']}"


def overlaps(loaded: list[dict]) -> list[str]:
    def apart(a, b):
        return (
            a[0] + a[2] <= b[0]
            or b[0] + b[2] <= a[0]
            or a[1] + a[3] <= b[1]
            or (b[1] + b[3] <= a[1])
        )

    return [
        f"{a['title']} ({a['type']}) and {b['title']} ({b['type']})"
        for a, b in itertools.combinations(loaded, 2)
        if not apart(a["box"], b["box"])
    ]


def minor(version: str) -> int:
    """The 29 of 0.29.1."""
    return int(version.split(".")[1])


def outcome(history: dict) -> str:
    """The status, with the error's message if there is one."""
    data = [event[1] for event in history["status"]["messages"]]
    errors = [d["exception_message"] for d in data if "exception_message" in d]
    return ": ".join([history["status"]["status_str"], *errors])


def needs_files(workflow: dict) -> bool:
    """Whether it loads models that have to be downloaded."""
    return any(node["type"] in LOADERS for node in workflow["nodes"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_opens_and_runs(frontend, version, path):
    """Those that need files open too: nothing is amiss but the files of their loaders."""
    workflow = read(path)
    frontend.open(path.name, workflow)
    if needs_files(workflow):  # newer hosts mark the loaders, older ones ask in a dialog
        asked = frontend.dismiss()
        assert not [problem for problem in asked if "unknown type" in problem]
        assert {node["type"] for node in frontend.nodes() if node["errors"]} <= LOADERS
    else:
        assert frontend.problems() == []
    check_widgets(workflow, frontend.nodes())

    prompt = frontend.prompt()
    sent = {str(n["id"]) for n in workflow["nodes"] if n["type"] not in FRONTEND_ONLY}
    assert set(prompt) == sent

    if not needs_files(workflow):
        history = frontend.run()
        assert outcome(history) == "success"
        assert frontend.problems() == []
    mode = "-nodes2" if frontend.nodes2 else ""
    frontend.picture(OUT / f"{path.stem}-{version}{mode}.png", frontend.everything(), 2400)
    assert frontend.complaints == []
    if not (frontend.nodes2 and minor(version) < NODES2_AS_TALL):
        assert overlaps(frontend.nodes()) == []

    form = api_form(prompt)
    if WRITE and not frontend.nodes2:
        write_thumbnail(frontend, path)
        API.mkdir(exist_ok=True)
        text = json.dumps(form, indent=2, ensure_ascii=False)
        (API / path.name).write_text(text + "\n", encoding="utf-8")
    assert same_graph(form, read(API / path.name)), AGAIN


def test_a_vision_language_judge_runs_with_a_tiny_clip(frontend, version, request):
    """Its workflow, the loader swapped for the tests' own: every question stands on the node."""
    if not LOADS_QWEN3_VL:
        pytest.skip("this ComfyUI does not load Qwen3-VL as a CLIP")
    workflow = read(ROOT / "workflows" / "11_ask_a_vlm.json")
    (loader,) = [node for node in workflow["nodes"] if node["type"] == "CLIPLoader"]
    loader |= {"type": "TinyVLM", "widgets_values": [request.getfixturevalue("vlm_weights")]}
    loader |= {"inputs": [], "properties": {}}
    frontend.open("tiny_vlm.json", workflow)
    assert frontend.problems() == []
    history = frontend.run()
    assert outcome(history) == "success"
    shown = [text for output in history["outputs"].values() for text in output.get("text", ())]
    for question in ("exactly two squares", "Are both squares red?", "not: Is there a circle?"):
        assert any(f"vlm: {question}" in text for text in shown)
    mode = "-nodes2" if frontend.nodes2 else ""
    frontend.picture(OUT / f"vlm-{version}{mode}.png", frontend.everything(), 2400)
    assert frontend.complaints == []


def test_finish_now_is_a_button(frontend):
    """It ends the running search, and its place is not among the stored values."""
    workflow = read(ROOT / "workflows" / "10_best_of_n_against_search.json")
    frontend.open("finish.json", workflow)
    pressed = frontend.page.evaluate(
        """() => app.graph._nodes.filter(n => n.type === "TTRLSDELatentSearch").map(n =>
          n.widgets.filter(w => w.type === "button").map(w => [w.name, w.callback()].length))"""
    )
    assert pressed == [[2], [2]]
    saved = frontend.page.evaluate("() => app.graph.serialize()")
    for node, stored in zip(saved["nodes"], workflow["nodes"], strict=True):
        if node["type"] == "TTRLSDELatentSearch":
            wanted = stored["widgets_values"]
            values = node["widgets_values"]  # the host's own line of text may stand behind them
            assert values[: len(wanted)] == wanted
            assert all(value is None or isinstance(value, str) for value in values[len(wanted) :])


def api_form(prompt: dict) -> dict:
    """``prompt`` without what only one version's widgets put in."""
    for node in prompt.values():
        if node["class_type"] in DISPLAY_ONLY:
            node["inputs"] = {k: v for k, v in node["inputs"].items() if isinstance(v, list)}
    return prompt


def same_graph(one: dict, other: dict) -> bool:
    """Equal but for inputs of stock nodes that only one of two versions has."""
    if set(one) != set(other):
        return False
    for key, node in one.items():
        mine, theirs = node["inputs"], other[key]["inputs"]
        if node["class_type"] != other[key]["class_type"]:
            return False
        if node["class_type"].startswith("TTRL") and set(mine) != set(theirs):
            return False
        if any(mine[name] != theirs[name] for name in set(mine) & set(theirs)):
            return False
    return True


def write_thumbnail(frontend, path: Path) -> None:
    """The group "... Compare", or everything where there is none, or nothing was run."""
    target = path.with_suffix(".jpg")
    shown = None if needs_files(read(path)) else frontend.group("Compare")
    box = shown or frontend.everything()
    frontend.picture(target, box, THUMBNAIL_WIDTH)
    assert target.stat().st_size < THUMBNAIL_BYTES


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_its_thumbnail(path):
    assert path.with_suffix(".jpg").exists(), AGAIN
    assert path.with_suffix(".jpg").stat().st_size < THUMBNAIL_BYTES


def test_a_missing_node_is_noticed(frontend):
    """The check of the checks: a node that no pack has does not pass."""
    workflow = read(WORKFLOWS[0])
    workflow["nodes"][0]["type"] = "NoPackHasThisNode"
    frontend.open("missing.json", workflow)
    problems = frontend.problems()
    assert "unknown type NoPackHasThisNode" in problems
    assert any(problem.startswith("dialog") for problem in problems)


def test_blueprint_takes_ksamplers_place(frontend):
    """The host offers it; wired up by hand it runs, its prompt read through its border."""
    (blueprint,) = (ROOT / "subgraphs").glob("*.json")
    offered = frontend.server.get("/global_subgraphs").json()
    assert blueprint.stem in {entry["name"] for entry in offered.values()}
    frontend.open("blueprint.json", read(blueprint))
    frontend.page.evaluate(
        """() => {
          const add = (type, x, y, values = {}) => {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            node.pos = [x, y];
            for (const w of node.widgets ?? []) if (w.name in values) w.value = values[w.name];
            return node;
          };
          const block = app.graph._nodes[0];
          const model = add("TTRLDemoModel", -900, 0);
          const yes = add("CLIPTextEncode", -500, 0, {text: "a red circle left of a blue square"});
          const no = add("CLIPTextEncode", -500, 260);
          const latent = add("EmptySD3LatentImage", -500, 520, {width: 96, height: 96});
          const wire = (from, slot, to, name) => from.connect(slot, to, to.findInputSlot(name));
          for (const encoder of [yes, no]) wire(model, 1, encoder, "clip");
          wire(model, 0, block, "model");
          wire(yes, 0, block, "positive");
          wire(no, 0, block, "negative");
          wire(latent, 0, block, "latent_image");
          wire(model, 2, block, "vae");
          wire(model, 3, block, "reward");
          for (const [slot, y] of [[0, 0], [1, 340], [2, 680]])
            wire(block, slot, add("PreviewImage", 500, y), "images");
        }"""
    )
    history = frontend.run()
    assert outcome(history) == "success"
    images = [o for output in history["outputs"].values() for o in output.get("images", [])]
    assert len(images) == 3
    mode = "-nodes2" if frontend.nodes2 else ""
    frontend.picture(OUT / f"blueprint{mode}.png", frontend.everything(), 1600)
    assert frontend.complaints == []
