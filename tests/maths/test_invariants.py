"""What must hold whatever the settings: bits, batches, ranks, ties and broken rewards."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from gaussian_world import GaussianWorld
from probes import Recorder, Rewarded, Wrapped, label

from flow_ttrl.sampling import (
    PRESETS,
    KeyedNoise,
    RewardBatch,
    SearchSettings,
    preset,
    sample,
    search,
)
from flow_ttrl.sampling.objectives import advantages, tied
from flow_ttrl.sampling.settings import GRADIENTS, STEPS, UPDATES

VARIANTS = [
    SearchSettings(
        preset=f"{update}-{gradient}-{step}",
        update=update,
        gradient=gradient,
        step=step,
        internal_reward_timestep=0.3,
        external_reward_timestep=0.7,
        rl_iterations=1 if update == "steered" else 2,
        beta2=1e-4,
    )
    for update in UPDATES
    for gradient in GRADIENTS
    for step in STEPS
]
EVERY = pytest.mark.parametrize("settings", [*PRESETS.values(), *VARIANTS], ids=label)
EACH_PRESET = pytest.mark.parametrize("settings", PRESETS.values(), ids=label)


def run(flow, settings, x, noise=0, **keywords):
    noise = KeyedNoise(noise) if isinstance(noise, int) else noise
    return search(flow, x, settings, noise, **keywords)


@EVERY
def test_tied_rewards_leave_the_sample_alone(settings):
    """Bit by bit the plain sample: in the loss with KL, through J."""
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    result = run(Rewarded(world, lambda total: 0 * total + 0.3), settings, x)
    assert torch.equal(result.latents, sample(world, x))


@EVERY
def test_an_empty_window_is_plain_sampling(settings):
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    result = run(world, replace(settings, external_reward_timestep=0.0), x)
    assert torch.equal(result.latents, sample(world, x))
    assert not result.records
    assert result.cost.model_calls == 20


@pytest.mark.parametrize("update", ["rotation", "noise_rotation", "additive"])
def test_strength_zero_is_plain_sampling(update):
    world = GaussianWorld(8, steps=10)
    settings = SearchSettings(update=update, update_range=(0.0, 0.0))
    torch.testing.assert_close(
        run(world, settings, world.noise()).latents, sample(world, world.noise())
    )


def test_plain_sampling_is_euler_bit_by_bit():
    world = GaussianWorld(8, steps=10)
    x = expected = world.noise(2)
    for s, s_next in zip(world.sigmas, world.sigmas[1:], strict=False):
        expected = expected + world.velocity(expected, float(s)) * (s_next - s)
    assert torch.equal(sample(world, x), expected)


@EVERY
def test_a_seed_fixes_every_bit(settings):
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    one, again, other = (run(world, settings, x, noise=seed) for seed in (5, 5, 6))
    assert torch.equal(one.latents, again.latents)
    assert [r.rewards for r in one.records] == [r.rewards for r in again.records]
    assert not torch.equal(one.latents, other.latents)


@pytest.mark.parametrize("step", [0, 3])
def test_noise_depends_on_its_key_alone(step):
    x = torch.zeros(3, 2, 4, 4)
    group = KeyedNoise(1).group(step, 5, x)
    assert group.shape == (5, 3, 2, 4, 4)
    assert torch.equal(group[:2, :1], KeyedNoise(1).group(step, 2, x[:1]))
    assert torch.equal(group[4, 2], KeyedNoise(1).draw(2, step, 4, x.shape[1:]))
    draws = [*group.flatten(0, 1), *KeyedNoise(2).group(step, 5, x).flatten(0, 1)]
    assert len({draw[0, 0, 0].item() for draw in draws}) == 30
    many = KeyedNoise(3).draw(0, 0, 0, torch.Size([100_000]))
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


@EVERY
def test_an_item_of_a_batch_is_a_run_of_its_own(settings):
    world = GaussianWorld(8, steps=10)
    x = world.noise(3)
    batch = run(world, settings, x, noise=4)
    for item in range(3):
        alone = run(world, settings, x[item : item + 1], noise=KeyedNoise(4, first_item=item))
        torch.testing.assert_close(
            batch.latents[item : item + 1], alone.latents, atol=1e-3, rtol=1e-3
        )
        for together, single in zip(batch.records, alone.records, strict=True):
            assert together.rewards[item] == pytest.approx(single.rewards[0], abs=1e-3)


@EVERY
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_do_not_matter(settings, micro_batch):
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    whole, parts = run(world, settings, x), Recorder(world)
    split = run(parts, replace(settings, micro_batch=micro_batch), x)
    torch.testing.assert_close(split.latents, whole.latents, atol=1e-3, rtol=1e-3)
    assert split.cost == whole.cost
    assert max(len(rows) for rows, _ in parts.calls) == 2 * micro_batch


@EVERY
def test_video_latents_run(settings):
    """[B, C, T, H, W]: nothing assumes a rank."""
    world = GaussianWorld(8, steps=10)
    x = world.noise(6).view(2, 3, 4, 8, 8).transpose(1, 2)
    plain = world.score(world.decode(sample(world, x))).total
    result = run(world, settings, x)
    assert result.latents.shape == (2, 4, 3, 8, 8)
    assert result.latents.isfinite().all()
    assert not torch.equal(result.rewards, plain)


def test_equal_latents_have_equal_means_and_ratios_of_one():
    """Two items with the same latent and noise stay bit-equal through a whole search."""
    world = GaussianWorld(8, steps=10)

    class SameNoise(KeyedNoise):
        def draw(self, item, step, candidate, shape):
            return super().draw(0, step, candidate, shape)

    x = world.noise().repeat(2, 1, 1, 1)
    for settings in (*PRESETS.values(), *VARIANTS):
        result = run(world, settings, x, noise=SameNoise(0))
        assert torch.equal(result.latents[0], result.latents[1])


@EVERY
def test_a_video_of_one_frame_is_an_image(settings):
    world = GaussianWorld(8, steps=10)
    x = world.noise(2)
    video = run(world, settings, x[:, :, None]).latents
    torch.testing.assert_close(
        video[:, :, 0], run(world, settings, x).latents, atol=1e-3, rtol=1e-3
    )


class InferenceHost(Wrapped):
    """A flow whose host samples in inference mode, as ComfyUI does."""

    @contextmanager
    def gradients(self):
        with torch.inference_mode(False), torch.enable_grad():
            yield


@EVERY
def test_a_host_in_inference_mode_gets_the_same_bits(settings):
    world = GaussianWorld(8, steps=10)
    expected = run(world, settings, world.noise(2))
    with torch.inference_mode():
        found = run(InferenceHost(world), replace(settings, max_calls=10**6), world.noise(2))
    assert torch.equal(found.latents, expected.latents)
    assert found.cost == expected.cost


def test_advantages_are_group_relative():
    rewards = torch.tensor([[1.0, 5.0, 2.0], [2.0, 5.0, 2.0], [6.0, 5.0, 2.0 + 1e-7]])
    found = advantages(rewards, clip=1.0)
    expected = (rewards[:, 0] - 3) / (rewards[:, 0].std() + 1e-4)
    torch.testing.assert_close(found[:, 0], expected.clamp(-1, 1))
    assert not found[:, 1:].any()
    assert tied(rewards).tolist() == [False, True, True]


class Broken(Wrapped):
    """A flow whose rewards are ``value`` wherever ``where(call, row)`` says so."""

    def __init__(self, flow, where, value=float("nan")):
        super().__init__(flow)
        self.where, self.value, self.scored = where, value, 0

    def score(self, images):
        total = super().score(images).total.clone()
        for row in range(len(total)):
            if self.where(self.scored, row):
                total[row] = self.value
        self.scored += 1
        return RewardBatch(total)


@EACH_PRESET
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_rewards_are_survived_and_counted(settings, value):
    """One candidate's reward in every group: it counts as the mean of the others."""
    world = GaussianWorld(16, steps=10)
    groups = Broken(world, lambda call, row: row == 2, value)
    result = run(groups, settings, world.noise())
    assert result.latents.isfinite().all()
    plain = world.score(world.decode(sample(world, world.noise()))).total
    assert result.rewards > plain
    for record in result.records:
        (rewards,) = record.rewards
        others = [r for g, r in enumerate(rewards) if g != 2]
        assert record.not_finite == 1
        assert rewards[2] == pytest.approx(sum(others) / 5, abs=1e-5)


@EACH_PRESET
def test_rewards_all_broken_leave_the_sample_alone(settings):
    world = GaussianWorld(8, steps=10)
    x = world.noise()
    result = run(Broken(world, lambda call, row: True), settings, x)
    assert torch.equal(result.latents, sample(world, x))
    assert all(record.not_finite >= 6 for record in result.records)


def test_a_group_without_rewards_is_never_the_best_so_far():
    """Stopped after a group that was all NaN, the search goes on from the best real candidate."""
    world = GaussianWorld(16, steps=10, reward="target")  # rewards are negative
    settings = SearchSettings(
        update="rotation", update_range=(0.3, 0.3), external_reward_timestep=0.5
    )
    asked = iter([False, False, True])
    flow = Recorder(Broken(world, lambda call, row: call == 1))
    result = run(flow, settings, world.noise(), finish_now=lambda: next(asked))
    best = flow.at(float(world.sigmas[1]), rows=6)[0][
        torch.tensor(result.records[0].rewards[0]).argmax()
    ]
    from_there = flow.at(float(world.sigmas[1]), rows=1)[-1][0]
    assert torch.equal(from_there, best)


@EACH_PRESET
@pytest.mark.parametrize("reward", ["linear", "counting"])
def test_keep_better_is_never_below_the_plain_sample(settings, reward):
    """Even where the search is led astray by the wrong rewards until the end."""
    world = GaussianWorld(16, steps=10, reward=reward)
    x = world.noise(4)
    plain = sample(world, x)
    rewards = world.score(world.decode(plain)).total

    class Misled(Wrapped):
        def score(self, images):
            batch = super().score(images)
            return batch if len(images) == 4 else RewardBatch(-batch.total, batch.values)

    for flow in (world, Misled(world)):
        result = run(flow, replace(settings, keep_better=True), x)
        assert (result.rewards >= rewards - 1e-6).all()
        kept = torch.tensor(result.kept_plain)
        assert torch.equal(result.latents[kept], plain[kept])
        assert kept.any() == isinstance(flow, Misled)


def test_keep_better_keeps_the_plain_sample_from_a_broken_result():
    """A result whose own reward is NaN is not the better one."""
    world = GaussianWorld(8, steps=10)
    settings = replace(preset("balanced"), keep_better=True)
    searches = 2 * len(settings.search_steps(10))
    result = run(Broken(world, lambda call, row: call == searches), settings, world.noise())
    assert result.kept_plain == [True]
    assert torch.equal(result.latents, sample(world, world.noise()))


def test_the_report_is_json():
    world = GaussianWorld(8, steps=10)
    for settings in PRESETS.values():
        result = run(world, replace(settings, keep_better=True), world.noise(2))
        report = json.loads(json.dumps(result.report()))
        assert len(report["search_steps"]) == len(settings.search_steps(10))
        assert report["values"]["linear"] == report["rewards"] == result.rewards.tolist()
        assert report["cost"]["times_plain"] == pytest.approx(result.cost.calls / 20, abs=1e-3)
        for step in report["search_steps"]:
            assert [len(group) for group in step["rewards"]] == [6, 6]
            assert step["values"]["linear"] == step["rewards"]


def test_a_look_ahead_of_every_step_sees_the_final_image():
    """What it promises of the latent that is gone on from is what plain sampling then draws."""
    world = GaussianWorld(16, steps=10)
    settings = SearchSettings(step="matched", search_every=10, look_ahead_range=(64, 64))
    result = run(world, settings, world.noise(3))
    (record,) = result.records
    seen = [max(best, kept) for best, kept in zip(record.best, record.kept, strict=True)]
    torch.testing.assert_close(result.rewards, torch.tensor(seen))


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_look_ahead_costs_a_call_a_step(length):
    """Over levels of the schedule, evenly spaced in it, the clean end among them."""
    world = GaussianWorld(8, steps=12)
    settings = SearchSettings(
        step="matched", search_every=12, look_ahead_range=(length, length), elitist=False
    )
    recorder = Recorder(world)
    run(recorder, settings, world.noise())
    levels = world.sigmas.tolist()
    visited = [levels.index(level) for x, level in recorder.calls if len(x) == settings.group_size]
    assert visited == [1 + round(11 * k / length) for k in range(length)]


@pytest.mark.parametrize("every, expected", [(1, range(9)), (4, [0, 4, 8]), (100, [0])])
def test_search_every_leaves_ordinary_steps_between(every, expected):
    world = GaussianWorld(8, steps=10)
    settings = replace(preset("balanced"), search_every=every)
    result = run(world, settings, world.noise())
    assert [record.index for record in result.records] == list(expected)
    etas, looks = ([getattr(r, n) for r in result.records] for n in ("eta", "look_ahead"))
    assert (etas[0], looks[0]) == (0.8, 5)
    assert len(expected) == 1 or (etas[-1], looks[-1]) == pytest.approx((0.5, 1))
