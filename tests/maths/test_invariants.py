"""What must hold for every strategy: bits, batches, ranks, sizes and parameters."""

from dataclasses import replace

import pytest
import torch
from probes import (
    EACH,
    SELECTING,
    Recorder,
    Wrapped,
    euler,
    only_search,
    run,
)

from flow_ttrl.sampling import STRATEGIES, make_settings, sample, search, shifted_sigmas
from flow_ttrl.world.gaussian import GaussianWorld


def test_plain_sampling_is_euler_bit_by_bit():
    world = GaussianWorld(8, 12, steps=10)
    x = world.noise(2)
    assert torch.equal(sample(world, x), euler(world, x))


@EACH
def test_a_seed_fixes_every_bit_of_a_search(strategy):
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    one, again = (run(world, strategy, x, seed=5) for _ in range(2))
    assert torch.equal(one.latents, again.latents)
    assert [r.rewards for r in one.records] == [r.rewards for r in again.records]


@EACH
@pytest.mark.parametrize("part", ["whole", "ends above 0", "begins below 1"])
def test_an_item_of_a_batch_is_a_run_of_its_own(strategy, part):
    """Where every item has a prompt and a judge of its own, too: rows know whose they are."""
    levels = shifted_sigmas(10).tolist()
    levels = {"whole": levels, "ends above 0": levels[:8], "begins below 1": levels[3:]}[part]
    world = GaussianWorld(8, sigmas=levels, prompts=3)
    x = world.noise(3)
    batch = run(world, strategy, x, seed=4)
    for item in range(3):
        alone = run(world.only(item), strategy, x[item : item + 1], seed=4)
        torch.testing.assert_close(batch.latents[item], alone.latents[0], atol=1e-3, rtol=1e-3)
        for together, single in zip(batch.records, alone.records, strict=True):
            pairs = zip(together.rewards[item], single.rewards[0], strict=False)
            for ours, own in pairs:
                assert ours == pytest.approx(own, abs=1e-3)


@EACH
def test_the_order_of_a_batch_does_not_matter(strategy):
    world = GaussianWorld(8, steps=10)
    x, order = world.noise(4), [2, 0, 3, 1]
    one, other = run(world, strategy, x), run(world, strategy, x[order])
    torch.testing.assert_close(other.latents, one.latents[order], atol=1e-3, rtol=1e-3)


@EACH
def test_micro_batches_do_not_matter(strategy):
    world = GaussianWorld(8, steps=10, prompts=2)
    x = world.noise(2)
    whole, parts = run(world, strategy, x), Recorder(world)
    split = run(parts, strategy, x, micro_batch=2)
    torch.testing.assert_close(split.latents, whole.latents, atol=1e-3, rtol=1e-3)
    assert split.cost == whole.cost
    assert max(len(call.x) for call in parts.calls) <= 2 * 2


SIZES = {"odd": (9, 7), "oblong": (8, 20), "upright": (20, 6), "a strip": (4, 32)}


@EACH
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_odd_and_oblong_latents_are_searched(strategy, size):
    world = GaussianWorld(*size, steps=10)
    x = world.noise(8)
    result = run(world, strategy, x, budget=6.0)
    assert result.latents.shape == (8, 4, *size)
    assert (result.rewards - world.judged(sample(world, x))).mean() > 0


@EACH
def test_packed_latents_are_searched(strategy):
    """FLUX's tokens: where nothing looks at octaves, the very search of the unpacked ones."""
    tokens = GaussianWorld(8, 12, steps=10, packed=True)
    x = tokens.noise(4)
    result = run(tokens, strategy, x)
    assert result.latents.shape == (4, 24, 16)
    assert (result.rewards - tokens.judged(sample(tokens, x))).mean() > 0


@EACH
def test_video_latents_are_searched(strategy):
    """[B, C, T, H, W]: nothing assumes a rank."""
    world = GaussianWorld(8, 6, steps=10)
    x = torch.stack([world.noise(4, seed=100 * frame) for frame in range(3)], 2)
    result = run(world, strategy, x)
    assert result.latents.shape == (4, 4, 3, 8, 6)
    assert (result.rewards - world.judged(sample(world, x))).mean() > 0


@EACH
def test_a_video_of_one_frame_is_an_image(strategy):
    world = GaussianWorld(8, 6, steps=10)
    x = world.noise(2)
    video, image = (run(world, strategy, noise).latents for noise in (x[:, :, None], x))
    torch.testing.assert_close(video[:, :, 0], image, atol=1e-3, rtol=1e-3)


class Reusing(Wrapped):
    """A host that hands out its velocities in one buffer a shape, as compiled models do."""

    def __init__(self, flow):
        super().__init__(flow)
        self.buffers = {}

    def velocity(self, x, sigma, item):
        v = super().velocity(x, sigma, item)
        if v.requires_grad:
            return v
        return self.buffers.setdefault(v.shape, torch.empty_like(v)).copy_(v)


@EACH
def test_a_host_may_reuse_its_output(strategy):
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    assert torch.equal(run(Reusing(world), strategy, x).latents, run(world, strategy, x).latents)


@EACH
def test_a_search_changes_nothing_that_it_is_given(strategy):
    image = GaussianWorld(8).data()
    world = GaussianWorld(8, sigmas=shifted_sigmas(12).tolist()[3:], image=image)
    x, settings = world.noise(2), make_settings(strategy, budget=4.0)
    before = x.clone(), world.sigmas.clone(), image.clone(), settings.to_json()
    result = search(world, x, settings)
    result.latents.zero_()
    assert torch.equal(x, before[0])
    assert torch.equal(world.sigmas, before[1])
    assert torch.equal(image, before[2])
    assert settings.to_json() == before[3]


@EACH
def test_a_host_in_inference_mode_gets_the_same_bits(strategy):
    world = GaussianWorld(8, steps=10)
    expected = run(world, strategy, world.noise(2))
    with torch.inference_mode():
        found = run(world, strategy, world.noise(2))
    assert torch.equal(found.latents, expected.latents)
    assert found.cost == expected.cost


# Partial denoise


@EACH
def test_sampling_begins_where_the_host_says(strategy):
    """Every start is made by the host, of its latent image; candidates stay near it."""
    image = GaussianWorld(16).data()
    levels = [sigma for sigma in shifted_sigmas(20).tolist() if sigma < 0.4]
    world = GaussianWorld(16, sigmas=levels, image=image)
    result = run(world, strategy, world.noise(4), budget=6.0)
    near = torch.cosine_similarity(result.latents.flatten(1), image.flatten(1))
    assert near.min() > 0.7
    assert result.latents.isfinite().all()


def test_changing_a_strategys_parameters_changes_its_search():
    """No parameter is read past: each one, changed, gives another sample (or another cost)."""
    world = GaussianWorld(8, steps=20)
    changes = {
        "drafts": {"draft_steps": 10},
        "zero_order": {"neighbours": 2, "radius": 0.3, "draft_steps": 10},
        "paths": {"width": 3, "rounds": 2, "window": 0.9, "back_share": 0.25, "draft_steps": 12},
        "particles": {"every": 2, "window": 0.5, "temperature": 0.1, "eta": 0.9},
        "rbf": {"noise_share": 0.5},
        "evolution": {
            "elites": 3,
            "generations": 2,
            "window": 0.6,
            "mutation": 0.9,
            "draft_steps": 12,
        },
        "reward_gradient": {"begin": 0.3, "ascent": 0.05},
        "best_of_n": {},
        "steered": {
            "draft_steps": 8,
            "rounds": 3,
            "decay": 0.3,
            "correlation": 0.8,
            "parents": 1,
        },
        "flow_ttrl": {
            "group_size": 4,
            "rl_iterations": 1,
            "internal_reward_timestep": 0.1,
            "external_reward_timestep": 0.2,
            "noise_range": (0.9, 0.4),
            "gradient": "jacobian_free",
            "scale_factor": 100.0,
            "prdp_scale": 3.0,
            "grpo_scale": 0.5,
            "beta1": 3.0,
            "beta2": 50.0,
            "clip": 1e-3,
            "adv_clip_max": 0.5,
            "reward_diff_threshold": 0.5,
            "rationorm": False,
        },
        "glass": {
            "transitions": 2,
            "window": 0.5,
            "inner": 3,
            "correlation": 0.8,
            "parents": 1,
            "draft_steps": 10,
        },
    }
    assert set(changes) == set(STRATEGIES)
    for strategy, parameters in changes.items():
        budget = 12.0 if strategy == "flow_ttrl" else 4.0  # its whole window
        settings = only_search(strategy, budget=budget)
        assert set(parameters) == set(vars(settings.parameters)), strategy
        usual = search(world, world.noise(8), settings).latents
        for name, value in parameters.items():
            changed = replace(settings.parameters, **{name: value})
            other = search(world, world.noise(8), replace(settings, parameters=changed)).latents
            assert not torch.equal(usual, other), f"{strategy} {name}"


def test_every_strategy_is_here():
    """A new one is in every test of this folder at once, through the table."""
    assert set(SELECTING) | {"flow_ttrl", "reward_gradient"} == set(STRATEGIES)
    assert all(
        name == strategy.parameters.strategy == strategy.parameters().strategy
        for name, strategy in STRATEGIES.items()
    )


def test_levels_that_rounding_has_left_above_1_are_1():
    """In every strategy; the first of them is what the model is told."""
    for sigmas in ([1.000001, 1.0, 0.7, 0.4, 0.0], [1.000001, 0.7, 0.4, 0.0]):
        world, told = GaussianWorld(8, sigmas=sigmas), []
        for strategy in STRATEGIES:
            result = search(
                world, world.noise(), only_search(strategy, budget=6.0), on_step=told.append
            )
            assert result.latents.isfinite().all()
            assert result.steps == 3
