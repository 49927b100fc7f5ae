"""Rewards that tie, fail or are not finite: none such is chosen, and samples stay finite."""

import math

import pytest
import torch
from probes import EACH, NAN, SELECTING, Rewarded, Telling, Wrapped, only_search, run

from flow_ttrl.sampling import Run, make_settings, sample, search
from flow_ttrl.sampling.strategies.common import top
from flow_ttrl.world.gaussian import GaussianWorld


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


def test_the_best_stands_in_for_those_without_a_verdict():
    world = GaussianWorld(8, steps=10)
    any_run = Run(world, world.noise(2), seed=0, settings=make_settings())
    values = {"linear": torch.tensor([[1.0, NAN], [NAN, NAN], [2.0, 5.0], [NAN, 4.0]])}
    any_run.compare(values)
    assert top(any_run, values, 3).tolist() == [[2, 2], [0, 3], [2, 2]]


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
