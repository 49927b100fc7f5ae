"""Candidates by parts, those that run at once: what is held, and what a stop after one gives."""

import gc
from itertools import pairwise

import pytest
import torch
from probes import Wrapped, only_search, spy_on_look_aheads
from test_stops import check_stopped, stop_after

from flow_ttrl.sampling import make_settings, search
from flow_ttrl.world.gaussian import GaussianWorld

BY_PARTS = ["best_of_n", "drafts", "steered"]
STEPS = 12
BUDGETS = {"budget": 6.0}, {"budget": 30.0}
GROUPS = {"budget": 0, "group_size": 10}, {"budget": 0, "group_size": 40}
FEW_AND_MANY = {"drafts": BUDGETS, "steered": BUDGETS, "flow_ttrl": GROUPS}


class Weighing(Wrapped):
    """A flow that weighs at every model call how many latents are held in all."""

    def __init__(self, flow):
        super().__init__(flow)
        self.most = 0

    def velocity(self, x, sigma, item):
        held = {
            storage.data_ptr(): storage.nbytes()
            for thing in gc.get_objects()
            if type(thing) is torch.Tensor
            for storage in [thing.untyped_storage()]
        }
        self.most = max(self.most, sum(held.values()) / x[:1].nbytes)
        return super().velocity(x, sigma, item)


@pytest.mark.parametrize("strategy", ["drafts", "steered", "flow_ttrl"])
def test_what_is_held_does_not_grow_with_the_candidates(strategy):
    """But for finished samples, two latents each, and the noise that updates are made of."""

    def most(micro_batch: int = 1, **changes) -> float:
        world = Weighing(GaussianWorld(32, steps=STEPS))
        settings = only_search(strategy, micro_batch=micro_batch, **changes)
        gc.freeze()  # what is there is no concern of ours, and much
        try:
            search(world, world.flow.noise(), settings)
        finally:
            gc.unfreeze()
        return world.most

    few, many = FEW_AND_MANY[strategy]
    kept = {"drafts": 0, "steered": 2 * 20, "flow_ttrl": 30}[strategy]
    assert most(**many) <= most(**few) + kept + 1
    assert most(**many) < 0.7 * most(**many, micro_batch=0)


@pytest.mark.parametrize("strategy", BY_PARTS)
def test_a_search_can_be_ended_after_each_part(strategy, monkeypatch):
    flow = GaussianWorld(16, steps=STEPS)
    settings, told = only_search(strategy, budget=6.0, micro_batch=1), []
    free = search(flow, flow.noise(2), settings, on_step=told.append)
    assert len(free.records) == sum(len(record.rewards[0]) for record in free.records)
    judging = [number for number, event in enumerate(told) if event.record]
    looks, stopped = spy_on_look_aheads(monkeypatch, flow), 0
    for after in (judging[0], judging[1], judging[len(judging) // 2]):
        looks.clear()
        result = search(flow, flow.noise(2), settings, finish_now=stop_after(after + 1))
        check_stopped(flow, result, "finish_now", looks, free)
        stopped += result.stopped is not None
    assert stopped >= 2


def test_best_of_n_that_is_ended_is_the_best_of_what_was_finished():
    flow = GaussianWorld(16, steps=STEPS)
    settings = make_settings("best_of_n", budget=8.0, micro_batch=1)
    free = search(flow, flow.noise(2), settings)
    samples = torch.tensor([record.rewards for record in free.records])[..., 0]  # [N, B]
    for finished in (2, 5):
        # in the middle of the next one, which is let go
        stop = stop_after(finished * (STEPS + 1) + 3)
        result = search(flow, flow.noise(2), settings, finish_now=stop)
        assert result.stopped == "finish_now"
        assert result.cost.calls == 2 * (finished * STEPS + 3)
        torch.testing.assert_close(result.rewards, samples[:finished].amax(0))
        torch.testing.assert_close(result.plain_rewards, samples[0])


def test_a_target_ends_best_of_n_with_the_first_sample_that_is_there():
    flow = GaussianWorld(16, steps=STEPS)
    settings = make_settings("best_of_n", budget=8.0, micro_batch=1)
    free = search(flow, flow.noise(), settings)
    samples = [record.rewards[0][0] for record in free.records]
    first = next(n for n, (a, b) in enumerate(pairwise(samples), 1) if b > max(samples[0], a))
    target = (max(samples[:first]) + samples[first]) / 2
    limited = make_settings("best_of_n", budget=8.0, micro_batch=1, target_reward=target)
    result = search(flow, flow.noise(), limited)
    assert result.stopped == "target_reward"
    assert result.rewards.item() == pytest.approx(samples[first])
    assert result.cost.calls == (first + 1) * STEPS
