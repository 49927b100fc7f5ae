"""The real frontend of a real ComfyUI server, in headless Chromium.

Needs ``COMFYUI_PATH``, the Python package ``playwright`` and a Chromium: ``CHROMIUM`` names its
program, else the first one on the path is taken; none is ever downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
RUN_SECONDS = 300
VIEWPORT = {"width": 1920, "height": 1000}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.Persist": False,
}
"""Of the frontend: no welcome dialog, nothing over the canvas, no workflow of an earlier page."""


def _host_conftest():
    spec = importlib.util.spec_from_file_location(
        "flow_ttrl_host_conftest", HERE.parent / "host" / "conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_host = _host_conftest()
home, python, server, in_host = _host.home, _host.python, _host.server, _host.in_host
vlm_folder, vlm_measured, vlm_weights = _host.vlm_folder, _host.vlm_measured, _host.vlm_weights


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _missing() -> list[str]:
    missing = []
    if "COMFYUI_PATH" not in os.environ:
        missing.append("set COMFYUI_PATH to a ComfyUI checkout")
    if importlib.util.find_spec("playwright") is None:
        missing.append("pip install playwright")
    if chromium() is None:
        missing.append("install Chromium or set CHROMIUM to its program")
    return missing


def pytest_collection_modifyitems(config, items):
    missing = _missing()
    if not missing:
        return
    reason = "NO BROWSER TESTS: to run them, " + " and ".join(missing)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def version(home) -> str:
    """The host's version, such as 0.29.1."""
    return re.search(r'"(.+)"', (home / "comfyui_version.py").read_text())[1]


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session", params=["classic", "nodes2"])
def frontend(request, server, browser):
    """The frontend, drawn on a canvas and as "Nodes 2.0". One page each: loading takes longest."""
    with opened(server, browser, nodes2=request.param == "nodes2") as page:
        yield page


@contextmanager
def opened(server, browser, nodes2: bool):
    for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": nodes2}.items():
        assert server.post(f"/settings/{name}", value).ok
    page = browser.new_page(viewport=VIEWPORT)
    try:
        yield Frontend(server, page, nodes2)
    finally:
        page.close()


class Frontend:
    """One page of the frontend.

    Attributes:
        complaints: errors on its console since the last workflow was opened.
    """

    def __init__(self, server, page, nodes2: bool):
        self.server, self.page, self.nodes2 = server, page, nodes2
        self.complaints: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"http://{server.address}/")
        page.wait_for_function(
            "() => window.app?.vueAppReady && app.graph && app.extensionManager"
            " && window.LiteGraph?.registered_node_types.TTRLSDELatentSearch",
            timeout=120_000,
        )
        page.wait_for_timeout(1500)

    def _console(self, message):
        # Frontends look for workflows' models on hosts that their own policy forbids, or that are
        # out of reach: the files are not what is tested.
        where = message.location.get("url") or ""
        aside = ("Content Security Policy", "Error fetching file size")
        if message.type != "error" or "huggingface.co" in where:
            return
        if not any(words in message.text for words in aside):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def _focus(self, on: bool) -> None:
        """Focus mode: no menus, but no word of missing nodes either."""
        if self.page.evaluate("() => app.extensionManager.focusMode") != on:
            self.page.evaluate(
                "() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')"
            )

    def open(self, name: str, workflow: dict) -> None:
        """Open ``workflow`` as if its file had been dropped on the canvas."""
        self.page.set_viewport_size(VIEWPORT)
        self._focus(False)
        self.page.evaluate("() => app.graph.clear()")
        self.complaints.clear()
        self.page.evaluate(
            """([name, text]) =>
            app.handleFile(new File([text], name, {type: 'application/json'}))""",
            [name, json.dumps(workflow)],
        )
        self.page.wait_for_function(
            "count => app.graph._nodes.length === count", arg=len(workflow["nodes"])
        )
        self.page.wait_for_timeout(1000)

    def problems(self) -> list[str]:
        """Missing nodes, nodes with errors, dialogs and alerts."""
        found = self.page.evaluate(
            """() => app.graph._nodes.flatMap(n => [
              ...(n.type in LiteGraph.registered_node_types ? [] : [`unknown type ${n.type}`]),
              ...(n.has_errors ? [`${n.title} has errors`] : []),
            ])"""
        )
        for selector in ('[role="dialog"]', '[data-testid="error-overlay"]', ".p-toast-message"):
            for shown in self.page.locator(selector).all():
                if shown.is_visible():
                    found.append(f"dialog: {shown.inner_text()[:200]}")
        return found

    def dismiss(self) -> list[str]:
        """Problems that are shown on opening, put out of sight."""
        found = self.problems()
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(300)
        return found

    def nodes(self) -> list[dict]:
        """Every node as loaded: id, type, title, box (with its title bar), errors, widgets."""
        return self.page.evaluate(
            """() => app.graph._nodes.map(n => ({
              id: String(n.id), type: n.type, title: n.title, box: [...n.boundingRect],
              errors: Boolean(n.has_errors),
              widgets: (n.widgets ?? []).filter(w => w.serialize !== false).map(w => ({
                name: w.name, type: w.type, value: w.value ?? null,
                options: Array.isArray(w.options?.values) ? w.options.values : null,
              })),
            }))"""
        )

    def prompt(self) -> dict:
        """The open workflow in API format."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def run(self) -> dict:
        """Queue the open workflow and wait for its end: its history entry."""
        with self.page.expect_response(
            lambda r: r.request.method == "POST" and r.url.endswith("/prompt")
        ) as answer:
            self.page.evaluate("() => app.queuePrompt(0, 1)")
        assert answer.value.ok, answer.value.text()
        prompt_id = answer.value.json()["prompt_id"]
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            history = self.server.get(f"/history/{prompt_id}").json()
            if prompt_id in history:
                self.page.wait_for_timeout(2500)
                return history[prompt_id]
            self.page.wait_for_timeout(250)
        raise AssertionError(f"{prompt_id} did not end within {RUN_SECONDS} s")

    def group(self, ending: str) -> list[float] | None:
        """The box of the first group whose title ends so."""
        return self.page.evaluate(
            """ending => {
              const g = app.graph._groups.find(g => g.title.endsWith(ending));
              return g ? [...g.pos, ...g.size] : null;
            }""",
            ending,
        )

    def everything(self) -> list[float]:
        """The box around every node and group."""
        return self.page.evaluate(
            """() => {
              const boxes = [...app.graph._nodes.map(n => [...n.boundingRect]),
                ...app.graph._groups.map(g => [...g.pos, ...g.size])];
              const left = Math.min(...boxes.map(b => b[0]));
              const top = Math.min(...boxes.map(b => b[1]));
              return [left, top, Math.max(...boxes.map(b => b[0] + b[2])) - left,
                Math.max(...boxes.map(b => b[1] + b[3])) - top];
            }"""
        )

    def picture(self, path: Path, box: list[float], width: int, margin: int = 20) -> None:
        """A picture, ``width`` pixels wide, of a part of the graph without menus."""
        left, top, w, h = box[0] - margin, box[1] - margin, box[2] + 2 * margin, box[3] + 2 * margin
        scale = width / w
        height = round(h * scale)
        # Focus mode leaves a button in the upper right corner: room for it, outside of the clip.
        gap = 70
        self.page.set_viewport_size({"width": width + 2 * gap, "height": height + 2 * gap})
        self._focus(True)
        self.page.wait_for_timeout(500)
        at = self.page.evaluate(
            """([left, top, scale, gap]) => {
              app.canvas.deselectAll?.();
              const ds = app.canvas.ds, frame = app.canvas.canvas.getBoundingClientRect();
              ds.scale = scale;
              ds.offset[0] = (gap - frame.left) / scale - left;
              ds.offset[1] = (gap - frame.top) / scale - top;
              app.canvas.setDirty(true, true);
              return [gap, gap];
            }""",
            [left, top, scale, gap],
        )
        self.page.wait_for_timeout(1500)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"type": "jpeg", "quality": 88} if path.suffix == ".jpg" else {"type": "png"}
        clip = {"x": at[0], "y": at[1], "width": width, "height": height}
        self.page.screenshot(path=path, clip=clip, **kind)
