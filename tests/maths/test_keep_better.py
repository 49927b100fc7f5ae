"""The plain sample beside the search: kept where it is better, made alike, and counted apart."""

from dataclasses import replace

import pytest
import torch
from probes import EACH, Rewarded, Telling, Wrapped

from flow_ttrl.rewards import ANALYTIC, RewardMix
from flow_ttrl.sampling import (
    STRATEGIES,
    Cost,
    make_settings,
    plan,
    sample,
    search,
    shifted_sigmas,
)
from flow_ttrl.sampling.report import fallen_witnesses
from flow_ttrl.world.gaussian import REWARDS, GaussianWorld


class Misled(Wrapped):
    """A flow in which nothing but its plain sample is any good."""

    def __init__(self, flow, plain):
        super().__init__(flow)
        self.plain = plain

    def score(self, images, item):
        values = super().score(images, item)
        true = torch.stack([(self.plain == image).all((1, 2, 3)).any() for image in images])
        return {name: torch.where(true, value, value - 100) for name, value in values.items()}


class Crowded(Wrapped):
    """A flow whose answer depends on the rows of a call, as rounding does."""

    def velocity(self, x, sigma, item):
        return super().velocity(x, sigma, item) + 1e-3 * len(x)


@EACH
@pytest.mark.parametrize("budget", [1.0, 3.0])
def test_the_plain_sample_is_sampled_as_without_a_search(strategy, budget):
    """Bit for bit, also where the strategy makes it on its way."""
    flow = Crowded(GaussianWorld(8, steps=4))
    x = flow.flow.noise(2)
    result = search(flow, x, make_settings(strategy, budget=budget), baseline=True)
    assert torch.equal(result.plain.latents, sample(flow, x))


@EACH
@pytest.mark.parametrize("reward", REWARDS)
def test_never_below_the_plain_sample(strategy, reward):
    world = GaussianWorld(16, steps=8, reward=reward)
    x = world.noise(6)
    plain = sample(world, x)
    result = search(world, x, make_settings(strategy, budget=2.0))
    assert (result.rewards >= world.judged(plain)).all()
    torch.testing.assert_close(result.rewards, world.judged(result.latents))
    kept = torch.tensor(result.kept_plain)
    assert torch.equal(result.latents[kept], plain[kept])
    assert torch.equal(result.rewards[kept], result.plain_rewards[kept])


@EACH
def test_a_plain_sample_that_is_better_is_kept_bit_by_bit(strategy):
    """Where the search is led to believe that only the plain image is any good."""
    world = GaussianWorld(8, steps=8)
    x = world.noise(3)
    plain = sample(world, x)
    flow = Misled(world, world.decode(plain, torch.arange(3)))
    result = search(flow, x, make_settings(strategy, budget=3.0))
    assert torch.equal(result.latents, plain)
    assert torch.equal(result.rewards, world.judged(plain))
    free = search(flow, x, make_settings(strategy, budget=3.0, keep_better=False)).latents
    assert result.kept_plain == [not torch.equal(a, b) for a, b in zip(free, plain, strict=True)]


@EACH
def test_nothing_of_the_search_depends_on_the_plain_sample(strategy):
    """Asked for or not, kept or not: the searched latents, the cost and the plan are the same."""
    world = GaussianWorld(8, steps=10, prompts=4)
    x, results = world.noise(4), {}
    for keep_better in (False, True):
        for baseline in (False, True):
            settings = make_settings(strategy, budget=3.0, keep_better=keep_better)
            results[keep_better, baseline] = search(world, x, settings, seed=3, baseline=baseline)
    alone = results[False, False]
    assert alone.plain is alone.plain_rewards is alone.kept_plain is None
    for (keep_better, baseline), result in results.items():
        kept = torch.tensor(result.kept_plain or [False] * 4)
        assert torch.equal(result.latents[~kept], alone.latents[~kept])
        assert torch.equal(result.rewards[~kept], alone.rewards[~kept])
        assert (result.cost, result.planned) == (alone.cost, alone.planned)
        assert [r.rewards for r in result.records] == [r.rewards for r in alone.records]
        if keep_better or baseline:
            assert torch.equal(result.plain.latents, sample(world, x))
            torch.testing.assert_close(result.plain_rewards, world.judged(sample(world, x)))


@EACH
@pytest.mark.parametrize("tail", [0, 1])
def test_the_plain_samples_cost_is_told_apart(strategy, tail):
    """One sample, decode and reward an item; nothing where the strategy makes it anyway."""
    sigmas = shifted_sigmas(10).tolist()[: 11 - 3 * tail]
    world, steps = GaussianWorld(8, sigmas=sigmas), 10 - 3 * tail
    settings = make_settings(strategy, budget=3.0)
    result = search(world, world.noise(2), settings, baseline=True)
    calls = 2 * (steps + tail)
    expected = Cost(model_calls=calls, decodes=2, rewards=2, forwards=calls)
    makes_it = plan(settings, sigmas).makes_plain
    assert makes_it or strategy != "best_of_n"
    assert result.plain.cost == (Cost() if makes_it else expected)
    assert result.report()["plain_calls"] == result.plain.cost.calls


def test_a_broken_result_is_not_the_better_one():
    """A searched image whose own reward is NaN gives way to a plain sample that has one."""
    world = GaussianWorld(8, steps=10)
    free = search(world, world.noise(), make_settings("glass", budget=3.0, keep_better=False))
    last = free.cost.rewards  # after the plain sample's, which comes first
    flow = Telling(world, lambda number: float("nan") if number == last else 0.5)
    result = search(flow, world.noise(), make_settings("glass", budget=3.0))
    assert result.kept_plain == [True]
    assert torch.equal(result.latents, sample(world, world.noise()))


def test_a_broken_plain_sample_is_not_the_better_one():
    world = GaussianWorld(8, steps=10)
    flow = Telling(world, lambda number: 0.5 if number else float("nan"))
    result = search(flow, world.noise(), make_settings("glass", budget=3.0))
    assert result.kept_plain == [False]
    assert result.rewards.item() == 0.5


def test_a_tie_keeps_what_was_searched():
    flow = Rewarded(GaussianWorld(8, steps=10), lambda values: 0 * values)
    result = search(flow, flow.flow.noise(2), make_settings("glass", budget=3.0))
    assert result.kept_plain == [False, False]


@pytest.mark.parametrize("budget", [1.05, 1.1, 1.25, 1.4, 1.55])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_budget_that_buys_nothing_makes_the_plain_sample_once(strategy, budget):
    """Either the strategy makes the plain sample itself, or it has something to choose by."""
    world = GaussianWorld(8, steps=20)
    settings = make_settings(strategy, budget=budget, keep_better=True)
    result = search(world, world.noise(), settings, baseline=True)
    judged = sum(len(record.rewards[0]) for record in result.records)
    if result.plain.cost.calls == 0:
        assert result.cost.calls == 20
        assert torch.equal(result.plain.latents, result.latents)
    else:
        assert judged > (0 if strategy == "reward_gradient" else 1)  # which needs but a slope


@pytest.mark.parametrize("mode", ["rank", "standardised"])
def test_a_plain_sample_of_the_strategy_counts_once_among_what_was_seen(mode):
    """Best-of-N makes it anyway: asking for it changes no total."""
    reward = RewardMix(((ANALYTIC["white"], 1.0), (ANALYTIC["contrast"], 1.0)), mode)

    class Judged(GaussianWorld):
        def score(self, images, item):
            return reward.judge([""]).score(images, item)

        def totals(self, values, seen):
            return reward.totals(values, seen)

    world = Judged(8, steps=6)
    settings = make_settings("best_of_n", budget=4.0, keep_better=False)
    alone, beside = (
        search(world, world.noise(3), settings, baseline=baseline) for baseline in (False, True)
    )
    assert torch.equal(alone.rewards, beside.rewards)
    assert torch.equal(alone.latents, beside.latents)


def test_a_witness_that_falls_while_the_driver_rises_is_named():
    """One of weight 0 alone, and only where the search raised what drove it."""
    world = GaussianWorld(8, steps=6)
    result = search(world, world.noise(2), make_settings("best_of_n", budget=3.0))
    (driver,) = result.values
    up, down = torch.full((2,), 0.9), torch.full((2,), 0.1)
    plain = replace(result.plain, values={driver: down[None], "witness": up[None]})
    rose = replace(
        result, rewards=up, plain_rewards=down, plain=plain, values={driver: up, "witness": down}
    )
    (told,) = fallen_witnesses(rose, {driver: 1.0, "witness": 0.0})
    assert told.startswith("witness")
    assert "0.900 to 0.100" in told
    assert not [*fallen_witnesses(rose, {driver: 1.0, "witness": 0.5})]
    fell = replace(rose, rewards=down, plain_rewards=up)
    assert not [*fallen_witnesses(fell, {driver: 1.0, "witness": 0.0})]
    alike = replace(rose, plain=replace(plain, values={driver: down[None], "witness": down[None]}))
    assert not [*fallen_witnesses(alike, {driver: 1.0, "witness": 0.0})]
    assert not [*fallen_witnesses(replace(rose, plain=None), {driver: 1.0, "witness": 0.0})]
