"""Tiny checkpoints of every official layout, written once a session."""

import pytest
import tiny
import torch

from flow_ttrl.rewards import load_reward
from flow_ttrl.rewards.networks import on_device


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tiny.write_models(tmp_path_factory.mktemp("reward_models"))


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Three smooth images [3, 96, 128, 3]."""
    coarse = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic")
    return smooth.clamp(0, 1).movedim(1, -1)


@pytest.fixture(scope="session")
def load(models, images):
    """A learned reward by name, from the tiny files, on the CPU."""

    def load(name: str, **options):
        if name in tiny.PATHS:
            options.setdefault("path", models / tiny.PATHS[name])
        options = {"reference": images[:1], "place": on_device("cpu")} | options
        return load_reward(name, folders=[models], **options)

    return load
