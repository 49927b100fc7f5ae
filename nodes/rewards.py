"""Rewards: mixing and scoring."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..plots import captioned
from ..rewards import MODES, RewardMix, Scores
from ..rewards.base import headings
from .types import CATEGORY, Reward, as_images, schema

_SOCKETS = "abcdefgh"
"""Rewards that a mixer takes, by the letter of their sockets."""


def _pair(letter: str) -> list[io.Input]:
    """A reward's socket, and its weight."""
    return [
        Reward.Input(
            f"reward_{letter}", optional=True, tooltip="A reward to mix in, times the weight below."
        ),
        io.Float.Input(
            f"weight_{letter}",
            default=1.0,
            min=-1000.0,
            max=1000.0,
            step=0.05,
            round=0.001,
            tooltip=f"Weight of reward_{letter}. 1 leaves it as it is, 0 leaves it out, below 0 "
            "turns it round.",
        ),
    ]


class RewardMixer(io.ComfyNode):
    """Rewards and weights to one reward: the paper's score_dict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        mode = io.Combo.Input(
            "mode",
            options=list(MODES),
            default=MODES[0],
            tooltip="raw: the rewards as they are, each times its weight (the paper's sum). "
            "standardised: each in units of its own spread among the images of the run, so that "
            "weights mean the same for all. rank: the share of the images of the run that an image "
            "beats. Of mixes wired to this one, the weights count and not the mode.",
        )
        return schema(
            node_id="TTRLRewardMixer",
            display_name="TTRL Reward Mixer",
            category=CATEGORY,
            description="Adds up rewards, each times its weight, to the one that drives a search.",
            search_aliases=["ttrl", "score_dict", "reward weights"],
            inputs=[mode, *(given for letter in _SOCKETS for given in _pair(letter))],
            outputs=[Reward.Output(display_name="reward")],
        )

    @classmethod
    def execute(cls, mode: str, **inputs) -> io.NodeOutput:
        weights: dict[object, float] = {}  # of a reward that comes in twice they add up
        for letter in _SOCKETS:
            mix, share = inputs.get(f"reward_{letter}"), inputs[f"weight_{letter}"]
            for reward, weight in mix.parts if mix is not None and share else ():
                weights[reward] = weights.get(reward, 0.0) + share * weight
        return io.NodeOutput(RewardMix(tuple(weights.items()), mode))


class RewardScorer(io.ComfyNode):
    """Images and a prompt to scores, ranking and the best image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLRewardScorer",
            display_name="Reward Scorer",
            category=CATEGORY,
            description="Scores every image of a batch, ranks them and picks the best.",
            search_aliases=["ttrl", "rank images", "image score", "best of batch"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The images to judge."),
                Reward.Input("reward", tooltip="What to judge by."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the images should show. Empty for rewards that look at the image "
                    "alone.",
                ),
                io.Boolean.Input(
                    "one_prompt_per_line",
                    default=False,
                    optional=True,
                    tooltip="On: line n is the prompt of image n, and there are as many lines as "
                    "images. Off: all of the text is the prompt of every image.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.Image.Output(display_name="best_image"),
                io.Int.Output(display_name="best_index"),
                io.Float.Output(display_name="scores", is_output_list=True),
                io.Int.Output(display_name="ranking", is_output_list=True),
                io.Image.Output(display_name="annotated"),
            ],
        )

    @classmethod
    def execute(
        cls, images, reward: RewardMix, prompt: str, one_prompt_per_line: bool = False
    ) -> io.NodeOutput:
        prompts = _lines(prompt, len(images)) if one_prompt_per_line else [prompt]
        images = images[..., :3]
        scores = reward.score(images, prompts)
        table, annotated = _table(scores, reward.notes), _annotated(images, scores)
        best = scores.ranking[0]
        return io.NodeOutput(
            table,
            images[best : best + 1],
            best,
            scores.total.tolist(),
            scores.ranking,
            annotated,
            ui={"text": (table,), **ui.PreviewImage(annotated, cls=cls).as_dict()},
        )


def _lines(text: str, images: int) -> list[str]:
    """A prompt per image.

    Raises:
        ValueError: another number of lines.
    """
    lines = text.strip("\n").split("\n")
    if len(lines) != images:
        raise ValueError(
            f"expected a line of prompt for each of {images} images, got {len(lines)} lines; write "
            "one for each, or turn one_prompt_per_line off"
        )
    return lines


def _table(scores: Scores, notes: list[str]) -> str:
    """A line per image, best first: its number, the total and every reward by name.

    Below them, what the numbers above the columns stand for; then notes.
    """
    columns = {"total": scores.total, **scores.values}
    above, below = headings(columns)
    widths = {name: max(len(above[name]), 7) for name in columns}
    lines = ["  ".join(["rank", "image", *(above[n].rjust(w) for n, w in widths.items())])]
    for rank, index in enumerate(scores.ranking, 1):
        values = (f"{columns[n][index].item():.3f}".rjust(w) for n, w in widths.items())
        lines.append("  ".join([f"{rank:4d}", f"{index:5d}", *values]))
    return "\n".join([*lines, *below, *(["", *notes] if notes else [])])


def _annotated(images: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The images [B, H, W, 3] in their order, each with its rank and scores below."""
    ranks = {index: rank for rank, index in enumerate(scores.ranking, 1)}
    captions = []
    for index in range(len(images)):
        parts = [f"{value[index].item():.3f}  {name}" for name, value in scores.values.items()]
        captions.append("\n".join([f"#{ranks[index]}   {scores.total[index].item():.3f}", *parts]))
    return as_images(captioned(images, captions))
