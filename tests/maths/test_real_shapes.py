"""Signs and ratios at the latent shapes of SD3.5 and FLUX at 1024 px, for every preset."""

from dataclasses import replace

import pytest
import torch
from gaussian_world import GaussianWorld
from probes import applied_updates, cosines, evolution, spy_on_losses

from flow_ttrl.sampling import PRESETS, KeyedNoise, search
from flow_ttrl.sampling.steps import log_prob, sde_step

SHAPES = {"sd3": (1, 16, 128, 128), "flux": (1, 4096, 64)}


def real_world(name):
    return GaussianWorld(128, 16, steps=8, packed=name == "flux")


@pytest.mark.parametrize("shape", SHAPES)
def test_latents_have_the_real_shape(shape):
    world = real_world(shape)
    x = world.noise()
    assert x.shape == SHAPES[shape]
    assert torch.equal(world.pack(world.unpack(x)), x)


def test_packed_world_is_the_same_world():
    grid, tokens = real_world("sd3"), real_world("flux")
    x = grid.noise()
    torch.testing.assert_close(
        tokens.unpack(tokens.velocity(tokens.pack(x), 0.8)), grid.velocity(x, 0.8)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_every_update_goes_along_the_advantages(preset, shape, monkeypatch):
    """And the policy's ratio is exactly 1 until the first update of a step."""
    settings, ratios = PRESETS[preset], spy_on_losses(monkeypatch)
    world, steps = real_world(shape), 0
    for record, latent, moved in applied_updates(world, world.noise(), settings):
        assert cosines(moved, evolution(record, 0, latent)) > 0.3, f"step {record.index}"
        objective, log_ratio = ratios[steps * settings.rl_iterations]
        assert objective == record.objective
        if objective == "grpo" or record.index == 0:  # PRDP's rival is the reference
            assert torch.equal(log_ratio, torch.zeros_like(log_ratio))
        steps += 1
    assert steps == len(settings.search_steps(8)) == len(ratios) / settings.rl_iterations


@pytest.mark.parametrize("shape", SHAPES)
def test_fault_02_every_candidate_has_its_own_log_prob(shape):
    """In either layout: FLUX's tokens are not a batch of anything."""
    world = real_world(shape)
    x, step = world.noise(), sde_step(0.9, 0.8, 0.7, 0.95)
    noise = KeyedNoise(0).group(0, 6, x)
    samples = step.mean(x, world.velocity(x, 0.9)) + step.std * noise
    moved = 1.01 * x
    mean = step.mean(moved, world.velocity(moved, 0.9))
    logs = log_prob(step, samples, mean, tuple(range(2, noise.ndim)))
    assert logs.shape == (6, 1)
    assert len(set(logs.flatten().tolist())) == 6


@pytest.mark.parametrize("rationorm", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_fault_02_the_losses_see_every_candidate(shape, rationorm, monkeypatch):
    """One log-ratio a candidate, all different once the latent has moved, in either phase."""
    ratios, world = spy_on_losses(monkeypatch), real_world(shape)
    settings = replace(PRESETS["paper", 1], rationorm=rationorm)
    search(world, world.noise(), settings, KeyedNoise(0))
    moved = ratios[1::2]
    assert {objective for objective, _ in moved} == {"prdp", "grpo"}
    for _, log_ratio in moved:
        assert log_ratio.shape == (6, 1)
        assert len(set(log_ratio.flatten().tolist())) == 6


def test_fault_02_log_probs_are_the_same_packed_and_unpacked():
    grid, tokens = real_world("sd3"), real_world("flux")
    step, x = sde_step(0.9, 0.8, 0.7, 0.95), grid.noise()
    noise = KeyedNoise(0).group(0, 4, x)
    mean = step.mean(x, grid.velocity(x, 0.9))
    samples = 0.99 * mean + step.std * noise
    packed = log_prob(
        step, torch.stack([tokens.pack(sample) for sample in samples]), tokens.pack(mean), (2, 3)
    )
    torch.testing.assert_close(packed, log_prob(step, samples, mean, (2, 3, 4)))


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_fault_02_rewards_drive_flux_latents(preset):
    """Rewards turned upside down send packed latents elsewhere, and the reward with them."""
    world = GaussianWorld(32, 16, steps=8, packed=True)
    x, finals = world.noise(), {}
    for sign in (1, -1):
        driven = GaussianWorld(32, 16, steps=8, packed=True)
        driven.reward = lambda image, sign=sign: sign * world.reward(image)
        driven.reward.__name__ = "signed"
        result = search(driven, x, PRESETS[preset], KeyedNoise(0))
        finals[sign] = world.score(world.decode(result.latents)).total
    assert finals[1] > finals[-1]
