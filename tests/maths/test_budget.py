"""What a search may spend: cost <= plan <= budget, for every strategy, schedule and reward."""

import functools
import math
import re

import pytest
import torch
from probes import ADAPTING, EACH, NAN, Recorder, Telling, only_search

from flow_ttrl.sampling import (
    STRATEGIES,
    Cost,
    make_settings,
    plan,
    sample,
    search,
    shifted_sigmas,
)
from flow_ttrl.sampling.strategies.steered import Steered, allocate
from flow_ttrl.world.gaussian import GaussianWorld

REWARDS = {
    "random": lambda n: math.sin(12.9898 * n) * 43758.5453 % 1,
    "tied": lambda n: n % 7 == 3,
    "NaN": lambda n: NAN if n % 3 else n % 5,
    "all NaN": lambda n: NAN,
    "rising": lambda n: n,
    "falling": lambda n: -n,
    "constant": lambda n: 0.5,
}
"""The reward of the n-th image that a run scores."""

FULL = shifted_sigmas(12).tolist()
SCHEDULES = {
    "whole": FULL,
    "ends above 0": FULL[:8],
    "ends just above 0": [*FULL[:-1], 0.01],
    "begins below 1": FULL[5:],
    "a middle part": FULL[3:9],
    "one step, above 0": FULL[:2],
    "equal neighbours": [*FULL[:4], *FULL[3:8], *FULL[7:]],
    "equal first levels": [1.0, 1.0, *FULL[1:]],
    "equal last levels": [*FULL, 0.0],
    "rounded above 1": [1.0000001, *FULL[1:]],
}
BUDGETS = {1: (1, 3), 2: (1.5, 6), 4: (1.5, 12), 8: (3,), 20: (2,)}
"""Some for each number of steps."""


def expected_calls(budget: float, sigmas: list[float]) -> int:
    """Calls in that many plain samples; judging one that ends above 0 takes a call more."""
    distinct = sorted(set(sigmas))
    return math.floor(budget * (len(distinct) - 1 + (distinct[0] > 0)) + 1e-9)


@functools.cache
def cost_planned(settings, sigmas: tuple[float, ...]) -> Cost:
    return plan(settings, sigmas).cost


def times(cost: Cost, items: int) -> Cost:
    return Cost(*(items * getattr(cost, name) for name in Cost.__dataclass_fields__))


def check_run(strategy, sigmas, budget, reward, items=2):
    settings = only_search(strategy, budget=float(budget))
    flow = Telling(GaussianWorld(4, sigmas=sigmas), REWARDS[reward])
    planned = cost_planned(settings, tuple(flow.sigmas.tolist()))
    result = search(flow, flow.flow.noise(items), settings)
    where = f"{len(sigmas) - 1} steps, budget {budget}"
    assert result.latents.isfinite().all(), where
    assert result.planned == planned.calls <= expected_calls(budget, sigmas), where
    if strategy in ADAPTING:
        assert result.cost.calls <= items * planned.calls, where
    else:
        assert result.cost == times(planned, items), where


@EACH
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("steps", BUDGETS)
def test_cost_is_within_plan_is_within_budget(strategy, reward, steps):
    sigmas = shifted_sigmas(steps).tolist()
    for budget in BUDGETS[steps]:
        check_run(strategy, sigmas, budget, reward)


@EACH
@pytest.mark.parametrize("reward, budget", [("random", 12), ("falling", 2)])
def test_cost_is_within_plan_is_within_budget_over_forty_steps(strategy, reward, budget):
    check_run(strategy, shifted_sigmas(40).tolist(), budget, reward, items=1)


@EACH
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_budget_holds_on_every_schedule(strategy, name):
    for budget, reward in ((1.5, "falling"), (4, "NaN")):
        check_run(strategy, SCHEDULES[name], budget, reward)


@EACH
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_budget_of_one_is_a_plain_sample_bit_by_bit(strategy, name):
    sigmas = SCHEDULES[name]
    world = GaussianWorld(8, sigmas=sigmas, image=GaussianWorld(8).data())
    result = search(world, world.noise(3), only_search(strategy, budget=1.0))
    assert torch.equal(result.latents, sample(world, world.noise(3)))
    assert result.cost.calls == 3 * expected_calls(1, sigmas)
    assert result.cost.backwards == 0


@EACH
def test_a_plan_is_exact_where_a_strategy_does_not_adapt(strategy):
    """Counted by the flow itself, forwards of a guided pair among them."""
    for forwards, steps in ((1, 10), (2, 13)):
        recorder = Recorder(GaussianWorld(8, steps=steps, forwards_per_call=forwards))
        settings = only_search(strategy, budget=4.0)
        planned = plan(settings, recorder.sigmas.tolist(), forwards).cost
        cost = search(recorder, recorder.flow.noise(3), settings).cost
        assert cost.model_calls == sum(len(call.x) for call in recorder.calls)
        assert cost.forwards == forwards * cost.model_calls
        assert (cost.decodes, cost.rewards) == (recorder.decoded, recorder.scored)
        assert cost.calls == cost.model_calls + 2 * cost.backwards
        if strategy not in ADAPTING:
            assert cost == times(planned, 3)


@pytest.mark.parametrize("strategy", ADAPTING)
def test_rewards_that_never_rise_cost_an_adaptive_strategy_its_plan(strategy):
    """And ones that always rise cost less: its plan is a bound that is reached."""
    settings = only_search(strategy, budget=5.0)
    for reward, least in (("falling", 1.0), ("constant", 1.0), ("rising", 0.0)):
        flow = Telling(GaussianWorld(4, steps=10), REWARDS[reward])
        result = search(flow, flow.flow.noise(), settings)
        if least:
            assert result.cost.calls == result.planned
        else:
            assert result.cost.calls < 0.5 * result.planned


@EACH
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 13])
def test_more_budget_never_plans_less(strategy, steps):
    sigmas = shifted_sigmas(steps).tolist()
    others = [[*sigmas[:-1], 0.01], [0.9 * sigma for sigma in sigmas]] if steps == 4 else []
    for levels in [sigmas, *others]:
        budgets = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5]
        calls = [
            plan(make_settings(strategy, budget=budget), levels).cost.calls for budget in budgets
        ]
        assert calls == sorted(calls)
        assert calls[0] == expected_calls(1, levels)


@EACH
@pytest.mark.parametrize("steps", [8, 20])
def test_a_budget_is_put_to_use(strategy, steps):
    """Most of it; what is left of it would not do for one more of what the strategy does."""
    sigmas = shifted_sigmas(steps).tolist()
    for budget in (3, 4, 6):
        planned = plan(make_settings(strategy, budget=float(budget)), sigmas).cost.calls
        if strategy == "flow_ttrl":  # a search step more, unless the window is at its end
            whole = plan(make_settings(strategy, budget=0), sigmas).cost.calls
            assert planned > min(budget * steps, whole) - 14
        else:
            assert planned >= 0.75 * budget * steps, f"budget {budget}"


@EACH
def test_what_is_still_to_come_is_told_step_by_step(strategy):
    """``Plan.ahead``: the whole plan at first, nothing but the last judging in the end."""
    for sigmas in (shifted_sigmas(10).tolist(), FULL[:8]):
        planned = plan(make_settings(strategy, budget=4.0), sigmas)
        assert planned.ahead[0] == planned.cost.calls
        assert list(planned.ahead) == sorted(planned.ahead, reverse=True)
        if sigmas[-1] == 0 or strategy in ("best_of_n", "steered"):  # judged at their last state
            assert planned.ahead[-1] == 0
        else:
            assert planned.ahead[-1] == (4 if strategy == "particles" else 1)


def test_budget_zero_is_what_the_parameters_come_to():
    """For `flow_ttrl`; the others have nothing to go by and take the default of 6."""
    sigmas = shifted_sigmas(20).tolist()
    for strategy in STRATEGIES:
        given, default = (
            plan(make_settings(strategy, budget=budget), sigmas).cost.calls for budget in (0, 6.0)
        )
        if strategy != "flow_ttrl":
            assert given == default
    flow_ttrl = make_settings("flow_ttrl", budget=0, group_size=4, rl_iterations=1, beta2=0)
    # 10 search steps: 4 candidates, an update's call with its backward, and the advance; the first
    # four are PRDP's, which looks at the reference (the first of them has it for nothing)
    assert plan(flow_ttrl, sigmas).cost.calls == 10 * (4 + 3 + 1) + 3 + 10
    for window in (0.0, 1.0):
        settings = make_settings("flow_ttrl", budget=0, external_reward_timestep=window)
        whole = plan(settings, sigmas).cost
        assert whole.backwards == 2 * round(20 * window)
        assert whole.calls == search_calls(settings)


def search_calls(settings) -> int:
    world = GaussianWorld(4, steps=20)
    return search(world, world.noise(), settings).cost.calls


@pytest.mark.parametrize("gradient", ["exact", "jacobian_free"])
def test_a_budget_shortens_flow_ttrls_window(gradient):
    """Never its steps: what it can pay for is what it does."""
    world, windows = GaussianWorld(4, steps=20), []
    for budget in (1, 1.2, 1.5, 2, 3, 4, 6, 12):
        settings = only_search("flow_ttrl", budget=float(budget), gradient=gradient)
        result = search(world, world.noise(), settings)
        searched = [record for record in result.records if record.detail]
        windows.append(len(searched))
        assert [record.index for record in searched] == list(range(1, windows[-1] + 1))
        assert all(len(record.rewards[0]) == 6 for record in searched)
    assert windows == sorted(windows)
    assert windows[0] == 0
    assert windows[-1] == 10
    assert len(set(windows)) >= 5


def test_the_toggles_that_do_not_search_cost_the_search_nothing():
    for strategy in STRATEGIES:
        plans = [
            plan(make_settings(strategy, **changes), FULL).cost
            for changes in ({}, {"keep_better": False}, {"micro_batch": 1}, {"target_reward": 1.0})
        ]
        assert all(cost == plans[0] for cost in plans)


def test_planning_needs_no_model_and_leaves_no_trace():
    """Under a host's inference mode, too."""
    for strategy in STRATEGIES:
        with torch.inference_mode():
            inside = plan(make_settings(strategy), FULL)
        assert inside == plan(make_settings(strategy), FULL)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("steps", [4, 8, 20, 40])
def test_steered_searches_by_as_many_rounds_as_are_paid_for(steps):
    """Also where fewer rounds would cost more, since their last one begins higher."""
    settings, before = Steered(), 0
    for calls in range(steps, 6 * steps):
        rounds = allocate(settings, steps, 0, calls)
        assert len(rounds) >= before
        before = len(rounds)
        assert sum(r.candidates * r.calls for r in rounds) - (len(rounds) > 1) <= calls
    assert before == 4
    if steps >= 20:
        assert len(allocate(settings, steps, 0, round(1.25 * steps))) == 4


@pytest.mark.parametrize("steps", [20, 28, 40])
@pytest.mark.parametrize("budget", [1.2, 1.35, 1.5])
def test_the_least_budgets_buy_a_search(steps, budget):
    """By ours: rounds of drafts, and the best one's own path to its end."""
    world = GaussianWorld(16, steps=steps)
    settings = only_search("steered", budget=budget)
    result = search(world, world.noise(8), settings)
    assert len(result.records) == 4
    assert result.cost.calls <= 8 * budget * steps
    assert not result.warnings
    plain = world.judged(sample(world, world.noise(8)))
    assert result.rewards.mean() > plain.mean()


def test_a_budget_that_pays_for_no_search_is_told_of():
    """With the least one that does; where no more than a plain sample was asked for, nothing is."""
    world = GaussianWorld(8, steps=20)
    for strategy in STRATEGIES:
        for budget in (1.0, 1.05, 1.5, 1.9, 3.0):
            settings = only_search(strategy, budget=budget)
            result = search(world, world.noise(), settings)
            idle = budget > 1 and result.cost.calls == 20
            assert len(result.warnings) == idle, (strategy, budget)
            if not idle:
                continue
            (least,) = re.findall(r"from ([\d.]+) on", *result.warnings)
            for enough, tenths in ((False, -0.1), (True, 0.0)):
                tried = only_search(strategy, budget=float(least) + tenths)
                assert (plan(tried, world.sigmas.tolist()).cost.calls > 20) == enough
