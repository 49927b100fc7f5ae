"""The pack under any folder's name, and images saved with their report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import FOLDER, started
from graphs import demo, node, search
from PIL import Image

ODD = "Flow TTRL v0.1"


def saving(where: str) -> dict:
    """A small search whose images are saved with its report."""
    graph = demo() | search("run", 3, 4, strategy="best_of_n", budget=2.0)
    save = node(
        "TTRLSaveImage",
        images=["run searched image", 0],
        report=["run search", 2],
        filename_prefix="kept/run",
        save_report=where,
    )
    return graph | {"save": save}


def saved(server, run) -> tuple[dict, Path]:
    """The image's metadata, and where its JSON file would be."""
    assert run.status == "success", run.error
    (image,) = run.output("save")["images"]
    assert image["subfolder"] == "kept"
    with Image.open(io.BytesIO(server.view(image))) as picture:
        text = dict(picture.text)
    file = server.base / "output" / "kept" / image["filename"]
    return text, file.with_suffix(".json")


@pytest.mark.parametrize("where", ["in the image", "beside it", "both"])
def test_report_is_saved_where_it_is_asked_for(server, where):
    """The host's own metadata stays as it is."""
    graph = saving(where)
    run = server.run(graph)
    text, file = saved(server, run)
    assert json.loads(text["prompt"])["save"] == graph["save"]
    shown = json.loads(run.text("run report"))
    assert ("flow_ttrl" in text) == (where != "beside it")
    assert file.exists() == (where != "in the image")
    if "flow_ttrl" in text:
        assert json.loads(text["flow_ttrl"]) == shown
    if file.exists():
        assert json.loads(file.read_text("utf-8")) == shown


def test_a_folder_with_dots_and_spaces_and_a_server_without_metadata(home, python, tmp_path):
    """The pack loads, runs and has its button there; no report is written."""
    with started(home, python, tmp_path, ODD, "--disable-metadata") as server:
        assert "IMPORT FAILED" not in server.log.read_text()
        text, file = saved(server, server.run(saving("both")))
        assert text == {}
        assert not file.exists()
        button = f"/extensions/{FOLDER}/js/flow_ttrl.js"
        assert button in server.get("/extensions").json()
        assert server.get(button).ok
