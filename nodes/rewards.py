"""Rewards: mixing and scoring."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..rewards import ANALYTIC, RewardMix
from ..world.rewards import WORLD_REWARDS, world_reward
from .types import CATEGORY, Reward, schema

_SOCKETS = ("reward_a", "reward_b", "reward_c", "reward_d")
_WEIGHTS = (*ANALYTIC, *WORLD_REWARDS)
_MEANING = {
    "white": "Mean brightness, 0..1.",
    "black": "Mean darkness, 0..1.",
    "contrast": "Standard deviation of the luma, 0..0.5.",
    "jpeg_compressibility": "Minus the JPEG's size in units of 500 kB: plain images win.",
    "jpeg_incompressibility": "The JPEG's size in units of 500 kB: detail wins.",
    "verifier": "Tiny world only: how nearly shapes, colours, count and relation hold, 0..1.",
    "scorer": "Tiny world only: a small learned image-text judge, cosine -1..1.",
}


def _weight(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=-1000.0, max=1000.0, step=0.05, round=0.001, tooltip=tooltip
    )


class RewardMixer(io.ComfyNode):
    """Rewards and weights to one reward: the paper's score_dict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sockets = [
            Reward.Input(name, optional=True, tooltip="A reward to mix in, times its weight below.")
            for name in _SOCKETS
        ]
        shares = [
            _weight(
                name.replace("reward", "weight"),
                1.0,
                f"Weight of {name}. 1 leaves it as it is, 0 leaves it out, below 0 turns it round.",
            )
            for name in _SOCKETS
        ]
        built_in = [
            _weight(name, 0.0, f"{_MEANING[name]} Weight 0 leaves it out.") for name in _WEIGHTS
        ]
        return schema(
            node_id="TTRLRewardMixer",
            display_name="TTRL Reward Mixer",
            category=CATEGORY,
            description="Adds up rewards, each times its weight, to the one that drives a search.",
            search_aliases=["ttrl", "score_dict", "reward weights"],
            inputs=[*sockets, *shares, *built_in],
            outputs=[Reward.Output(display_name="reward")],
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        parts = []
        for name in _SOCKETS:
            mix, share = inputs.get(name), inputs[name.replace("reward", "weight")]
            if mix is not None and share:
                parts += [(reward, share * weight) for reward, weight in mix.parts]
        parts += [(ANALYTIC[name], inputs[name]) for name in ANALYTIC if inputs[name]]
        parts += [(world_reward(name), inputs[name]) for name in WORLD_REWARDS if inputs[name]]
        return io.NodeOutput(RewardMix(tuple(parts)))


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
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.Image.Output(display_name="best_image"),
                io.Int.Output(display_name="best_index"),
                io.Float.Output(display_name="scores", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, images, reward: RewardMix, prompt: str) -> io.NodeOutput:
        reward.check([prompt])
        scores = reward.score(images[..., :3], [prompt])
        ranking = scores.total.argsort(descending=True).tolist()
        best = ranking[0]
        table = _table(scores, ranking)
        return io.NodeOutput(
            table,
            images[best : best + 1],
            best,
            scores.total.tolist(),
            ui=ui.PreviewText(table),
        )


def _table(scores, ranking: list[int]) -> str:
    """A line per image, best first: its number, the total and every reward by name."""
    columns = {"total": scores.total, **scores.values}
    widths = {name: max(len(name), 7) for name in columns}
    lines = ["  ".join(["rank", "image", *(n.rjust(w) for n, w in widths.items())])]
    for rank, index in enumerate(ranking, 1):
        values = (f"{columns[n][index].item():.3f}".rjust(w) for n, w in widths.items())
        lines.append("  ".join([f"{rank:4d}", f"{index:5d}", *values]))
    return "\n".join(lines)
