"""Rewards whose total depends on what an image is compared with, through a whole search."""

from dataclasses import replace

import pytest
import torch
from probes import EACH, SELECTING, Mixed, Named, Wrapped, only_search, spy_on_look_aheads

from flow_ttrl.rewards import MODES, RewardMix
from flow_ttrl.sampling import make_settings, sample, search
from flow_ttrl.world.gaussian import GaussianWorld

EACH_MODE = pytest.mark.parametrize("mode", MODES)
SOME = pytest.mark.parametrize("strategy", ["steered", "glass", "rbf", "particles", "flow_ttrl"])


@EACH_MODE
@pytest.mark.parametrize("strategy", SELECTING)
def test_every_mode_finds_better_images(strategy, mode):
    world = GaussianWorld(16, steps=10)
    x = world.noise(8)
    result = search(Mixed(world, mode), x, only_search(strategy, budget=5.0))
    assert (world.judged(result.latents) - world.judged(sample(world, x))).mean() > 0.2


@pytest.mark.parametrize("strategy", ["best_of_n", "drafts", "rbf", "glass", "zero_order"])
def test_of_one_reward_every_mode_takes_the_same_candidates(strategy):
    """A rank and a standardised value order images as the values themselves do."""
    world = GaussianWorld(16, steps=10)
    latents = [
        search(Mixed(world, mode), world.noise(3), only_search(strategy, budget=4.0)).latents
        for mode in MODES
    ]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])


@EACH_MODE
@SOME
def test_totals_do_not_depend_on_micro_batches(strategy, mode):
    world = GaussianWorld(8, steps=10)
    x, settings = world.noise(2), only_search(strategy, budget=4.0)
    whole = search(Mixed(world, mode), x, settings)
    pieces = search(Mixed(world, mode), x, replace(settings, micro_batch=2))
    assert torch.allclose(pieces.latents, whole.latents, atol=1e-4)
    assert torch.allclose(pieces.rewards, whole.rewards, atol=1e-3, rtol=1e-4)


@EACH_MODE
@SOME
def test_a_batch_item_is_compared_with_its_own_images_alone(strategy, mode):
    world, settings = GaussianWorld(8, steps=10), only_search(strategy, budget=4.0)
    pair, single = (search(Mixed(world, mode), world.noise(n), settings) for n in (2, 1))
    assert torch.allclose(pair.latents[:1], single.latents, atol=1e-4)
    assert torch.allclose(pair.rewards[:1], single.rewards, atol=1e-3, rtol=1e-4)


@EACH_MODE
@SOME
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_keep_better_keeps_the_better_one_in_every_mode(strategy, mode, sign):
    """Also where better means worse; and both totals are of the same comparison."""
    world = GaussianWorld(8, steps=10)
    x = world.noise(4)
    plain = world.judged(sample(world, x))
    result = search(Mixed(world, mode, sign=sign), x, make_settings(strategy, budget=3.0))
    assert (sign * (world.judged(result.latents) - plain) >= -1e-6).all()
    assert (result.rewards >= result.plain_rewards).all()
    kept = torch.tensor(result.kept_plain)
    assert torch.equal(result.latents[kept], sample(world, x)[kept])
    assert torch.equal(result.rewards[kept], result.plain_rewards[kept])


@EACH_MODE
@SOME
def test_a_plain_sample_for_comparison_changes_no_searched_latent(strategy, mode):
    world, settings = GaussianWorld(8, steps=10), only_search(strategy, budget=3.0)
    with_plain, without = (
        search(Mixed(world, mode), world.noise(3), settings, baseline=baseline)
        for baseline in (True, False)
    )
    assert torch.equal(with_plain.latents, without.latents)
    assert with_plain.cost == without.cost
    better = world.judged(with_plain.latents) > world.judged(with_plain.plain.latents)
    assert torch.equal(with_plain.rewards > with_plain.plain_rewards, better)


@EACH_MODE
def test_what_is_missing_or_flat_is_in_the_report(mode):
    world = GaussianWorld(8, steps=10)
    flow = Mixed(world, mode, lambda number: number == 2)
    result = search(flow, world.noise(), only_search("glass", budget=5.0))
    first, *others = result.records
    assert first.missing == {"large": 1}
    assert all(record.missing == {} for record in others)
    assert all(record.flat == ["same"] for record in result.records)
    assert all(record.not_finite == 0 for record in result.records)
    report = result.report()
    assert report["search_steps"][0]["missing"] == {"large": 1}
    assert report["search_steps"][0]["values"]["large"][0][2] is None


@EACH_MODE
def test_a_missing_reward_counts_as_average(mode):
    """The other rewards still tell candidates apart, the one that misses it among them."""
    world = GaussianWorld(16, steps=10)
    x = world.noise(8)
    flow = Mixed(world, mode, lambda number: number % 5 == 2)
    result = search(flow, x, only_search("glass", budget=5.0))
    assert (world.judged(result.latents) - world.judged(sample(world, x))).mean() > 0.2


@EACH_MODE
def test_a_target_is_met_by_the_best_so_far(mode):
    """Totals of what was seen before are counted anew as more is seen."""
    world = GaussianWorld(8, steps=10)
    settings = only_search("rbf", budget=4.0, target_reward=-1e9)
    result = search(Mixed(world, mode), world.noise(), settings)
    assert result.stopped == "target_reward"
    assert len(result.records) == 1


def test_the_best_so_far_is_best_of_all_that_was_seen(monkeypatch):
    """In ranks: the total of an early look-ahead falls as better ones are seen."""
    world = GaussianWorld(8, steps=10)
    flow = Mixed(world, "rank")
    looks = spy_on_look_aheads(monkeypatch, flow)
    asked = iter([False] * 4)
    settings = only_search("rbf", budget=4.0)
    result = search(flow, world.noise(), settings, finish_now=lambda: next(asked, True))
    assert result.stopped == "finish_now"
    values = [value for record in result.records for value in record.values["small"][0]]
    number, totals = values.index(max(values)), [look.totals.item() for look in looks]
    assert totals[number] >= max(totals[: number + 1])
    # gone on from the very candidate whose value was the highest
    levels = world.sigmas.tolist()
    tail = GaussianWorld(8, sigmas=levels[looks[number].index :])
    expected = sample(tail, looks[number].x[0] / levels[looks[number].index])
    torch.testing.assert_close(result.latents, expected, atol=1e-4, rtol=1e-4)


class Alone(Wrapped):
    """A flow whose totals are the raw sums, computed without a look at what else was seen."""

    def totals(self, values, seen):
        return (values["large"] + values["small"] + values["same"]).clone()


@EACH
def test_raw_totals_do_not_depend_on_what_was_seen(strategy):
    world, settings = GaussianWorld(8, steps=10), only_search(strategy, budget=4.0)
    one, other = (
        search(flow(Mixed(world, "raw")), world.noise(2), settings) for flow in (Wrapped, Alone)
    )
    torch.testing.assert_close(one.latents, other.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.rewards, other.rewards)


class Differentiable(Named):
    differentiable = True


@EACH_MODE
def test_a_mode_without_a_gradient_is_refused_before_the_first_call(mode):
    """`reward_gradient` on a mixed reward: it climbs, or is told off; it never idles."""
    mix = RewardMix(((Differentiable("large"), 1.0), (Differentiable("small"), 1.0)), mode)
    world, calls = GaussianWorld(8, steps=10), []

    class Judged(Mixed):
        def totals(self, values, seen):
            return mix.totals(values, seen)

        def image_gradients(self):
            mix.judge([""]).check_differentiable()
            return torch.enable_grad()

        def velocity(self, x, sigma, item):
            calls.append(sigma)
            return super().velocity(x, sigma, item)

    try:
        result = search(
            Judged(world, mode), world.noise(4), only_search("reward_gradient", budget=3.0)
        )
    except ValueError as error:
        assert mode in str(error)
        assert not calls
    else:
        gain = world.judged(result.latents) - world.judged(sample(world, world.noise(4)))
        assert (gain > 0).all()
