"""What the released default buys in the exact world, at equal calls, and what it costs there."""

import functools

import pytest
import torch
from gaussian_world import REWARDS, GaussianWorld

from flow_ttrl.sampling import KeyedNoise, SearchSettings, preset, sample, search

SEEDS, STEPS = 10, 20
ADDITIVE = SearchSettings(
    update="additive",
    update_range=(0.08, 0.08),
    gradient="exact",
    step="sde",
    noise_range=(0.7, 0.7),
    external_reward_timestep=0.5,
)
BANDS = ["k < 4", "4 <= k < 8", "8 <= k < 16", "16 <= k"]


@functools.cache
def plain(reward):
    """The world, its starting latents and their plain samples with rewards."""
    world = GaussianWorld(64, steps=STEPS, reward=reward)
    latents = sample(world, world.noise(SEEDS))
    return world, latents, world.score(world.decode(latents)).total


@functools.cache
def searched(reward, settings):
    world = plain(reward)[0]
    return search(world, world.noise(SEEDS), settings, KeyedNoise(0))


def energy_shifts(reward, settings):
    """Each band's energy over the plain samples', less 1; both averaged over the seeds."""
    world, latents, _ = plain(reward)
    found = world.band_energies(searched(reward, settings).latents).mean(0)
    return found / world.band_energies(latents).mean(0) - 1


@pytest.mark.parametrize("reward", REWARDS)
def test_balanced_raises_the_reward_of_every_seed(reward):
    gain = searched(reward, preset("balanced")).rewards - plain(reward)[2]
    assert (gain > 0).all(), gain.tolist()


@pytest.mark.parametrize("reward", REWARDS)
def test_balanced_gains_more_than_best_of_n_at_equal_calls(reward):
    world, _, rewards = plain(reward)
    result = searched(reward, preset("balanced"))
    more = result.cost.calls // (SEEDS * STEPS) - 1  # the plain sample is the first of the N
    others = world.score(world.decode(sample(world, world.noise(SEEDS * more, seed=SEEDS)))).total
    best = torch.cat([rewards[None], others.view(more, SEEDS)]).amax(0)
    assert more >= 1
    assert (result.rewards - rewards).mean() > (best - rewards).mean()


@pytest.mark.parametrize("reward", REWARDS)
def test_balanced_stays_typical_in_every_band(reward):
    """Within 5% of the plain samples' whitened energy, scale by scale."""
    shifts = energy_shifts(reward, preset("balanced"))
    assert (shifts.abs() <= 0.05).all(), dict(zip(BANDS, shifts.tolist(), strict=True))


@pytest.mark.parametrize("reward", REWARDS)
def test_the_additive_update_does_not_stay_typical(reward):
    """The measure above can fail: it does for what the research code's update amounts to."""
    assert (energy_shifts(reward, ADDITIVE).abs() > 0.05).any()


def test_the_worlds_own_data_is_typical():
    """The measure is 1 in every band for the truth, and the plain sample's tends there."""
    world = GaussianWorld(64)
    truth = world.filtered(world.noise(20), world.spectrum.sqrt())
    torch.testing.assert_close(world.band_energies(truth).mean(0), torch.ones(4), atol=0.05, rtol=0)
    errors = []
    for steps in (10, 40, 160):
        world = GaussianWorld(64, steps=steps)
        sampled = sample(world, world.noise(20))
        errors.append((world.band_energies(sampled).mean(0) - 1).abs().max())
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
