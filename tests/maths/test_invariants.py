"""What must hold for every strategy: bits, batches, ranks, sizes, ties and broken rewards."""

import json
import math
from dataclasses import replace

import pytest
import torch
from probes import (
    EACH,
    SELECTING,
    Recorder,
    Rewarded,
    Telling,
    Wrapped,
    euler,
    only_search,
    spy_on_look_aheads,
)

from flow_ttrl.sampling import STRATEGIES, Run, make_settings, sample, search, shifted_sigmas
from flow_ttrl.sampling.objectives import tied
from flow_ttrl.sampling.strategies.common import top
from flow_ttrl.world.gaussian import GaussianWorld

NAN = float("nan")


def run(flow, strategy, x, seed=0, **changes):
    return search(flow, x, only_search(strategy, **{"budget": 4.0} | changes), seed=seed)


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


def test_the_best_stands_in_for_those_without_a_verdict():
    world = GaussianWorld(8, steps=10)
    any_run = Run(world, world.noise(2), seed=0, settings=make_settings())
    values = {"linear": torch.tensor([[1.0, NAN], [NAN, NAN], [2.0, 5.0], [NAN, 4.0]])}
    any_run.compare(values)
    assert top(any_run, values, 3).tolist() == [[2, 2], [0, 3], [2, 2]]


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


# Ties and broken rewards


@EACH
def test_rewards_that_tie_leave_a_finite_sample(strategy):
    flow = Rewarded(GaussianWorld(8, steps=10), lambda total: 0 * total + 0.3)
    result = run(flow, strategy, flow.flow.noise(2))
    assert result.latents.isfinite().all()
    torch.testing.assert_close(result.rewards, torch.tensor([0.3, 0.3]))


@pytest.mark.parametrize("strategy", ["best_of_n", "flow_ttrl", "reward_gradient"])
def test_rewards_that_tie_leave_the_plain_sample(strategy):
    """Bit by bit, where the plain sample is the first of the candidates or the one that moves."""
    flow = Rewarded(GaussianWorld(8, steps=10), lambda total: 0 * total + 0.3)
    x = flow.flow.noise(2)
    assert torch.equal(run(flow, strategy, x).latents, sample(flow, x))


class HalfJudged(Wrapped):
    """Images are judged only where their linear brightness is on one side; NaN elsewhere.

    The mode that decides is scaled by a positive factor at every ordinary step, so that what a
    look-ahead says of it is so of the final image.
    """

    def __init__(self, flow, value):
        super().__init__(flow)
        self.value = value

    def score(self, images, item):
        light = torch.atanh((2 * images - 1).clamp(-0.999999, 0.999999)).mean(-1)
        across = torch.arange(light.shape[2]) / light.shape[2]
        wave = (light * torch.sin(2 * math.pi * across)).mean((1, 2))
        return {"linear": wave.where(wave < 0, self.value)}


@pytest.mark.parametrize("strategy", SELECTING)
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_candidate_without_a_verdict_is_never_chosen(strategy, value):
    """Where a group has any with one, the result has one too: groups large enough to have one."""
    flow = HalfJudged(GaussianWorld(8, steps=10), value)
    result = run(flow, strategy, flow.flow.noise(8), budget=16.0)
    assert result.latents.isfinite().all()
    assert result.rewards.isfinite().all()
    assert (result.rewards < 0).all()


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_broken_reward_counts_as_the_others_average(value):
    """In `flow_ttrl`, whose candidates are averaged over: as if it had been their mean."""
    world = GaussianWorld(16, steps=10)
    settings = only_search("flow_ttrl", budget=0, internal_reward_timestep=0.0, scale_factor=5e3)
    averaged, found = [], []
    for reward, results in ((value, found), (None, averaged)):

        class Third(Wrapped):
            def score(self, images, item, reward=reward):
                values = super().score(images, item)["linear"].clone()
                if len(values) == 6:
                    others = values[[0, 1, 3, 4, 5]].mean()
                    values[2] = others if reward is None else reward
                return {"linear": values}

        results.append(search(Third(world), world.noise(), settings))
    torch.testing.assert_close(found[0].latents, averaged[0].latents, atol=1e-5, rtol=1e-5)
    assert all(record.not_finite == 1 for record in found[0].records)
    assert all(record.not_finite == 0 for record in averaged[0].records)
    assert not torch.equal(found[0].latents, sample(world, world.noise()))


@EACH
def test_rewards_all_broken_leave_a_finite_sample(strategy):
    flow = Telling(GaussianWorld(8, steps=10), lambda number: NAN)
    result = run(flow, strategy, flow.flow.noise(2))
    assert result.latents.isfinite().all()
    for record in result.records:
        assert record.not_finite == sum(len(group) for group in record.rewards)


@EACH
def test_images_that_are_not_finite_are_never_chosen(strategy):
    """A decoder that breaks on some: whatever a reward says of them."""
    world = GaussianWorld(8, steps=10)

    class Breaking(Wrapped):
        decoded = 0

        def decode(self, x0, item):
            images = super().decode(x0, item)
            broken = torch.arange(self.decoded, self.decoded + len(x0)) % 3 == 1
            self.decoded += len(x0)
            return images.masked_fill(broken[:, None, None, None], NAN)

        def score(self, images, item):
            values = super().score(images.nan_to_num(), item)
            broken = images.flatten(1).isnan().any(1)
            return {name: value.masked_fill(broken, 1e6) for name, value in values.items()}

    result = run(Breaking(world), strategy, world.noise(2))
    assert result.latents.isfinite().all()
    assert not (result.rewards > 1e5).any()


@EACH
def test_what_was_judged_is_what_is_reported(strategy):
    """No candidate is called missing that was never made."""
    recorder = Recorder(GaussianWorld(8, steps=10))
    result = run(recorder, strategy, recorder.flow.noise(3))
    for record in result.records:
        assert record.not_finite == 0
        assert record.missing == {}
        assert len(record.rewards) == 3
    assert sum(record.price for record in result.records) <= result.cost.calls
    calls = [record.calls for record in result.records]
    assert calls == sorted(calls)


@EACH
def test_the_report_is_json(strategy):
    world = GaussianWorld(8, steps=10)
    result = search(world, world.noise(2), make_settings(strategy, budget=4.0), seed=7)
    report = json.loads(json.dumps(result.report(), allow_nan=False))
    assert report["seed"] == 7
    assert report["steps"] == 10
    assert report["settings"]["strategy"] == strategy
    assert report["values"]["linear"] == report["rewards"] == result.rewards.tolist()
    assert report["cost"]["times_plain"] == pytest.approx(result.cost.calls / 20, abs=1e-3)
    assert report["planned_calls"] == 2 * result.planned
    assert len(report["search_steps"]) == len(result.records) > 0 or strategy == "reward_gradient"
    for step in report["search_steps"]:
        assert len(step["rewards"]) == 2
        assert step["values"]["linear"] == step["rewards"]


# Look-aheads


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_look_ahead_costs_a_call_a_step(length):
    """Over levels of the schedule, evenly spaced in it, from the first to the clean end."""
    recorder = Recorder(GaussianWorld(8, steps=12))
    settings = only_search("drafts", budget=4.0, draft_steps=length)
    search(recorder, recorder.flow.noise(), settings)
    levels = recorder.sigmas.tolist()
    drafts = [call for call in recorder.calls if len(call.x) > 1]
    visited = [levels.index(call.sigma) for call in drafts]
    assert visited == [round(12 * k / length) for k in range(length)]


def test_a_look_ahead_of_one_step_is_the_data_estimate(monkeypatch):
    world = GaussianWorld(8, steps=10)
    looks = spy_on_look_aheads(monkeypatch, world)
    search(world, world.noise(), only_search("rbf", budget=3.0))
    first, sigma = looks[0], world.sigmas.tolist()[looks[0].index]
    v = world.velocity(first.x[0], sigma, torch.arange(1))
    expected = world.judged(first.x[0] - sigma * v)
    torch.testing.assert_close(first.totals[0], expected, atol=1e-5, rtol=1e-5)


def test_ties_are_what_rounding_leaves():
    rewards = torch.tensor([[1.0, 5.0, 2.0], [2.0, 5.0, 2.0], [6.0, 5.0, 2.0 + 1e-7]])
    assert tied(rewards).tolist() == [False, True, True]


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


@EACH
@pytest.mark.parametrize("keep_better", [False, True])
def test_a_sound_search_has_nothing_to_warn_of(strategy, keep_better):
    """Nor does one that begins with a latent that is noisy already."""
    whole = GaussianWorld(32, steps=20)
    settings = make_settings(strategy, budget=4.0, keep_better=keep_better)
    assert search(whole, whole.noise(2), settings).warnings == ()
    late = GaussianWorld(32, sigmas=whole.sigmas.tolist()[8:], image=whole.data())
    assert search(late, late.noise(2), settings).warnings == ()


@pytest.mark.parametrize("keep_better", [False, True])
def test_a_latent_far_too_wide_is_warned_of(keep_better):
    class Exploding(GaussianWorld):
        """Sampling goes astray in the search, in its stochastic steps, and not in plain steps."""

        def velocity(self, x, sigma, item):
            v = super().velocity(x, sigma, item)
            return v - 40 * x if len(x) > 1 else v

        def score(self, images, item):
            return {"linear": images.std((1, 2, 3))}

    flow = Exploding(16, steps=20)
    settings = make_settings("particles", budget=3.0, keep_better=keep_better)
    (told,) = search(flow, flow.noise(), settings).warnings
    assert "no image any more" in told


def test_one_candidate_alone_is_not_called_flat():
    world = GaussianWorld(8, steps=20)
    for strategy, budget in (("rbf", 4.0), ("reward_gradient", 2.0)):
        records = search(world, world.noise(), only_search(strategy, budget=budget)).records
        assert records
        assert not any(record.flat for record in records)


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
