"""A reward of the catalogue, from its files."""

from __future__ import annotations

from comfy_api.latest import io

from ..rewards import CATALOGUE, RewardMix, load_reward
from ..rewards.catalogue import PREPROCESS, check_files
from ..rewards.checkpoints import stamp
from ..rewards.comfy import folders, managed
from .types import ADVANCED, CATEGORY, Reward, schema

_DIVIDER = "--- files missing: ---"


def _options() -> list[str]:
    """Names of the catalogue: those that are ready, then those that lack something."""
    places = folders()
    ready = [name for name, entry in CATALOGUE.items() if not entry.lacks(places)]
    others = [name for name in CATALOGUE if name not in ready]
    return ready + [_DIVIDER] * bool(others) + others


def _tooltip() -> str:
    """What each reward judges, and what those that are not ready lack."""
    places = folders()
    lines = []
    for name, entry in CATALOGUE.items():
        lines.append(f"{name}: {entry.about}.")
        lines += [f"  missing: {what}" for what in entry.lacks(places)]
        lines += [f"  note: {told}" for file in entry.files if (told := file.odd(places))]
    return "\n".join(lines)


class LoadReward(io.ComfyNode):
    """One reward by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLLoadReward",
            display_name="Load Reward Model",
            category=CATEGORY,
            description=(
                "Loads a judge of images from models/reward_models. Nothing is downloaded here: "
                "flow-ttrl rewards --download NAME fetches the files."
            ),
            search_aliases=["ttrl", "hps", "imagereward", "pickscore", "aesthetic", "clip score"],
            inputs=[
                io.Combo.Input("reward", options=_options(), default="hps", tooltip=_tooltip()),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A checkpoint or a Hugging Face folder anywhere, instead of the first "
                    "of the reward's files in models/reward_models. Empty: the file there.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    tooltip="For ocr: the text to be read. Empty: the prompt's first text in "
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
        if reward == _DIVIDER:
            return "Expected a reward, got the line between those that are ready and the others"
        places = folders()
        try:
            check_files(reward, places, path)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        lacks = CATALOGUE[reward].lacks(places) if not CATALOGUE[reward].files else []
        return f"{reward}: expected {lacks[0]}" if lacks else True

    @classmethod
    def fingerprint_inputs(cls, reward, path, **others) -> str:
        """Other files under the same names are loaded anew."""
        try:
            files = check_files(reward, folders(), path)
        except (ValueError, FileNotFoundError):
            files = []
        return str([stamp(file) for file in files])

    @classmethod
    def execute(cls, reward, path, text, preprocess, reference=None) -> io.NodeOutput:
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
