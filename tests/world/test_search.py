"""The search on the bundled models: rewards and accuracy up, in both architectures."""

import pytest
import torch

from flow_ttrl.sampling import KeyedNoise, preset, sample, search
from flow_ttrl.world.diffusers import start_noise, world_flow
from flow_ttrl.world.evaluate import driven_by
from flow_ttrl.world.prompts import held_out

PROMPTS = held_out("dev", 12)
STEPS = 12


@pytest.mark.parametrize("reward", ["verifier", "scorer"])
@pytest.mark.parametrize("arch", ["sd3", "flux"])
@torch.inference_mode()
def test_search_raises_the_reward(arch, reward):
    flow = world_flow(arch, PROMPTS, driven_by(reward), STEPS)
    noise = KeyedNoise(1)
    start = start_noise(noise, len(PROMPTS))
    plain = flow.score(flow.decode(sample(flow, start))).total
    result = search(flow, start, preset("balanced"), noise)
    assert (result.rewards - plain).mean() > 0.05
    assert (result.rewards > plain).float().mean() > 0.6


@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_exact_gradients_run_through_the_models(arch):
    flow = world_flow(arch, PROMPTS[:2], driven_by("verifier"), 6)
    noise = KeyedNoise(2)
    start = start_noise(noise, 2)
    result = search(flow, start, preset("paper"), noise)
    assert result.cost.backwards > 0
    assert not torch.equal(result.latents, sample(flow, start))
    assert not result.latents.requires_grad
