"""A reward of the catalogue, from its files."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..rewards import CATALOGUE, RewardMix, load_reward
from ..rewards.catalogue import PREPROCESS
from ..rewards.checkpoints import stamp
from ..rewards.comfy import folders, managed
from ..rewards.loading import check_files
from ..world.rewards import WORLD_REWARDS, world_reward
from .types import ADVANCED, CATEGORY, Reward, schema

_HEADING = "--- needs "


def _options() -> list[str]:
    """Names of the catalogue: those that are ready, then the others under what they lack.

    Of the ready ones those that need a file come first, the tiny world's last.
    """
    places, ready, lacking = folders(), [], {}
    for name, entry in CATALOGUE.items():
        if not entry.lacks(places):
            ready.append(name)
            continue
        files = ", ".join(file.path for file in entry.missing(places)) or "an OCR engine"
        lacking.setdefault(f"{_HEADING}{files} ---", []).append(name)
    ready += WORLD_REWARDS
    return ready + [option for heading, names in lacking.items() for option in (heading, *names)]


def _files(reward: str, path: str) -> list[Path] | None:
    """See :func:`check_files`; None for what is bundled."""
    if reward not in WORLD_REWARDS:
        return check_files(reward, folders(), path)
    if path:
        raise ValueError(f"expected no path for {reward!r}, which is bundled, got {path}; clear it")
    return None


class LoadReward(io.ComfyNode):
    """One reward by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = _options()
        return schema(
            node_id="TTRLLoadReward",
            display_name="Load Reward Model",
            category=CATEGORY,
            description=(
                "Loads a judge of images from models/reward_models. Nothing is downloaded here: "
                "the command line's rewards --download NAME fetches files; see the help page."
            ),
            search_aliases=["ttrl", "hps", "imagereward", "pickscore", "aesthetic", "clip score"],
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=options,
                    default=options[0],
                    tooltip="Which judge. Those that are ready come first, some of which need no "
                    "file, then the others, each under the files that it needs in "
                    "models/reward_models. The help page says where they are from. verifier and "
                    "scorer judge the demo model's images alone.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A checkpoint or a Hugging Face folder anywhere, instead of the first "
                    "of the reward's files in models/reward_models. Empty: the file there.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    tooltip="For ocr: the text to be read. Empty: all that the prompt has in "
                    "double quotes.",
                ),
                io.Combo.Input(
                    "preprocess",
                    options=list(PREPROCESS),
                    default=PREPROCESS[0],
                    tooltip="official: as the model's authors resize images. paper: as the paper's "
                    "code does, which gives hps, clipscore and image_similarity other scores.",
                    extra_dict=dict(ADVANCED),
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="For image_similarity: the image, or images, to be like.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward")],
        )

    @classmethod
    def validate_inputs(cls, reward=None, path=None) -> bool | str:
        if reward is None or path is None:  # wired: not known yet
            return True
        if reward.startswith(_HEADING):
            return f"Expected a reward, got the heading {reward!r}; choose one of those below it"
        try:
            if _files(reward, path) is None:
                return True
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        needs = CATALOGUE[reward].needs()
        return f"{reward}: expected {needs[0]}" if needs else True

    @classmethod
    def fingerprint_inputs(cls, reward, path, **others) -> str:
        """Other files under the same names are loaded anew."""
        try:
            files = _files(reward, path) or []
        except (ValueError, FileNotFoundError):
            files = []
        return str([stamp(file) for file in files])

    @classmethod
    def execute(cls, reward, path, text, preprocess, reference=None) -> io.NodeOutput:
        if reward in WORLD_REWARDS:
            return io.NodeOutput(RewardMix(((world_reward(reward), 1.0),)))
        loaded = load_reward(
            reward,
            folders=folders(),
            path=path or None,
            place=managed,
            preprocess=preprocess,
            reference=None if reference is None else reference[..., :3],
            text=text,
        )
        return io.NodeOutput(RewardMix(((loaded, 1.0),)))
