"""The reward curve as an image."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..plots import reward_curve
from .types import CATEGORY, Report, as_images, schema


class RewardPlot(io.ComfyNode):
    """A report to a plot and to JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLRewardPlot",
            display_name="TTRL Reward Plot",
            category=CATEGORY,
            description="Draws how the rewards went, step by step, and gives the report as JSON.",
            search_aliases=["ttrl", "reward curve", "report"],
            inputs=[
                Report.Input("report", tooltip="From SDE Latent Search or TTRL Run Result."),
                io.Int.Input(
                    "item",
                    default=0,
                    min=0,
                    max=4095,
                    tooltip="Which image of the batch to draw; 0 is the first.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="json"),
            ],
        )

    @classmethod
    def execute(cls, report: dict, item: int) -> io.NodeOutput:
        items = len(report["rewards"])
        if item >= items:
            raise ValueError(f"expected an item within 0..{items - 1}, got {item}; lower it")
        plot = as_images([reward_curve(report, item)])
        return io.NodeOutput(plot, json.dumps(report, indent=1))
