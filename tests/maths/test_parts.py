"""Candidates by parts, those that run at once: what is held, and what a stop after one gives."""

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from probes import Named, Rewarded, Wrapped, only_search, spy_on_look_aheads
from test_stops import check_stopped, stop_after

from flow_ttrl.rewards import MODES, RewardMix
from flow_ttrl.sampling import make_settings, search
from flow_ttrl.world.gaussian import REWARDS, GaussianWorld

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


class Apart(Wrapped):
    """Two rewards that agree on little, one of them not wanted, and one that drives nothing."""

    def __init__(self, world, mode: str):
        super().__init__(world)
        parts = ((Named("linear"), -1.0), (Named("target"), 1.5), (Named("counting"), 0.0))
        self.mix = RewardMix(parts, mode)

    def score(self, images, item):
        return {name: REWARDS[name](images) for name in self.mix.names}

    def totals(self, values, seen):
        return self.mix.totals(values, seen)


@pytest.mark.parametrize("strategy", BY_PARTS)
def test_a_search_can_be_ended_after_each_part(strategy, monkeypatch):
    flow = GaussianWorld(16, steps=STEPS)
    settings, looks, judged = only_search(strategy, budget=6.0, micro_batch=1), [], []
    spied = spy_on_look_aheads(monkeypatch, flow)
    free = search(flow, flow.noise(2), settings, on_step=lambda _: judged.append(len(spied)))
    after = [n for n, (before, now) in enumerate(pairwise([0, *judged]), 1) if now > before]
    looks, stopped = spy_on_look_aheads(monkeypatch, flow), 0
    for states in after:
        looks.clear()
        result = search(flow, flow.noise(2), settings, finish_now=stop_after(states))
        check_stopped(flow, result, "finish_now", looks, free)
        if result.stopped:
            stopped += 1
            told = sum(len(record.rewards[0]) for record in result.records)
            assert told in judged[states - 1 :]
    assert stopped >= len(after) - 2


@pytest.mark.parametrize("mode", MODES)
def test_best_of_n_that_is_ended_is_the_best_of_what_was_finished(mode):
    """As things stand at the stop, where totals are relative to what was seen."""
    flow = Apart(GaussianWorld(16, steps=STEPS), mode)
    settings = make_settings("best_of_n", budget=8.0, micro_batch=1)
    for seed in range(5):
        x, seen = flow.flow.noise(2, seed=seed), []
        for finished in (2, 5):
            # in the middle of the next one, which is let go
            stop = stop_after(finished * (STEPS + 1) + 3)
            result = search(flow, x, settings, finish_now=stop)
            assert result.stopped == "finish_now"
            assert result.cost.calls == 2 * (finished * STEPS + 3)
            (record,) = result.records
            assert [len(rewards) for rewards in record.rewards] == [finished] * 2
            torch.testing.assert_close(result.rewards, torch.tensor(record.rewards).amax(1))
            torch.testing.assert_close(result.plain_rewards, torch.tensor(record.rewards)[:, 0])
            seen.append(record.values)
        for name, few in seen[0].items():
            assert few == [values[:2] for values in seen[1][name]]


def test_a_stop_in_the_last_round_gives_the_best_of_what_is_finished(monkeypatch):
    """And not a draft that looked better; it costs nothing more."""
    flow = GaussianWorld(16, steps=20)
    settings, told = only_search("steered", budget=9.5, micro_batch=1), []
    search(flow, flow.noise(), settings, on_step=told.append)
    ends = [n for n, event in enumerate(told, 1) if event.index == 20 and event.part]
    ends = [n for n in ends if told[n - 2].index == 20]  # judged, too
    assert len(ends) >= 2
    looks = spy_on_look_aheads(monkeypatch, flow)
    for finished, states in enumerate(ends, 1):
        looks.clear()
        result = search(flow, flow.noise(), settings, finish_now=stop_after(states))
        assert result.stopped == "finish_now"
        assert result.cost.calls == told[states - 1].calls
        samples = [look.totals[0, 0] for look in looks if look.index == 20]
        assert len(samples) == finished
        torch.testing.assert_close(result.rewards[0], max(samples))


def test_a_target_ends_best_of_n_with_the_first_sample_that_is_there():
    flow = GaussianWorld(16, steps=STEPS)
    settings = make_settings("best_of_n", budget=8.0, micro_batch=1)
    for seed in range(8):
        x = flow.noise(seed=seed)
        samples = search(flow, x, settings).records[0].rewards[0]
        first = samples.index(max(samples))
        if 0 < first < len(samples) - 1:
            break
    target = (sorted(samples)[-2] + samples[first]) / 2
    result = search(flow, x, replace(settings, target_reward=target))
    assert result.stopped == "target_reward"
    assert result.rewards.item() == pytest.approx(samples[first])
    assert result.cost.calls == (first + 1) * STEPS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", BY_PARTS)
def test_parts_let_no_candidate_go_that_would_be_chosen(strategy, mode):
    """Also where totals are relative to what was seen, of which there is less by then."""
    flow = Apart(GaussianWorld(16, steps=STEPS), mode)
    for seed in range(12):
        x = flow.flow.noise(seed=seed)
        whole, *split = (
            search(flow, x, only_search(strategy, budget=6.0, micro_batch=size), seed=seed)
            for size in (0, 1, 2)
        )
        for one in split:
            torch.testing.assert_close(one.latents, whole.latents, atol=1e-3, rtol=1e-3)
            assert len(one.records) == len(whole.records)
            for told, wanted in zip(one.records, whole.records, strict=True):
                assert told.index == wanted.index
                assert told.price == wanted.price
                torch.testing.assert_close(
                    torch.tensor(told.rewards), torch.tensor(wanted.rewards), atol=2e-3, rtol=2e-3
                )


def test_a_part_is_no_flat_reward():
    """One image alone says nothing of whether a reward tells images apart."""
    for dead in (True, False):
        flow = Rewarded(GaussianWorld(16, steps=STEPS), lambda v, dead=dead: 0 * v if dead else v)
        for size in (0, 1, 2):
            result = search(flow, flow.flow.noise(), only_search("steered", micro_batch=size))
            assert all(bool(record.flat) == dead for record in result.records)
