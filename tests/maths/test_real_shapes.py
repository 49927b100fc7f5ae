"""Signs and ratios of `flow_ttrl` at the latent shapes of SD3.5 and FLUX at 1024 px."""

import pytest
import torch
from probes import Recorder, Rewarded, cosines, keyed_noise, only_search, spy_on_losses

from flow_ttrl.sampling import sample, search
from flow_ttrl.sampling.steps import log_prob, sde_step
from flow_ttrl.world.gaussian import GaussianWorld

SHAPES = {
    "sd3": ((128, 128), False, (1, 16, 128, 128)),
    "flux": ((128, 128), True, (1, 4096, 64)),
    "sd3, oblong": ((96, 168), False, (1, 16, 96, 168)),
    "flux, oblong": ((96, 168), True, (1, 4032, 64)),
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)


def real_world(name, **keywords):
    size, packed, _ = SHAPES[name]
    return GaussianWorld(*size, 16, **{"steps": 4, "packed": packed} | keywords)


def published(**changes):
    return only_search("flow_ttrl", budget=0, **changes)


@EACH_SHAPE
def test_latents_have_the_real_shape(shape):
    world = real_world(shape)
    x = world.noise()
    assert x.shape == SHAPES[shape][2]
    assert torch.equal(world.pack(world.unpack(x)), x)


def test_packed_world_is_the_same_world():
    grid, tokens = real_world("sd3, oblong"), real_world("flux, oblong")
    x, item = grid.noise(), torch.arange(1)
    torch.testing.assert_close(
        tokens.unpack(tokens.velocity(tokens.pack(x), 0.8, item)), grid.velocity(x, 0.8, item)
    )


@EACH_SHAPE
@pytest.mark.parametrize("early", [0.0, 1.0], ids=["grpo", "prdp"])
def test_every_update_goes_along_the_advantages(shape, early, monkeypatch):
    """Along J^T sum A eps, and the policy's ratio is exactly 1 until a step's first update."""
    ratios, world = spy_on_losses(monkeypatch), real_world(shape)
    settings = published(internal_reward_timestep=early, rl_iterations=1, beta2=0.0)
    recorder, states = Recorder(world), [world.noise()]
    result = search(
        recorder, world.noise(), settings, on_step=lambda event: states.append(event.latent)
    )
    assert len(result.records) == 2
    for record, (objective, ratio) in zip(result.records, ratios[2:], strict=True):
        index, levels = record.index - 1, world.sigmas.tolist()
        step = sde_step(*levels[index : index + 2], record.detail["eta"], levels[1])
        rewards = torch.tensor(record.rewards).T
        noise = keyed_noise(0, states[0]).normal(index, range(6), states[0])
        deviation = rewards - rewards.mean(0)
        along = torch.einsum("gb,gb...->b...", deviation, noise)
        along = world.filtered(along, step.on_x + step.on_v * world.slope(levels[index]))
        moved = recorder.at(levels[index], rows=1)[-1] - states[index]
        assert cosines(moved, along) > 0.999, f"step {index}"
        assert objective == record.detail["objective"] == ("prdp" if early else "grpo")
        if objective == "grpo" or index == 0:  # PRDP's rival is the reference
            assert torch.equal(ratio, torch.zeros_like(ratio))


@EACH_SHAPE
def test_fault_02_every_candidate_has_its_own_log_prob(shape):
    """In either layout: FLUX's tokens are not a batch of anything."""
    world, item = real_world(shape), torch.arange(1)
    x, step = world.noise(), sde_step(0.9, 0.8, 0.7, 0.95)
    noise = keyed_noise(0, x).normal(0, range(6), x)
    samples = step.mean(x, world.velocity(x, 0.9, item)) + step.std * noise
    moved = 1.01 * x
    mean = step.mean(moved, world.velocity(moved, 0.9, item))
    logs = log_prob(step, samples, mean, tuple(range(2, noise.ndim)))
    assert logs.shape == (6, 1)
    assert len(set(logs.flatten().tolist())) == 6


@EACH_SHAPE
@pytest.mark.parametrize("rationorm", [True, False])
def test_fault_02_the_losses_see_every_candidate(shape, rationorm, monkeypatch):
    """One log-ratio a candidate, all different once the latent has moved, in either phase."""
    ratios, world = spy_on_losses(monkeypatch), real_world(shape)
    settings = published(rationorm=rationorm, internal_reward_timestep=0.25)
    search(world, world.noise(), settings)
    moved = ratios[len(ratios) // 2 :][1::2]
    assert [objective for objective, _ in moved] == ["prdp", "grpo"]
    for _, log_ratio in moved:
        assert log_ratio.shape == (6, 1)
        assert len(set(log_ratio.flatten().tolist())) == 6


def test_fault_02_log_probs_are_the_same_packed_and_unpacked():
    grid, tokens = real_world("sd3"), real_world("flux")
    step, x = sde_step(0.9, 0.8, 0.7, 0.95), grid.noise()
    noise = keyed_noise(0, x).normal(0, range(4), x)
    mean = step.mean(x, grid.velocity(x, 0.9, torch.arange(1)))
    samples = 0.99 * mean + step.std * noise
    packed = log_prob(
        step, torch.stack([tokens.pack(sample) for sample in samples]), tokens.pack(mean), (2, 3)
    )
    torch.testing.assert_close(packed, log_prob(step, samples, mean, (2, 3, 4)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("early", [0.0, 1.0], ids=["grpo", "prdp"])
def test_fault_02_rewards_drive_the_latents(packed, early):
    """Either layout, either loss: the reward rises, and falls where it is turned upside down.

    On every one of eight seeds, and by as much.
    """
    world = GaussianWorld(32, 24, 16, steps=10, packed=packed)
    x, gains = world.noise(8), {}
    plain = world.judged(sample(world, x))
    for sign in (1, -1):
        driven = Rewarded(world, lambda total, sign=sign: sign * total)
        settings = published(internal_reward_timestep=early, prdp_scale=0.05)
        gains[sign] = world.judged(search(driven, x, settings).latents) - plain
    assert (gains[1] > 0).sum() >= 7
    assert (gains[-1] < 0).sum() >= 7
    assert 0.5 < gains[1].mean() / -gains[-1].mean() < 2
