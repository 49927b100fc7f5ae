"""Images saved with the report of the run that made them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from .types import CATEGORY, Report, schema

IN_IMAGE, BESIDE, BOTH = "in the image", "beside it", "both"
KEY = "flow_ttrl"
"""The report's place in a PNG's metadata, next to the host's own "prompt" and "workflow"."""


class SaveImageWithReport(io.ComfyNode):
    """Save Image, with the report in the PNG's metadata or in a JSON file of the same name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLSaveImage",
            display_name="Save Image with TTRL Report",
            category=CATEGORY,
            description="Saves as Save Image does, and the run's report with every image.",
            search_aliases=["ttrl", "save", "report", "metadata"],
            inputs=[
                io.Image.Input("images", tooltip="What to save."),
                Report.Input("report", tooltip="From SDE Latent Search or TTRL Run Result."),
                io.String.Input(
                    "filename_prefix",
                    default="TTRL",
                    tooltip="As in Save Image: may name a folder, and %NodeTitle.widget% values.",
                ),
                io.Combo.Input(
                    "save_report",
                    options=[IN_IMAGE, BESIDE, BOTH],
                    default=IN_IMAGE,
                    tooltip="In the PNG's metadata under 'flow_ttrl', or in a .json of the same "
                    "name. Neither where the server runs with --disable-metadata.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, report: dict, filename_prefix: str, save_report: str) -> io.NodeOutput:
        hidden = cls.hidden
        more = {KEY: report} if save_report in (IN_IMAGE, BOTH) else {}
        carrier = SimpleNamespace(  # a node as the host's own saving looks at it
            hidden=SimpleNamespace(
                prompt=hidden.prompt, extra_pnginfo={**(hidden.extra_pnginfo or {}), **more}
            )
        )
        saved = ui.ImageSaveHelper.get_save_images_ui(images, filename_prefix, carrier)
        if save_report in (BESIDE, BOTH) and not args.disable_metadata:
            text = json.dumps(report, indent=1)
            for file in saved.results:
                image = Path(folder_paths.get_output_directory(), file.subfolder, file.filename)
                image.with_suffix(".json").write_text(text, encoding="utf-8")
        return io.NodeOutput(ui=saved)
