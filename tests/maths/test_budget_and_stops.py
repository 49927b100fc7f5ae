"""What a run may spend, how it is stopped, and what it leaves behind when it is cancelled."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gaussian_world import GaussianWorld
from probes import Recorder, Wrapped, label

from flow_ttrl.sampling import (
    PRESETS,
    KeyedNoise,
    RewardBatch,
    SearchSettings,
    plan,
    preset,
    sample,
    search,
)

search_module = importlib.import_module("flow_ttrl.sampling.search")  # its name is the function's

ROTATION = SearchSettings(preset="rotation", update="rotation", update_range=(0.3, 0.3))
SETTINGS = [*PRESETS.values(), ROTATION]
EACH = pytest.mark.parametrize("settings", SETTINGS, ids=label)


def run(flow, settings, x, noise=0, **keywords):
    noise = KeyedNoise(noise) if isinstance(noise, int) else noise
    return search(flow, x, settings, noise, **keywords)


@EACH
@pytest.mark.parametrize("steps", [7, 8, 20, 28, 40])
@pytest.mark.parametrize("changes", [{}, {"keep_better": True}, {"external_reward_timestep": 0}])
def test_a_plan_is_what_a_run_counts(settings, steps, changes):
    settings = replace(settings, **changes)
    for forwards in (1, 2):
        world = GaussianWorld(8, steps=steps, forwards_per_call=forwards)
        planned = plan(settings, world.sigmas.tolist(), forwards)
        result = run(world, settings, world.noise())
        assert planned.cost == result.cost
        assert result.cost.forwards == forwards * result.cost.model_calls
        assert planned.prices == [record.price for record in result.records]
        for record, price, ahead in zip(result.records, planned.prices, planned.ahead, strict=True):
            assert record.calls - price + ahead == result.cost.calls


@EACH
def test_a_batch_costs_as_many_single_runs(settings):
    world = GaussianWorld(8, steps=10)
    planned, counted = plan(settings, world.sigmas.tolist()).cost, Recorder(world)
    cost = run(counted, settings, world.noise(3)).cost
    assert cost.calls == 3 * planned.calls
    assert cost.decodes == cost.rewards == 3 * planned.rewards
    assert cost.model_calls == sum(len(x) for x, _ in counted.calls)


@EACH
@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"keep_better": True}], ids=["", "keep_better"])
def test_max_calls_is_never_exceeded(settings, items, changes):
    world = GaussianWorld(8, steps=10)
    x, settings = world.noise(items), replace(settings, **changes)
    whole = plan(settings, world.sigmas.tolist()).cost.calls
    records = []
    for limit in [*range(20 if settings.keep_better else 10, whole, 7), whole - 1, 2 * whole]:
        result = run(world, replace(settings, max_calls=limit), x)
        assert result.cost.calls <= items * limit, f"max_calls {limit}"
        assert result.stopped == ("max_calls" if limit < whole else None)
        records.append(len(result.records))
    assert records == sorted(records)
    assert records[0] == 0
    assert records[-1] == len(settings.search_steps(10))


@EACH
@pytest.mark.parametrize("changes", [{}, {"keep_better": True}], ids=["", "keep_better"])
def test_max_calls_of_the_planned_cost_stops_nothing(settings, changes):
    """Whoever reads an estimate and grants it gets the whole search."""
    world, settings = GaussianWorld(8, steps=10), replace(settings, **changes)
    whole = plan(settings, world.sigmas.tolist()).cost.calls
    result = run(world, replace(settings, max_calls=whole), world.noise())
    assert result.stopped is None
    assert len(result.records) == len(settings.search_steps(10))


@EACH
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_max_calls_holds_whatever_else_stops_the_search(settings, steps):
    """Going on from a best so far that lies far back costs more than going straight on."""
    world = GaussianWorld(8, steps=10)
    noisy = Drifting(world)  # the first step's look-ahead stays the best
    for limit in range(10, plan(settings, world.sigmas.tolist()).cost.calls + 1, 3):
        result = run(
            noisy.again(),
            replace(settings, max_calls=limit),
            world.noise(),
            finish_now=finish_after(steps),
        )
        assert result.cost.calls <= limit, f"max_calls {limit}"


class Drifting(Wrapped):
    """A flow whose rewards fall from one look at it to the next."""

    def again(self):
        self.scored = 0
        return self

    def score(self, images):
        self.scored += 1
        return RewardBatch(super().score(images).total - 100 * self.scored)


@EACH
def test_max_calls_holds_on_a_schedule_that_ends_above_zero(settings):
    """Where the search is one part of a longer sampling."""
    world = GaussianWorld(8, steps=20)
    world.sigmas = world.sigmas[:11]
    for limit in range(11, plan(settings, world.sigmas.tolist()).cost.calls + 2, 9):
        result = run(world, replace(settings, max_calls=limit), world.noise())
        assert result.cost.calls <= limit, f"max_calls {limit}"
        assert result.latents.isfinite().all()


def test_the_smallest_max_calls_is_plain_sampling():
    world = GaussianWorld(8, steps=10)
    result = run(world, preset("balanced", max_calls=10), world.noise())
    assert torch.equal(result.latents, sample(world, world.noise()))
    assert result.cost.calls == 10


class Clocked(Wrapped):
    """A flow whose velocity takes a second of a clock of its own."""

    def __init__(self, flow):
        super().__init__(flow)
        self.seconds = 0.0

    def velocity(self, x, sigma):
        self.seconds += 1
        return super().velocity(x, sigma)


@pytest.mark.parametrize("limit, records", [(0.5, 1), (3, 1), (4, 2), (8, 4), (1000, 9)])
def test_max_seconds_stops_the_search(monkeypatch, limit, records):
    """Asked before each step; `balanced v1` takes 3 seconds of it, then 2 each."""
    flow = Clocked(GaussianWorld(8, steps=10))
    monkeypatch.setattr(search_module, "time", SimpleNamespace(monotonic=lambda: flow.seconds))
    result = run(flow, preset("balanced", 1, max_seconds=limit), flow.flow.noise())
    assert len(result.records) == records
    assert result.stopped == ("max_seconds" if records < 9 else None)
    assert result.latents.isfinite().all()


def test_target_reward_stops_once_every_item_is_there():
    world = GaussianWorld(16, steps=10)
    x, settings = world.noise(4), preset("balanced", 1)
    free = run(world, settings, x)
    assert free.stopped is None
    looks = [
        [max(best, kept) for best, kept in zip(r.best, r.kept, strict=True)] for r in free.records
    ]
    best = torch.tensor(looks).cummax(0).values  # step, item
    target = best[3].mean().item()
    there = (best >= target).int().argmax(0) + 1  # search steps that each item needs
    assert there.min() < there.max()
    result = run(world, replace(settings, target_reward=target), x)
    assert result.stopped == "target_reward"
    assert len(result.records) == there.max()
    assert run(world, replace(settings, target_reward=1e6), x).stopped is None


def test_finish_now_before_anything_is_plain_sampling():
    world = GaussianWorld(8, steps=10)
    result = run(world, preset("balanced"), world.noise(2), finish_now=lambda: True)
    assert result.stopped == "finish_now"
    assert torch.equal(result.latents, sample(world, world.noise(2)))


def finish_after(steps):
    answers = iter([False] * steps + [True])
    return lambda: next(answers)


@EACH
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_stopped_search_goes_on_from_the_best_so_far(settings, steps):
    """The candidate or kept latent of the highest look-ahead, from its own level."""
    world = GaussianWorld(16, steps=10)
    steps = min(steps, len(settings.search_steps(10)) - 1)  # stopped before the last of them
    recorder, done, offers = Recorder(world), finish_after(steps), []

    def note(event):
        """A level's last calls are those of its candidates: later look-aheads are further on."""
        if event.record is None:
            return
        record, level = event.record, event.index + 1
        sigma = float(world.sigmas[level])
        candidates = recorder.at(sigma, rows=settings.group_size)[-1]
        offers.extend((r, c, level) for r, c in zip(record.rewards[0], candidates, strict=True))
        if record.kept:
            offers.append((record.kept[0], recorder.at(sigma, rows=1)[-1][0], level))

    result = run(recorder, settings, world.noise(), on_step=note, finish_now=done)
    assert result.stopped == "finish_now"
    assert len(result.records) == steps
    _, best, level = max(offers, key=lambda offer: offer[0])
    tail = GaussianWorld(16, steps=10)
    tail.sigmas = tail.sigmas[level:]
    torch.testing.assert_close(result.latents, sample(tail, best[None]))


@EACH
def test_items_of_a_stopped_batch_go_on_from_their_own_best(settings):
    world = GaussianWorld(16, steps=10)
    x = world.noise(4)
    batch = run(world, settings, x, finish_now=finish_after(4))
    for item in range(4):
        alone = run(
            world,
            settings,
            x[item : item + 1],
            noise=KeyedNoise(0, first_item=item),
            finish_now=finish_after(4),
        )
        torch.testing.assert_close(
            batch.latents[item : item + 1], alone.latents, atol=1e-3, rtol=1e-3
        )


class CancelError(Exception):
    pass


class Cancelling(Wrapped):
    """Raises at the given call of one method, counting each method's calls."""

    def __init__(self, flow, method=None, call=None):
        super().__init__(flow)
        self.method, self.call = method, call
        self.counts = {"velocity": 0, "decode": 0, "score": 0, "on_step": 0}

    def count(self, method):
        self.counts[method] += 1
        if (method, self.counts[method]) == (self.method, self.call):
            raise CancelError(method)

    def velocity(self, x, sigma):
        self.count("velocity")
        return super().velocity(x, sigma)

    def decode(self, x0):
        self.count("decode")
        return super().decode(x0)

    def score(self, images):
        self.count("score")
        return super().score(images)

    def on_step(self, event):
        self.count("on_step")


@EACH
def test_cancel_stops_at_once_and_leaves_nothing_behind(settings):
    """From any call of any method; the same flow and noise then run as if nothing had been."""
    world, noise = GaussianWorld(8, steps=8), KeyedNoise(0)
    x = world.noise()
    whole = Cancelling(world)
    expected = run(whole, settings, x, noise, on_step=whole.on_step)
    before = x.clone()
    assert all(whole.counts.values())
    for method, calls in whole.counts.items():
        for call in range(1, calls + 1):
            flow = Cancelling(world, method, call)
            with pytest.raises(CancelError):
                run(flow, settings, x, noise, on_step=flow.on_step)
            assert flow.counts[method] == call
        assert torch.equal(x, before)
        assert torch.is_grad_enabled()
        assert torch.equal(run(world, settings, x, noise).latents, expected.latents)


@EACH
def test_every_step_is_told_once(settings):
    world, events = GaussianWorld(8, steps=10), []
    result = run(world, settings, world.noise(), on_step=events.append)
    assert [event.index for event in events] == list(range(10))
    assert [event.record for event in events if event.record] == list(result.records)
    for event in events:
        assert event.sigma == float(world.sigmas[event.index])
        v = world.velocity(event.latent, event.sigma)
        torch.testing.assert_close(event.denoised, event.latent - event.sigma * v)


def test_an_observer_that_is_falsy_is_told_too():
    class Log(list):
        def __call__(self, event):
            self.append(event)

    log, world = Log(), GaussianWorld(8, steps=10)
    sample(world, world.noise(), on_step=log)
    assert len(log) == 10
