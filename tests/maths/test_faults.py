"""One test or more for every fault of the research code (METHOD.md, section 3).

Each fails if its fault comes back. Fault 2 is in test_real_shapes.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from gaussian_world import REWARDS, GaussianWorld
from probes import (
    Events,
    Recorder,
    Rewarded,
    Wrapped,
    applied_updates,
    cosines,
    evolution,
    label,
    spy_on_losses,
    step_of,
)

from flow_ttrl.sampling import PRESETS, KeyedNoise, SearchSettings, plan, sample, search
from flow_ttrl.sampling.steps import log_prob, sde_step
from flow_ttrl.sampling.updates import Group, cotangent, move, steer, temper

PAPER, BALANCED = PRESETS["paper", 1], PRESETS["balanced", 1]
SIZES = {"rotation": 0.3, "noise_rotation": 0.3, "additive": 0.08, "scale_factor": 0.0}


def moving(update, **changes):
    """An SDE search whose update moves the latent at its own level, in half of the steps."""
    defaults = dict(
        step="sde",
        noise_range=(0.7, 0.7),
        update_range=(SIZES[update],) * 2,
        external_reward_timestep=0.5,
    )
    return SearchSettings(update=update, **defaults | changes)


def run(flow, settings, x, seed=0, **keywords):
    return search(flow, x, settings, KeyedNoise(seed), **keywords)


@pytest.mark.parametrize("settings", [PAPER, BALANCED, moving("rotation")], ids=lambda s: s.update)
def test_fault_01_candidates_come_from_the_policy(settings):
    """Every candidate is the mean from the current latent plus std times its own keyed noise."""
    world = GaussianWorld(32, steps=8)
    recorder, events = Recorder(world), Events()
    result = run(recorder, settings, world.noise(), seed=7, on_step=events)
    assert len(result.records) == len(settings.search_steps(8))
    for record in result.records:
        latent, step = events.seen[record.index].latent, step_of(settings, record, world.sigmas)
        mean = step.mean(latent, world.velocity(latent, record.sigma))
        candidates = recorder.at(float(world.sigmas[record.index + 1]), rows=6)[0]
        residual = (candidates - mean) / step.std
        keyed = KeyedNoise(7).group(record.index, 6, latent)[:, 0]
        if settings.update == "steered":  # the draws, at every octave's typical energy
            assert cosines(residual, keyed).min() > 0.98
            keyed = torch.cat([temper(draw[None], mean) for draw in keyed])
        torch.testing.assert_close(residual, keyed, atol=1e-3, rtol=1e-3)


def group_at(world, s=0.9, s_next=0.8, eta=0.7, *, reference=None, rewards=None, prdp=False):
    """A group of 6 candidates drawn by an SDE step from the world's noise."""
    x = world.noise(2)
    v, step = world.velocity(x, s), sde_step(s, s_next, eta, 0.95)
    noise = KeyedNoise(0).group(0, 6, x)
    rewards = torch.arange(12.0).view(6, 2).sin() if rewards is None else rewards
    mean = step.mean(x, v)
    return Group(
        step=step,
        s=s,
        h=s - s_next,
        x=x,
        v=v,
        mean=mean,
        reference=mean if reference is None else reference,
        noise=noise,
        rewards=rewards,
        prdp=prdp,
    )


@pytest.mark.parametrize("rationorm", [True, False])
@pytest.mark.parametrize("prdp", [True, False])
def test_fault_01_the_log_prob_is_the_candidates_own(prdp, rationorm):
    """The gradient by hand is autograd's through log-probs of the very candidates rolled out."""
    world = GaussianWorld(8)
    group = group_at(world, prdp=prdp)
    settings = replace(PAPER, rationorm=rationorm, beta2=0.1, clip=100.0)
    mean = (group.mean + 0.01 * world.noise(2, seed=9)).requires_grad_()
    candidates = group.mean.detach() + group.step.std * group.noise
    logs = log_prob(group.step, candidates, mean, (2, 3, 4))
    old = log_prob(group.step, group.samples, group.mean, (2, 3, 4))
    if prdp:
        gaps = (logs - old)[:, None] - (logs - old)[None]
        wanted = (group.rewards[:, None] - group.rewards[None]) / settings.beta1
        pairs = wanted > 0
        loss = ((gaps - wanted).square() * pairs).sum((0, 1)) / pairs.sum((0, 1))
    else:
        advantage = (group.rewards - group.rewards.mean(0)) / (group.rewards.std(0) + 1e-4)
        shift = (mean - group.mean).square().mean((1, 2, 3)) / (2 * group.step.std**2)
        kl = (mean - group.reference).square().mean((1, 2, 3)) / (2 * group.step.std**2)
        exponent = group.step.std * (logs - old + shift) if rationorm else logs - old
        loss = (-advantage * exponent.exp()).mean(0) + settings.beta2 * kl
        loss = loss / group.h if rationorm else loss
    (expected,) = torch.autograd.grad(loss.sum(), mean)
    found = cotangent(group, mean.detach(), settings)
    assert cosines(found, expected).min() > 0.9999
    torch.testing.assert_close(found.flatten(1).norm(dim=1), expected.flatten(1).norm(dim=1))


@pytest.mark.parametrize("gradient", ["exact", "jacobian_free"])
def test_fault_03_no_update_goes_the_wrong_way(gradient):
    """The published eta of 1.5 is capped in the opening steps, and the report says so."""
    world = GaussianWorld(32, steps=40)
    settings = replace(PAPER, gradient=gradient)
    for record, latent, moved in applied_updates(world, world.noise(), settings):
        assert cosines(moved, evolution(record, 0, latent)) > 0.5, f"step {record.index}"
        assert step_of(settings, record, world.sigmas).on_x >= 0.5 - 1e-6
        if record.index < 2:
            assert record.eta <= 1 + 1e-6 < record.eta_asked
        if record.index == 0:
            assert record.eta_asked == 1.5


def test_fault_03_the_opening_steps_alone_raise_the_reward():
    """The published ones lower it, on 8 seeds of 8."""
    world = GaussianWorld(32, steps=40)
    x = world.noise(8)
    settings = moving("rotation", noise_range=(1.5, 1.5), gradient="exact")
    result = run(world, replace(settings, external_reward_timestep=0.05), x)
    assert len(result.records) == 2
    plain = world.score(world.decode(sample(world, x))).total
    assert (result.rewards - plain).mean() > 0
    assert (result.rewards > plain).sum() >= 7


@pytest.mark.parametrize("steps", [8, 20, 40])
def test_fault_04_noise_range_reaches_both_ends(steps):
    world = GaussianWorld(8, steps=steps)
    for settings in PRESETS.values():
        records = run(world, settings, world.noise()).records
        asked = [record.eta_asked for record in records]
        assert (asked[0], asked[-1]) == pytest.approx(settings.noise_range)
        assert records[-1].eta == pytest.approx(settings.noise_range[1])
        slopes = [b - a for a, b in zip(asked, asked[1:], strict=False)]
        assert slopes == pytest.approx([slopes[0]] * len(slopes))


@pytest.mark.parametrize("reward", REWARDS)
def test_fault_05_the_second_iteration_moves_the_latent(reward):
    """At every search step of `paper`, by a real share of the first iteration's move."""
    world = GaussianWorld(32, steps=20, reward=reward)
    recorder = Recorder(world)
    result = run(recorder, PAPER, world.noise())
    assert len(result.records) == 10
    for record in result.records:
        first, *_ = (calls := recorder.at(record.sigma, rows=1))
        distinct = [first]
        for x in calls:
            if not torch.equal(x, distinct[-1]):
                distinct.append(x)
        one, two = distinct[-2] - distinct[-3], distinct[-1] - distinct[-2]
        assert two.norm() > 0.1 * one.norm(), f"step {record.index}"


def relative_moves(update, size, **changes):
    world = GaussianWorld(size, steps=8)
    settings = moving(update, **changes)
    return torch.stack(
        [
            moved.norm() / latent.norm()
            for _, latent, moved in applied_updates(world, world.noise(), settings)
        ]
    )


@pytest.mark.parametrize("gradient", ["exact", "jacobian_free"])
@pytest.mark.parametrize("update", SIZES)
def test_fault_06_an_update_means_the_same_at_every_resolution(update, gradient):
    small, large = (relative_moves(update, size, gradient=gradient) for size in (64, 128))
    assert small.min() > 1e-3
    torch.testing.assert_close(small, large, rtol=0.05, atol=0)


def test_fault_06_scale_factor_is_the_papers_at_its_own_resolution():
    """Rescaling by the elements changes nothing where the constants were chosen."""
    size = PAPER.move_size(0, 40, eta=1.0, h=0.25, elements=16 * 128 * 128, prdp=False)
    assert size == pytest.approx(500 * 1.0 * 0.5 * 10)


SCALED = {
    "steered": BALANCED,
    "rotation": moving("rotation"),
    "rotation by PRDP": moving("rotation", internal_reward_timestep=0.3),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("factor", [1000.0, 0.5])
def test_fault_07_the_rewards_scale_does_not_matter(kind, factor):
    """PRDP is proportional to it; the size of a move is its own setting."""
    world = GaussianWorld(32, steps=10)
    expected = run(world, SCALED[kind], world.noise())
    scaled = run(Rewarded(world, lambda total: factor * total), SCALED[kind], world.noise())
    torch.testing.assert_close(scaled.latents, expected.latents, atol=2e-3, rtol=1e-3)


def test_fault_07_prdp_moves_as_far_as_grpo():
    world = GaussianWorld(32, steps=10)
    for early in (0.0, 1.0):
        settings = moving("rotation", internal_reward_timestep=early)
        for record, latent, moved in applied_updates(world, world.noise(), settings):
            assert record.objective == ("prdp" if early else "grpo")
            assert cosines(latent, latent + moved).item() == pytest.approx(math.cos(0.3), abs=1e-4)


def test_fault_08_the_kl_carries_one_over_h():
    """With ratio-norm on; without it the loss has no 1 / h at all."""
    world = GaussianWorld(16)
    base = group_at(world)
    reference = base.mean - 0.1 * world.noise(2, seed=5)
    group = replace(base, reference=reference)
    for rationorm in (True, False):
        with_kl, without = (
            cotangent(group, group.mean, replace(PAPER, rationorm=rationorm, beta2=beta2))
            for beta2 in (0.5, 0.0)
        )
        kl = 0.5 * (group.mean - reference) / (group.step.std**2 * reference[0].numel())
        expected = kl / group.h if rationorm else kl
        torch.testing.assert_close(with_kl - without, expected, atol=1e-6, rtol=1e-3)


def test_fault_08_the_kl_restrains_drift():
    world = GaussianWorld(32, steps=10)
    x = world.noise()
    drift = [
        (run(world, replace(PAPER, beta2=beta2), x).latents - sample(world, x)).norm()
        for beta2 in (0.0, 1.0)
    ]
    assert drift[1] < 0.6 * drift[0]


def test_fault_08_rotations_keep_the_norm():
    world = GaussianWorld(32)
    x, direction = world.noise(3), world.noise(3, seed=50)
    v, s = world.velocity(x, 0.8), 0.8
    turned = move("rotation", x, v, s, direction, 0.4)
    torch.testing.assert_close(turned.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    turned = move("noise_rotation", x, v, s, direction, 0.4)
    e, data = x + (1 - s) * v, x - s * v
    left = (turned - (1 - s) * data) / s
    torch.testing.assert_close(left.flatten(1).norm(dim=1), e.flatten(1).norm(dim=1))
    lengthened = move("additive", x, v, s, direction, 0.4)
    assert (lengthened.flatten(1).norm(dim=1) > 1.02 * x.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("packed", [False, True])
def test_fault_08_a_steered_step_is_as_energetic_as_a_random_one(packed):
    world = GaussianWorld(32, packed=packed)
    group = group_at(world)
    loud = 100 * group.noise[0]
    found = steer(group, loud).square().sum(tuple(range(1, group.x.ndim)))
    random = group.samples.square().sum(tuple(range(2, group.noise.ndim))).mean(0)
    torch.testing.assert_close(found, random, rtol=0.05, atol=0)


class Bfloat16(Wrapped):
    """A model that computes in bfloat16; ``casts`` back to float32 itself, or leaves that to us."""

    def __init__(self, flow, casts):
        super().__init__(flow)
        self.casts = casts

    def velocity(self, x, sigma):
        assert x.dtype == torch.float32
        v = super().velocity(x, sigma).bfloat16()
        return v.float() if self.casts else v


@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
def test_fault_09_the_maths_is_float32_around_a_bfloat16_model(settings):
    world = GaussianWorld(16, steps=10)
    x, before = world.noise(2), world.sigmas.clone()
    results = [run(Bfloat16(world, casts), settings, x) for casts in (False, True)]
    assert results[0].latents.dtype == torch.float32
    assert torch.equal(results[0].latents, results[1].latents)
    assert world.sigmas.dtype == torch.float32
    assert torch.equal(world.sigmas, before)
    from_half = run(world, settings, x.bfloat16())
    assert torch.equal(from_half.latents, run(world, settings, x.bfloat16().float()).latents)


def test_fault_09_log_ratios_resolve_far_below_bfloat16(monkeypatch):
    """0.004 is the research code's resolution; one update of `paper` changes less than that."""
    seen = spy_on_losses(monkeypatch)
    world = GaussianWorld(16, steps=10)
    run(Bfloat16(world, casts=False), replace(PAPER, internal_reward_timestep=0.0), world.noise())
    second = torch.stack([log_ratio for _, log_ratio in seen[1::2]])
    assert second.dtype == torch.float32
    assert all(len(set(ratios.flatten().tolist())) == 6 for ratios in second)
    assert (second[:, None] - second[:, :, None]).abs().amax((1, 2)).min() > 0


TIED = {
    "all": lambda total: 0 * total,
    "most": lambda total: (total > total.max() - 1e-9).float(),
    "rounded": lambda total: total.round(),
}


@pytest.mark.parametrize("ties", TIED)
@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
def test_fault_10_tied_rewards_run(settings, ties):
    world = Rewarded(GaussianWorld(8, steps=10), TIED[ties])
    for early in (0.0, 0.5):
        changed = replace(settings, internal_reward_timestep=early)
        assert run(world, changed, world.flow.noise(2)).latents.isfinite().all()


@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
def test_fault_10_no_pair_beyond_the_threshold_is_no_update(settings):
    """PRDP with nothing to compare: an average over no pairs."""
    world = GaussianWorld(8, steps=10)
    settings = replace(
        settings, internal_reward_timestep=1.0, reward_diff_threshold=1e6, elitist=False
    )
    result = run(world, settings, world.noise(2))
    assert {record.objective for record in result.records} == {"prdp"}
    assert torch.equal(result.latents, sample(world, world.noise(2)))


def test_fault_10_a_group_of_one_is_an_error():
    with pytest.raises(ValueError, match=r"expected group_size within 2\.\..*got 1"):
        SearchSettings(group_size=1)


@pytest.mark.parametrize("items", [1, 2, 3])
@pytest.mark.parametrize("window", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("rationorm", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_fault_10_every_combination_runs(items, window, rationorm, packed):
    """Ratio-norm off, batches, FLUX's layout and an empty window, with either preset."""
    world = GaussianWorld(8, steps=10, packed=packed)
    for preset in PRESETS.values():
        settings = replace(preset, rationorm=rationorm, external_reward_timestep=window)
        result = run(world, settings, world.noise(items))
        assert result.latents.isfinite().all()
        assert len(result.rewards) == items
        assert len(result.records) == math.ceil(round(10 * window) / settings.search_every)


def test_fault_10_ratio_norm_off_raises_the_reward():
    world = GaussianWorld(32)
    x = world.noise(6)
    plain = world.score(world.decode(sample(world, x))).total
    for settings in (BALANCED, moving("rotation", internal_reward_timestep=0.2)):
        result = run(world, replace(settings, rationorm=False), x)
        assert (result.rewards - plain).mean() > 0.5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
def test_fault_10_the_seed_matters(settings, packed):
    world = GaussianWorld(16, steps=10, packed=packed)
    one, two = (run(world, settings, world.noise(), seed=seed) for seed in (1, 2))
    assert one.records[0].rewards != two.records[0].rewards
    assert not torch.equal(one.latents, two.latents)


class Weighted(Wrapped):
    """A model with a weight that wants a gradient, and a note of the calls that autograd saw."""

    def __init__(self, flow):
        super().__init__(flow)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.graphs = 0

    def velocity(self, x, sigma):
        v = self.weight * super().velocity(x, sigma)
        self.graphs += v.requires_grad
        return v


def least_calls(settings, steps):
    """Model calls and backwards that a run needs: at most G + K + 2 a search step (METHOD.md).

    Those are the rollout's, its candidates', one with gradient an iteration and the advance's; the
    reference trajectory's come on top.
    """
    searches = settings.search_steps(steps)
    window, prdp = len(searches), settings.is_prdp(0, steps)
    if settings.update == "steered":
        # a look-ahead's first call is the next step's velocity
        looks = [min(settings.look_ahead(i, steps), steps - i - 1) for i in searches]
        return steps - window + (settings.group_size + 1) * sum(looks), 0
    exact = settings.gradient == "exact"
    per_step = settings.group_size + settings.rl_iterations + 1 + exact
    reference = window - 1 if prdp or settings.beta2 else 0
    backwards = window * settings.rl_iterations * exact
    return window * per_step + reference + steps - window, backwards


@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
@pytest.mark.parametrize("steps", [8, 20, 40])
def test_fault_11_no_call_recomputes_something_known(settings, steps):
    world = GaussianWorld(8, steps=steps)
    recorder = Recorder(world)
    cost = run(recorder, settings, world.noise()).cost
    calls, backwards = least_calls(settings, steps)
    assert sum(len(x) for x, _ in recorder.calls) == cost.model_calls == calls
    assert cost.backwards == backwards
    window = len(settings.search_steps(steps))
    again = settings.elitist and settings.update == "steered"  # the steered latent's look-ahead
    scored = window * (settings.group_size + again) + 1
    assert cost.decodes == cost.rewards == scored


@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
def test_fault_11_a_group_is_one_batch(settings):
    world = GaussianWorld(8, steps=10)
    recorder = Recorder(world)
    result = run(recorder, settings, world.noise(2))
    looks = [min(record.look_ahead, 9 - record.index) for record in result.records]
    assert sum(len(x) == 12 for x, _ in recorder.calls) == sum(looks)
    assert {len(x) for x, _ in recorder.calls} == {2, 12}


@pytest.mark.parametrize("settings", PRESETS.values(), ids=label)
def test_fault_11_autograd_runs_only_where_it_must(settings):
    """Once a backward, even through weights that ask for gradients; none is left behind."""
    flow = Weighted(GaussianWorld(8, steps=10))
    x = flow.flow.noise()
    result = run(flow, settings, x)
    assert not result.latents.requires_grad
    assert not result.rewards.requires_grad
    assert not x.requires_grad
    assert flow.weight.grad is None
    assert flow.graphs == result.cost.backwards


def test_fault_11_plain_sampling_keeps_no_graph():
    flow = Weighted(GaussianWorld(8, steps=4))
    assert not sample(flow, flow.flow.noise()).requires_grad


def test_fault_11_the_best_so_far_is_kept():
    """A search that is stopped goes on from the best look-ahead that it saw."""
    world = GaussianWorld(16, steps=10)
    asked = iter([False] * 4 + [True])
    result = run(world, BALANCED, world.noise(), finish_now=lambda: next(asked))
    assert result.stopped == "finish_now"
    assert len(result.records) == 4
    seen = max(max(record.best + record.kept) for record in result.records)
    plain = world.score(world.decode(sample(world, world.noise()))).total
    assert result.rewards > plain
    assert result.rewards.item() == pytest.approx(seen, abs=1.0)


def test_fault_11_a_plan_says_what_the_paper_preset_costs():
    """The research code's demo spends 300 calls and 40 backwards; 81 of its calls are known."""
    cost = plan(PAPER, GaussianWorld(8, steps=40).sigmas.tolist()).cost
    assert cost.backwards == 40
    assert cost.model_calls <= 300 - 81 + 20  # the rollout's velocity again, with a gradient
