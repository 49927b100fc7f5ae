"""Rewards whose total depends on what an image is compared with, through a whole search."""

from dataclasses import replace

import pytest
import torch
from gaussian_world import GaussianWorld
from probes import Wrapped

from flow_ttrl.rewards import MODES, Reward, RewardMix
from flow_ttrl.sampling import PRESETS, KeyedNoise, RewardBatch, preset, sample, search

NAN = float("nan")
SETTINGS = [preset(name, version) for name, version in PRESETS]
EACH_PRESET = pytest.mark.parametrize(
    "settings", SETTINGS, ids=[f"{name}-v{version}" for name, version in PRESETS]
)
EACH_MODE = pytest.mark.parametrize("mode", MODES)


def run(flow, settings, x):
    return search(flow, x, settings, KeyedNoise(0))


class Named(Reward):
    units, typical = "any", (0.0, 1.0)

    def __init__(self, name: str):
        self.name = name

    def score(self, images, prompts):
        raise NotImplementedError("the flow below scores")


class Mixed(Wrapped):
    """The world's reward twice, in unlike units, and a third that never differs; mixed.

    Args:
        lost: says by (call, row) where the first of them has no value.
    """

    def __init__(self, world, mode: str, lost=lambda call, row: False):
        super().__init__(world)
        parts = ((Named("large"), 1.0), (Named("small"), 1.0), (Named("same"), 1.0))
        self.mix, self.lost, self.scored = RewardMix(parts, mode), lost, 0

    def score(self, images):
        reward = super().score(images).total
        large = torch.tensor(
            [NAN if self.lost(self.scored, row) else 1000 * r for row, r in enumerate(reward)]
        )
        self.scored += 1
        values = {"large": large, "small": 0.01 * reward, "same": torch.full_like(reward, 7.0)}
        total = self.mix.totals({name: value[:, None] for name, value in values.items()})[:, 0]
        return RewardBatch(total, values, self.mix.totals)


@EACH_PRESET
@EACH_MODE
def test_every_mode_finds_a_better_image(settings, mode):
    world = GaussianWorld(16, steps=10)
    plain = world.score(world.decode(sample(world, world.noise()))).total
    result = run(Mixed(world, mode), settings, world.noise())
    assert world.score(world.decode(result.latents)).total > plain


@EACH_MODE
def test_totals_do_not_depend_on_micro_batches(mode):
    world = GaussianWorld(8, steps=10)
    x, settings = world.noise(2), preset("balanced")
    whole = run(Mixed(world, mode), settings, x)
    for size in (1, 4):
        pieces = run(Mixed(world, mode), replace(settings, micro_batch=size), x)
        assert torch.allclose(pieces.latents, whole.latents, atol=1e-4)
        assert torch.allclose(pieces.rewards, whole.rewards, atol=1e-3, rtol=1e-4)


@EACH_MODE
def test_a_batch_item_is_compared_with_its_own_images_alone(mode):
    world = GaussianWorld(8, steps=10)
    pair = run(Mixed(world, mode), preset("balanced"), world.noise(2))
    single = run(Mixed(world, mode), preset("balanced"), world.noise(1))
    assert torch.allclose(pair.latents[:1], single.latents, atol=1e-4)
    assert torch.allclose(pair.rewards[:1], single.rewards, atol=1e-3, rtol=1e-4)


@EACH_MODE
def test_keep_better_keeps_the_better_one_in_every_mode(mode):
    world = GaussianWorld(8, steps=10)
    x = world.noise(4)
    plain = sample(world, x)
    settings = replace(preset("balanced"), keep_better=True)
    result = run(Mixed(world, mode), settings, x)
    ours, theirs = (world.score(world.decode(latents)).total for latents in (result.latents, plain))
    assert (ours >= theirs - 1e-6).all()
    misled = Mixed(world, mode)
    misled.mix = replace(misled.mix, parts=tuple((r, -w) for r, w in misled.mix.parts))
    kept = run(misled, settings, x)
    assert (world.score(world.decode(kept.latents)).total <= theirs + 1e-6).all()


@EACH_MODE
def test_what_is_missing_or_flat_is_in_the_report(mode):
    world = GaussianWorld(8, steps=10)
    result = run(Mixed(world, mode, lambda call, row: row == 2), preset("balanced"), world.noise())
    plain = world.score(world.decode(sample(world, world.noise()))).total
    assert world.score(world.decode(result.latents)).total > plain
    for record in result.records:
        assert record.missing == {"large": 1}
        assert record.flat == ["same"]
        assert record.not_finite == 0
    report = result.report()
    assert report["search_steps"][0]["missing"] == {"large": 1}
    assert report["search_steps"][0]["values"]["large"][0][2] is None


@EACH_MODE
def test_a_target_is_met_by_the_best_so_far(mode):
    """Totals of what was seen before are counted anew as more is seen."""
    world = GaussianWorld(8, steps=10)
    settings = replace(preset("balanced"), target_reward=-1e9)
    result = run(Mixed(world, mode), settings, world.noise())
    assert result.stopped == "target_reward"
    assert len(result.records) == 1


def test_raw_without_gaps_is_the_total_on_its_own():
    """The same bits, whether totals are compared or not."""
    world = GaussianWorld(8, steps=10)
    flow = Mixed(world, "raw")

    class Alone(Wrapped):
        def score(self, images):
            return replace(super().score(images), mix=None)

    settings = preset("balanced")
    one, other = (run(f, settings, world.noise(2)) for f in (flow, Alone(flow)))
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(one.rewards, other.rewards)


@EACH_MODE
@pytest.mark.parametrize("keep_better", [False, True])
def test_the_plain_samples_rewards_are_comparable(mode, keep_better):
    """Where the plain sample is kept, both totals are the same one; telling costs nothing."""
    world = GaussianWorld(8, steps=10)
    x, settings = world.noise(4), replace(preset("balanced"), keep_better=keep_better)
    plain = sample(world, x)
    misled = Mixed(world, mode)
    misled.mix = replace(misled.mix, parts=tuple((r, -w) for r, w in misled.mix.parts))
    for flow in (Mixed(world, mode), misled):
        told = search(flow, x, settings, KeyedNoise(0), plain=plain)
        alone = run(flow, replace(settings, keep_better=False), x)
        assert told.plain_rewards.shape == (4,)
        if keep_better:
            assert (told.rewards >= told.plain_rewards).all()
            kept = torch.tensor(told.kept_plain)
            assert torch.equal(told.rewards[kept], told.plain_rewards[kept])
        else:
            assert told.cost == alone.cost
            assert torch.equal(told.latents, alone.latents)
            assert alone.plain_rewards is None
