"""The search on the bundled models: rewards and accuracy up, in both architectures."""

import pytest
import torch

from flow_ttrl.rewards import RewardMix
from flow_ttrl.sampling import STRATEGIES, make_settings, sample, search
from flow_ttrl.world.diffusers import start_noise, world_flow
from flow_ttrl.world.prompts import held_out
from flow_ttrl.world.rewards import accurate, world_reward

PROMPTS = held_out("dev", 8)
STEPS = 10


def flow_of(arch, reward, prompts=PROMPTS, steps=STEPS):
    return world_flow(arch, prompts, RewardMix(((world_reward(reward), 1.0),)), steps)


@pytest.mark.parametrize("reward", ["verifier", "scorer"])
@pytest.mark.parametrize("arch", ["sd3", "flux"])
@torch.no_grad()
def test_search_raises_the_reward(arch, reward):
    """By default settings, at a third of the default budget."""
    flow, noise = flow_of(arch, reward), start_noise(1, len(PROMPTS))
    settings = make_settings(budget=3.0, keep_better=False)
    result = search(flow, noise, settings, seed=1, baseline=True)
    gain = result.rewards - result.plain_rewards
    assert gain.mean() > 0.05
    assert (gain > 0).float().mean() > 0.6
    if reward == "verifier":
        item = torch.arange(len(PROMPTS))
        ours, theirs = (
            sum(accurate(flow.decode(latents, item), PROMPTS))
            for latents in (result.latents, result.plain.latents)
        )
        assert ours > theirs


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_every_strategy_runs_on_the_models(arch, strategy):
    """Within its plan, to a result whose reward is what its image gets; a different sample."""
    prompts, noise = PROMPTS[:2], start_noise(2, 2)
    flow = flow_of(arch, "scorer", prompts, steps=5)
    settings = make_settings(strategy, budget=4.0, keep_better=False)
    result = search(flow, noise, settings, seed=2)
    assert result.cost.calls <= 2 * result.planned <= 2 * 20
    assert not result.latents.requires_grad
    item = torch.arange(2)
    scores = flow.score(flow.decode(result.latents, item), item)["scorer"]
    torch.testing.assert_close(result.rewards, scores, atol=1e-4, rtol=1e-3)
    assert not torch.equal(result.latents, sample(flow, noise))


@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_exact_gradients_run_through_the_models(arch):
    flow, noise = flow_of(arch, "verifier", PROMPTS[:2], 6), start_noise(2, 2)
    settings = make_settings("flow_ttrl", budget=0, keep_better=False)
    result = search(flow, noise, settings, seed=2)
    assert result.cost.backwards == 2 * 3 * 2  # items, search steps, iterations
    assert not torch.equal(result.latents, sample(flow, noise))
    assert not result.latents.requires_grad
    assert all(parameter.grad is None for parameter in flow.call.pipe.transformer.parameters())


@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_the_reward_gradient_climbs_through_model_decoder_and_judge(arch):
    flow, noise = flow_of(arch, "scorer", PROMPTS[:4], 6), start_noise(2, 4)
    settings = make_settings("reward_gradient", budget=4.0, keep_better=False)
    result = search(flow, noise, settings, baseline=True)
    assert result.cost.backwards > 0
    assert (result.rewards - result.plain_rewards).mean() > 0.02


def test_a_judge_without_a_gradient_is_refused():
    flow, calls = flow_of("flux", "verifier", PROMPTS[:1], 4), []
    flow.call.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="expected rewards that have a gradient, got verifier"):
        search(flow, start_noise(2, 1), make_settings("reward_gradient"))
    assert not calls
