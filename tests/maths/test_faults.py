"""One test or more for every fault of the research code (METHOD.md, section 3), in `flow_ttrl`.

Each fails if its fault comes back. Fault 2 is in test_real_shapes.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from probes import (
    EACH,
    Recorder,
    Rewarded,
    Weighted,
    Wrapped,
    cosines,
    keyed_noise,
    only_search,
    spy_on_losses,
)

from flow_ttrl.sampling import (
    STRATEGIES,
    Cost,
    make_settings,
    plan,
    sample,
    search,
    shifted_sigmas,
)
from flow_ttrl.sampling.objectives import advantages
from flow_ttrl.sampling.steps import log_prob, sde_step
from flow_ttrl.sampling.strategies.flow_ttrl import FlowTTRL
from flow_ttrl.sampling.updates import Group, cotangent
from flow_ttrl.world.gaussian import REWARDS, GaussianWorld


def published(**changes):
    """`flow_ttrl` at the cost of its own parameters, nothing kept but the search's result."""
    return only_search("flow_ttrl", budget=0, **changes)


def traced(flow, x, settings, seed=0):
    """Runs a search of one item; (record, eta, latent before, how the update moved it) by step."""
    recorder, states = Recorder(flow), [x]
    result = search(
        recorder, x, settings, seed=seed, on_step=lambda event: states.append(event.latent)
    )
    for record in result.records:
        index = record.index - 1
        sigma = recorder.sigmas.tolist()[index]
        moved = recorder.at(sigma, 1)[-1] - states[index]  # the advance is the last call there
        yield record, index, states[index], moved


def step_of(record, index, sigmas):
    levels = sigmas.tolist()
    return sde_step(levels[index], levels[index + 1], record.detail["eta"], levels[1])


def evolution(record, index, start, seed=0):
    """sum_g A_g eps_g [B, ...] of a search step, from its record and the starting noise's keys."""
    rewards = torch.tensor(record.rewards).T
    advantage = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-4)
    noise = keyed_noise(seed, start).normal(index, range(len(rewards)), start)
    return torch.einsum("gb,gb...->b...", advantage, noise)


def test_fault_01_candidates_come_from_the_policy():
    """Every candidate is the mean from the current latent plus std times its own keyed noise."""
    world = GaussianWorld(32, 24, steps=8)
    x, recorder = world.noise(), Recorder(world)
    states = [x]
    result = search(
        recorder, x, published(), seed=7, on_step=lambda event: states.append(event.latent)
    )
    assert len(result.records) == 4
    for record in result.records:
        index = record.index - 1
        step, latent = step_of(record, index, world.sigmas), states[index]
        sigma, sigma_next = world.sigmas.tolist()[index : index + 2]
        mean = step.mean(latent, world.velocity(latent, sigma, torch.arange(1)))
        (candidates,) = recorder.at(sigma_next, rows=6)
        keyed = keyed_noise(7, x).normal(index, range(6), x)[:, 0]
        torch.testing.assert_close((candidates - mean) / step.std, keyed, atol=1e-4, rtol=1e-4)


def group_at(world, s=0.9, s_next=0.8, eta=0.7, *, reference=None, rewards=None, prdp=False):
    """A group of 6 candidates drawn by an SDE step from the world's noise."""
    x = world.noise(2)
    step = sde_step(s, s_next, eta, 0.95)
    mean = step.mean(x, world.velocity(x, s, torch.arange(2)))
    return Group(
        step=step,
        h=s - s_next,
        mean=mean,
        reference=mean if reference is None else reference,
        noise=keyed_noise(0, x).normal(0, range(6), x),
        rewards=torch.arange(12.0).view(6, 2).sin() if rewards is None else rewards,
        prdp=prdp,
    )


@pytest.mark.parametrize("rationorm", [True, False])
@pytest.mark.parametrize("prdp", [True, False])
def test_fault_01_the_log_prob_is_the_candidates_own(prdp, rationorm):
    """The gradient by hand is autograd's through log-probs of the very candidates rolled out."""
    world = GaussianWorld(8, 10)
    group = group_at(world, prdp=prdp)
    objective = FlowTTRL(rationorm=rationorm, beta2=0.1, clip=100.0)
    mean = (group.mean + 0.01 * world.noise(2, seed=9)).requires_grad_()
    candidates = group.mean.detach() + group.step.std * group.noise
    logs = log_prob(group.step, candidates, mean, (2, 3, 4))
    old = log_prob(group.step, group.samples, group.mean, (2, 3, 4))
    if prdp:
        gaps = (logs - old)[:, None] - (logs - old)[None]
        wanted = (group.rewards[:, None] - group.rewards[None]) / objective.beta1
        pairs = wanted > 0
        loss = ((gaps - wanted).square() * pairs).sum((0, 1)) / pairs.sum((0, 1))
    else:
        advantage = (group.rewards - group.rewards.mean(0)) / (group.rewards.std(0) + 1e-4)
        shift = (mean - group.mean).square().mean((1, 2, 3)) / (2 * group.step.std**2)
        kl = (mean - group.reference).square().mean((1, 2, 3)) / (2 * group.step.std**2)
        exponent = group.step.std * (logs - old + shift) if rationorm else logs - old
        loss = (-advantage * exponent.exp()).mean(0) + objective.beta2 * kl
        loss = loss / group.h if rationorm else loss
    (expected,) = torch.autograd.grad(loss.sum(), mean)
    found = cotangent(group, mean.detach(), objective)
    assert cosines(found, expected).min() > 0.9999
    torch.testing.assert_close(found.flatten(1).norm(dim=1), expected.flatten(1).norm(dim=1))


@pytest.mark.parametrize("gradient", ["exact", "jacobian_free"])
def test_fault_03_no_update_goes_the_wrong_way(gradient):
    """The published eta of 1.5 is capped in the opening steps, and the report says so.

    One iteration goes along J^T sum A eps exactly, with J = d mean / d x where it is asked for.
    """
    world, steps = GaussianWorld(32, 20, steps=40), 0
    settings = published(gradient=gradient, rl_iterations=1, beta2=0.0)
    for record, index, _, moved in traced(world, world.noise(), settings):
        step, eta = step_of(record, index, world.sigmas), record.detail["eta"]
        along = evolution(record, index, world.noise())
        if gradient == "exact":
            slope = world.slope(world.sigmas[index].item())
            along = world.filtered(along, step.on_x + step.on_v * slope)
        assert cosines(moved, along) > 0.999, f"step {index}"
        assert step.on_x >= 0.5 - 1e-6
        if index < 2:
            assert eta <= 1 + 1e-6 < record.detail["eta_asked"]
        if index == 0:
            assert record.detail["eta_asked"] == 1.5
        steps += 1
    assert steps == 20


def test_fault_03_the_opening_steps_alone_raise_the_reward():
    """The published ones lower it, on 8 seeds of 8."""
    world = GaussianWorld(32, steps=40)
    x = world.noise(8)
    settings = published(external_reward_timestep=0.05, noise_range=(1.5, 1.5), scale_factor=5e3)
    result = search(world, x, settings)
    assert len(result.records) == 2
    assert (result.rewards > world.judged(sample(world, x))).all()


@pytest.mark.parametrize("steps", [8, 20, 40])
def test_fault_04_noise_range_reaches_both_ends(steps):
    world = GaussianWorld(4, steps=steps)
    for noise_range in ((1.5, 0.5), (0.3, 0.9)):
        records = search(world, world.noise(), published(noise_range=noise_range)).records
        asked = [record.detail["eta_asked"] for record in records]
        assert (asked[0], asked[-1]) == pytest.approx(noise_range)
        assert records[-1].detail["eta"] == pytest.approx(noise_range[1])
        slopes = [b - a for a, b in zip(asked, asked[1:], strict=False)]
        assert slopes == pytest.approx([slopes[0]] * len(slopes))


@pytest.mark.parametrize("reward", REWARDS)
def test_fault_05_the_second_iteration_moves_the_latent(reward):
    """At every search step, by a real share of the first iteration's move."""
    world = GaussianWorld(32, steps=20, reward=reward)
    recorder = Recorder(world)
    result = search(recorder, world.noise(), published(beta2=0.0))
    assert len(result.records) == 10
    for record in result.records:
        # the calls at x are the first iteration's, the second's, and the advance's
        *_, first, second, last = recorder.at(world.sigmas.tolist()[record.index - 1], rows=1)
        assert (last - second).norm() > 0.1 * (second - first).norm() > 0, f"to {record.index}"


@pytest.mark.parametrize("gradient", ["exact", "jacobian_free"])
def test_fault_06_an_update_means_the_same_at_every_resolution(gradient):
    def moves(height, width):
        world = GaussianWorld(height, width, steps=8)
        settings = published(gradient=gradient, internal_reward_timestep=0.0, rl_iterations=1)
        return torch.stack(
            [moved.norm() / x.norm() for *_, x, moved in traced(world, world.noise(), settings)]
        )

    small, large = moves(32, 32), moves(96, 128)
    assert small.min() > 1e-4
    # 1/D of the published step makes it a factor of 12; sum A eps of 6 candidates varies by reward
    torch.testing.assert_close(small, large, rtol=0.15, atol=0)


def test_fault_06_scale_factor_is_the_papers_at_its_own_resolution():
    """Rescaling by the elements changes nothing where the constants were chosen."""
    settings = FlowTTRL()
    for index, phase in ((0, 0.01), (7, 0.01), (8, 10.0), (19, 10.0)):
        fade = math.sqrt(torch.linspace(1, 0.5, 40)[index])
        size = settings.step_size(index, 40, eta=0.8, h=0.25, elements=16 * 128 * 128)
        assert size == pytest.approx(500 * fade * 0.8 * 0.5 * phase)


SCALE_FREE = [name for name in STRATEGIES if name != "flow_ttrl"]


@pytest.mark.parametrize("strategy", SCALE_FREE)
@pytest.mark.parametrize("factor", [1000.0, 0.5])
def test_fault_07_the_rewards_scale_does_not_matter(strategy, factor):
    """PRDP is proportional to it; none of the other strategies is."""
    world = GaussianWorld(16, steps=10)
    settings = only_search(strategy, budget=4.0)
    expected = search(world, world.noise(2), settings)
    scaled = search(Rewarded(world, lambda total: factor * total), world.noise(2), settings)
    torch.testing.assert_close(scaled.latents, expected.latents, atol=2e-3, rtol=1e-3)


def test_fault_07_grpo_does_not_depend_on_the_rewards_scale():
    world, settings = GaussianWorld(16, steps=10), published(internal_reward_timestep=0.0)
    expected = search(world, world.noise(2), settings)
    scaled = search(Rewarded(world, lambda total: 1000 * total), world.noise(2), settings)
    torch.testing.assert_close(scaled.latents, expected.latents, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(expected.latents, sample(world, world.noise(2)), atol=2e-3)


def test_fault_08_the_kl_carries_one_over_h():
    """With ratio-norm on; without it the loss has no 1 / h at all."""
    world = GaussianWorld(16)
    base = group_at(world)
    reference = base.mean - 0.1 * world.noise(2, seed=5)
    group = replace(base, reference=reference)
    for rationorm in (True, False):
        with_kl, without = (
            cotangent(group, group.mean, FlowTTRL(rationorm=rationorm, beta2=beta2))
            for beta2 in (0.5, 0.0)
        )
        kl = 0.5 * (group.mean - reference) / (group.step.std**2 * reference[0].numel())
        expected = kl / group.h if rationorm else kl
        torch.testing.assert_close(with_kl - without, expected, atol=1e-6, rtol=1e-3)


def test_fault_08_the_kl_restrains_drift():
    world = GaussianWorld(32, steps=10)
    x = world.noise()
    drift = [
        (search(world, x, published(beta2=beta2)).latents - sample(world, x)).norm()
        for beta2 in (0.0, 1.0)
    ]
    assert drift[1] < 0.6 * drift[0]


class Bfloat16(Wrapped):
    """A model that computes in bfloat16; ``casts`` back to float32 itself, or leaves that to us."""

    def __init__(self, flow, casts):
        super().__init__(flow)
        self.casts = casts

    def velocity(self, x, sigma, item):
        assert x.dtype == torch.float32
        v = super().velocity(x, sigma, item).bfloat16()
        return v.float() if self.casts else v


@EACH
def test_fault_09_the_maths_is_float32_around_a_bfloat16_model(strategy):
    world, settings = GaussianWorld(16, 12, steps=10), only_search(strategy, budget=4.0)
    x, before = world.noise(2), world.sigmas.clone()
    results = [search(Bfloat16(world, casts), x, settings) for casts in (False, True)]
    assert results[0].latents.dtype == torch.float32
    assert torch.equal(results[0].latents, results[1].latents)
    assert world.sigmas.dtype == torch.float32
    assert torch.equal(world.sigmas, before)
    from_half, from_full = (
        search(world, noise, settings) for noise in (x.bfloat16(), x.bfloat16().float())
    )
    assert torch.equal(from_half.latents, from_full.latents)


def test_fault_09_log_ratios_resolve_far_below_bfloat16(monkeypatch):
    """0.004 is the research code's resolution; one published update changes less than that."""
    seen, world = spy_on_losses(monkeypatch), GaussianWorld(16, steps=10)
    search(Bfloat16(world, casts=False), world.noise(), published(internal_reward_timestep=0.0))
    ratios = torch.stack([log_ratio for _, log_ratio in seen[len(seen) // 2 :]])[..., 0]
    first, second = ratios[0::2], ratios[1::2]
    assert second.dtype == torch.float32
    assert second.shape == (5, 6)
    assert not first.any()
    gaps = second.sort(dim=1).values.diff(dim=1)
    assert gaps.min() > 0
    assert gaps.median() < 0.004


TIED = {
    "all": lambda total: 0 * total,
    "most": lambda total: (total > total.max() - 1e-9).float(),
    "rounded": lambda total: total.round(),
}


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "reward_gradient"])
@pytest.mark.parametrize("ties", TIED)
def test_fault_10_tied_rewards_run(strategy, ties):
    world = Rewarded(GaussianWorld(8, steps=10), TIED[ties])
    result = search(world, world.flow.noise(2), only_search(strategy, budget=4.0))
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("early", [0.0, 0.5])
@pytest.mark.parametrize("gradient", ["exact", "jacobian_free"])
@pytest.mark.parametrize("rationorm", [True, False])
def test_fault_10_tied_rewards_leave_the_sample_alone(early, gradient, rationorm):
    """Bit by bit the plain sample, in either loss and with the KL."""
    world = Rewarded(GaussianWorld(8, steps=10), lambda total: 0 * total + 0.3)
    settings = published(internal_reward_timestep=early, gradient=gradient, rationorm=rationorm)
    result = search(world, world.flow.noise(2), settings)
    assert torch.equal(result.latents, sample(world, world.flow.noise(2)))


def test_fault_10_no_pair_beyond_the_threshold_is_no_update():
    """PRDP with nothing to compare: an average over no pairs."""
    world = GaussianWorld(8, steps=10)
    settings = published(internal_reward_timestep=1.0, reward_diff_threshold=1e6)
    result = search(world, world.noise(2), settings)
    assert {record.detail["objective"] for record in result.records} == {"prdp"}
    assert torch.equal(result.latents, sample(world, world.noise(2)))


def test_fault_10_a_group_of_one_is_an_error():
    with pytest.raises(ValueError, match=r"expected group_size within 2\.\..*got 1"):
        make_settings("flow_ttrl", group_size=1)


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("window, searched", [(0.0, 0), (0.2, 2), (0.5, 5), (1.0, 10)])
@pytest.mark.parametrize("rationorm", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_fault_10_every_combination_runs(items, window, searched, rationorm, packed):
    """Ratio-norm off, batches, FLUX's layout, and windows from none to all."""
    world = GaussianWorld(8, steps=10, packed=packed)
    settings = published(rationorm=rationorm, external_reward_timestep=window)
    result = search(world, world.noise(items), settings)
    assert result.latents.isfinite().all()
    assert len(result.rewards) == items
    assert sum("objective" in record.detail for record in result.records) == searched
    plain = sample(world, world.noise(items))
    moved = (result.latents != plain).flatten(1).any(1)
    assert moved.all() if searched else not moved.any()


@pytest.mark.parametrize("rationorm", [True, False])
def test_fault_10_either_ratio_raises_the_reward(rationorm):
    world = GaussianWorld(32, steps=20)
    x = world.noise(8)
    settings = published(rationorm=rationorm, scale_factor=5e3)
    result = search(world, x, settings)
    assert (result.rewards > world.judged(sample(world, x))).sum() >= 7


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "reward_gradient"])
def test_fault_10_the_seed_matters(strategy, packed):
    world, settings = GaussianWorld(16, steps=10, packed=packed), only_search(strategy, budget=4.0)
    one, again, two = (search(world, world.noise(), settings, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.latents, again.latents)
    assert [r.rewards for r in one.records] == [r.rewards for r in again.records]
    if strategy == "best_of_n":  # whose first sample may be the best in either
        one, two = (search(world, world.noise(8), settings, seed=seed) for seed in (1, 2))
    assert not torch.equal(one.latents, two.latents)


def test_fault_11_the_papers_demo_costs_ten_calls_a_search_step():
    """G + K + the advance + the reference's, which the first step has for nothing.

    The research code spends 300 calls and 40 backwards on it, 81 of them on what it knows.
    """
    sigmas = GaussianWorld(4, steps=40).sigmas.tolist()
    cost = plan(published(), sigmas).cost
    assert cost.backwards == 20 * 2
    assert cost.model_calls == 20 * (6 + 2 + 1 + 1) - 1 + 20
    assert cost.decodes == cost.rewards == 20 * 6 + 1
    without = plan(published(beta2=0.0), sigmas).cost
    # PRDP's eight steps look at the reference as well
    assert without.model_calls == 20 * (6 + 2 + 1) + 7 + 20


@pytest.mark.parametrize("changes", [{}, {"beta2": 0.0}, {"gradient": "jacobian_free"}], ids=str)
@pytest.mark.parametrize("steps", [8, 20])
def test_fault_11_no_call_recomputes_something_known(changes, steps):
    """No two calls of a run are of the same latent at the same level."""
    recorder = Recorder(GaussianWorld(8, steps=steps))
    result = search(recorder, recorder.flow.noise(), published(**changes))
    seen = {(call.sigma, row.numpy().tobytes()) for call in recorder.calls for row in call.x}
    assert len(seen) == sum(len(call.x) for call in recorder.calls) == result.cost.model_calls


FORGETFUL = ("evolution", "paths", "zero_order")
"""Strategies that look ahead from a latent and then go on from it without its velocity."""


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in FORGETFUL])
def test_fault_11_no_strategy_asks_twice_for_what_it_knows(strategy):
    recorder = Recorder(GaussianWorld(8, steps=12))
    search(recorder, recorder.flow.noise(), only_search(strategy, budget=4.0))
    rows = [(call.sigma, row.numpy().tobytes()) for call in recorder.calls for row in call.x]
    assert len(rows) == len(set(rows))


def test_fault_11_a_group_is_one_batch():
    recorder = Recorder(GaussianWorld(8, steps=10))
    search(recorder, recorder.flow.noise(2), published())
    rows = [len(call.x) for call in recorder.calls]
    assert rows.count(12) == 5
    assert set(rows) == {2, 12}


@EACH
def test_fault_11_autograd_runs_only_where_it_must(strategy):
    """Once a backward, even through weights that ask for gradients; none is left behind."""
    flow = Weighted(GaussianWorld(8, steps=10))
    x = flow.flow.noise()
    result = search(flow, x, only_search(strategy, budget=4.0))
    assert not result.latents.requires_grad
    assert not result.rewards.requires_grad
    assert not x.requires_grad
    assert flow.weight.grad is None
    assert flow.graphs == result.cost.backwards
    assert (flow.graphs > 0) == (strategy in ("flow_ttrl", "reward_gradient"))


def test_fault_11_plain_sampling_keeps_no_graph():
    flow = Weighted(GaussianWorld(8, steps=4))
    assert not sample(flow, flow.flow.noise()).requires_grad
    assert flow.graphs == 0


@pytest.mark.parametrize("scale", [500.0, 1e9])
@pytest.mark.parametrize("top", [0.1, 0.03, 0.01])
def test_fault_12_an_update_is_no_wider_than_the_steps_noise(top, scale):
    """At a low denoise, and at any scale_factor: no divergence, and it still gains."""
    world = GaussianWorld(16, sigmas=torch.linspace(top, 0, 11).tolist())
    x = world.noise(2)
    for record, index, _, moved in traced(world, x[:1], published(scale_factor=scale)):
        if index:  # before the first step stands the noise, not the start that it made
            std = step_of(record, index, world.sigmas).std
            assert moved.square().mean().sqrt() <= 2 * std * (1 + 1e-4)  # two updates a step
    result = search(world, x, published(scale_factor=scale), baseline=True)
    wider = result.latents.std() / result.plain.latents.std()
    assert 1 <= wider < 1.5
    assert (result.rewards > result.plain_rewards).all()


def test_fault_12_published_settings_never_meet_the_limit():
    """From noise, at the schedules that people use: the updates are the published ones."""
    for shift in (1.0, 3.0):
        world = GaussianWorld(16, sigmas=shifted_sigmas(20, shift).tolist())
        for record, index, _, moved in traced(world, world.noise(), published()):
            std = step_of(record, index, world.sigmas).std
            assert moved.square().mean().sqrt() < std


def test_advantages_are_group_relative():
    rewards = torch.tensor([[1.0, 5.0, 2.0], [2.0, 5.0, 2.0], [6.0, 5.0, 2.0 + 1e-7]])
    found = advantages(rewards, clip=1.0)
    expected = (rewards[:, 0] - 3) / (rewards[:, 0].std() + 1e-4)
    torch.testing.assert_close(found[:, 0], expected.clamp(-1, 1))
    assert not found[:, 1:].any()
    assert not advantages(torch.tensor([[1.0, 2.0]]), clip=5.0).any()


def test_a_cost_in_calls_counts_a_backward_twice():
    assert Cost(model_calls=10, backwards=3).calls == 16
