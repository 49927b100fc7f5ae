"""Socket types of the pack, and a schema that older hosts accept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from comfy_api.latest import io

Reward = io.Custom("TTRL_REWARD")
"""A ``rewards.RewardMix``."""

Settings = io.Custom("TTRL_SETTINGS")
"""A ``sampling.SearchSettings``."""

Report = io.Custom("TTRL_REPORT")
"""``SearchResult.report()``, a JSON object, with ``Judge.report()`` under "reward" and what the
host did under "host"."""

Run = io.Custom("TTRL_RUN")
"""Where a run is found by what it gave (:mod:`.runs`)."""

CATEGORY = "sampling/Flow-TTRL"
ADVANCED = {"advanced": True}
"""As an input's ``extra_dict``: hidden until asked for, on hosts that know how."""

_KNOWN = {field.name for field in dataclasses.fields(io.Schema)}


def as_images(pictures: Sequence) -> torch.Tensor:
    """RGB pictures of one size as an IMAGE [N, H, W, 3]."""
    return torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) / 255 for p in pictures]))


def schema(**fields) -> io.Schema:
    """``io.Schema`` without the fields that this host's version does not have."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _KNOWN})


def vae_input():
    return io.Vae.Input("vae", tooltip="The model's VAE, to look ahead at images.")


def reward_input():
    return Reward.Input("reward", tooltip="What images are judged by.")


def prompt_input():
    return io.String.Input(
        "prompt",
        multiline=True,
        default="",
        tooltip="What the rewards look for. Empty: the text that 'positive' was made from.",
    )


def settings_input():
    return Settings.Input(
        "settings",
        optional=True,
        tooltip="From TTRL Search, Paper or Steered Settings. Without: strategy 'steered', "
        "budget 6.",
    )


def run_outputs() -> list:
    """What a run came to, beside its latent."""
    return [
        io.Latent.Output(display_name="baseline"),
        Report.Output(display_name="report"),
        io.Image.Output(
            display_name="candidates",
            tooltip="The last candidates that were compared, each with its score.",
        ),
    ]
