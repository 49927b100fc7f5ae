"""How a search is stopped or cancelled, what it then gives, and what it tells on the way."""

from types import SimpleNamespace

import pytest
import torch
from probes import (
    ADAPTING,
    EACH,
    Mixed,
    Wrapped,
    euler,
    only_search,
    search_module,
    spy_on_look_aheads,
    stop_after,
)

from flow_ttrl.sampling import make_settings, sample, search, shifted_sigmas
from flow_ttrl.world.gaussian import GaussianWorld

STEPS = 10


def check_stopped(flow, result, stopped_by, looks, free):
    """The result is plain sampling from the best look-ahead so far, and cost no more than planned.

    Where samples are finished it is the best of them. A search that could not be finished sooner
    than it would end anyway goes on to its end.
    """
    assert result.cost.calls <= result.planned * len(result.latents)
    assert result.stopped in (stopped_by, None)
    torch.testing.assert_close(result.rewards, flow.judged(result.latents))
    if result.stopped is None:
        assert torch.equal(result.latents, free.latents)
        return
    assert result.cost.calls < free.cost.calls
    offers = [
        (look.totals[row], look.x[row], look.index)
        for look in known_at_stop(result, looks)
        for row in range(len(look.totals))
    ]
    for item in range(len(result.latents)):
        if offers:
            _, x, index = max(offers, key=lambda offer: offer[0][item].item())
            expected = euler(flow, x[item : item + 1], index)
            torch.testing.assert_close(
                result.latents[item : item + 1], expected, atol=1e-4, rtol=1e-4
            )


def known_at_stop(result, looks):
    """The finished samples or, where there is none, look-aheads; the last one is the result's."""
    samples = result.settings.strategy in ("best_of_n", "steered")
    if samples and result.records and result.records[-1].index == result.steps:
        return [look for look in looks if look.index == result.steps]
    return looks[:-1]


@EACH
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_finish_now_goes_on_from_the_best_look_ahead_so_far(strategy, steps, monkeypatch):
    flow, settings = GaussianWorld(16, steps=STEPS), only_search(strategy, budget=4.0)
    free = search(flow, flow.noise(3), settings)
    looks = spy_on_look_aheads(monkeypatch, flow)
    result = search(flow, flow.noise(3), settings, finish_now=stop_after(steps))
    check_stopped(flow, result, "finish_now", looks, free)


@EACH
def test_finish_now_before_anything_is_plain_sampling(strategy):
    flow = GaussianWorld(8, steps=STEPS)
    result = search(flow, flow.noise(2), only_search(strategy, budget=4.0), finish_now=lambda: True)
    assert result.stopped == "finish_now"
    assert torch.equal(result.latents, sample(flow, flow.noise(2)))
    assert result.cost.calls == 2 * STEPS
    assert not result.records


@EACH
@pytest.mark.parametrize("mode", ["raw", "rank"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_stop_with_the_better_kept_is_no_dearer_than_planned(strategy, mode, steps):
    """However little was judged by then: the plain sample is there, and made once."""
    world, events = GaussianWorld(8, steps=STEPS), []
    settings = make_settings(strategy, budget=4.0, keep_better=True)
    result = search(
        Mixed(world, mode),
        world.noise(2),
        settings,
        on_step=events.append,
        finish_now=stop_after(steps),
    )
    assert events[-1].calls <= events[-1].planned
    spent = result.cost.calls + result.plain.cost.calls
    assert spent == 2 * events[-1].calls
    torch.testing.assert_close(result.plain.latents, sample(world, world.noise(2)))
    assert (result.rewards >= result.plain_rewards).all()
    if steps == 0:
        assert result.stopped == "finish_now"
        assert spent == 2 * STEPS
        assert torch.equal(result.latents, result.plain.latents)


@EACH
def test_what_a_stop_gives_is_clean_where_the_schedule_ends_above_0(strategy):
    """As the last step saw it, in the result and in the plain sample."""
    levels = shifted_sigmas(12).tolist()[:9]
    world = GaussianWorld(16, sigmas=levels)
    for steps in (0, 4, 1000):
        result = search(
            world,
            world.noise(2),
            make_settings(strategy, budget=4.0),
            finish_now=stop_after(steps),
        )
        for latents, clean in (
            (result.latents, result.clean),
            (result.plain.latents, result.plain.clean),
        ):
            assert not torch.equal(latents, clean)
            v = world.velocity(clean, 1e-3, torch.arange(2))
            assert v.isfinite().all()
            # a clean latent is narrower than one with noise on top
            assert (clean.flatten(1).norm(dim=1) < latents.flatten(1).norm(dim=1) * 1.05).all()


@EACH
def test_finish_now_that_is_never_true_changes_nothing(strategy):
    flow, settings = GaussianWorld(8, steps=STEPS), only_search(strategy, budget=4.0)
    asked, free = [], search(flow, flow.noise(2), settings)
    result = search(flow, flow.noise(2), settings, finish_now=lambda: bool(asked.append(1)))
    assert result.stopped is None
    assert torch.equal(result.latents, free.latents)
    assert asked


@EACH
@pytest.mark.parametrize("sigmas", ["ends above 0", "begins below 1"])
def test_a_stop_holds_to_the_plan_on_other_schedules(strategy, sigmas):
    levels = shifted_sigmas(12).tolist()
    levels = {"ends above 0": levels[:9], "begins below 1": levels[4:]}[sigmas]
    flow, settings = GaussianWorld(16, sigmas=levels), only_search(strategy, budget=4.0)
    for steps in (1, 4):
        result = search(flow, flow.noise(2), settings, finish_now=stop_after(steps))
        assert result.cost.calls <= 2 * result.planned
        assert result.latents.isfinite().all()


class Clocked(Wrapped):
    """A flow whose velocity takes a second of a clock of its own."""

    def __init__(self, flow, monkeypatch):
        super().__init__(flow)
        self.seconds = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.seconds)
        monkeypatch.setattr(search_module, "time", clock)

    def velocity(self, x, sigma, item):
        self.seconds += 1
        return super().velocity(x, sigma, item)


@EACH
@pytest.mark.parametrize("limit", [0.5, 9])
def test_max_seconds_goes_on_from_the_best_look_ahead_so_far(strategy, limit, monkeypatch):
    world = GaussianWorld(16, steps=STEPS)
    free = search(world, world.noise(2), only_search(strategy, budget=4.0))
    flow = Clocked(world, monkeypatch)
    looks, ends = spy_on_look_aheads(monkeypatch, flow), []
    settings = only_search(strategy, budget=4.0, max_seconds=limit)
    result = search(flow, world.noise(2), settings, on_step=lambda event: ends.append(flow.seconds))
    check_stopped(world, result, "max_seconds", looks, free)
    if result.stopped:
        assert ends[-1] >= limit
    assert result.seconds == flow.seconds


def test_a_time_limit_that_is_not_reached_changes_nothing(monkeypatch):
    world, settings = GaussianWorld(8, steps=STEPS), only_search("glass", budget=4.0)
    free = search(world, world.noise(), settings)
    flow = Clocked(world, monkeypatch)
    limited = only_search("glass", budget=4.0, max_seconds=1000.0)
    result = search(flow, world.noise(), limited)
    assert result.stopped is None
    assert torch.equal(result.latents, free.latents)


@EACH
def test_target_reward_stops_once_every_item_is_there(strategy, monkeypatch):
    flow = GaussianWorld(16, steps=STEPS)
    looks = spy_on_look_aheads(monkeypatch, flow)
    free = search(flow, flow.noise(3), only_search(strategy, budget=4.0))
    # within reach of all items, of some sooner; a strategy without look-aheads has but the last
    best = torch.stack([look.totals.amax(0) for look in looks[:-1] or looks]).cummax(0).values
    target = best[len(best) // 3].min().item()
    looks.clear()
    settings = only_search(strategy, budget=4.0, target_reward=target)
    result = search(flow, flow.noise(3), settings)
    check_stopped(flow, result, "target_reward", looks, free)
    if result.stopped:
        known = known_at_stop(result, looks)
        reached = torch.stack([look.totals.amax(0) for look in known]).amax(0)
        assert (reached >= target).all()
    high = only_search(strategy, budget=4.0, target_reward=1e6)
    result = search(flow, flow.noise(3), high)
    assert result.stopped is None
    assert torch.equal(result.latents, free.latents)


STEPWISE = ["steered", "flow_ttrl", "rbf", "glass", "paths", "zero_order"]


@pytest.mark.parametrize("strategy", STEPWISE)
@pytest.mark.parametrize("limit", [{"target_reward": -1e6}, {"max_seconds": 0.5}], ids=str)
def test_a_limit_that_is_met_at_once_leaves_one_step(strategy, limit, monkeypatch):
    flow = Clocked(GaussianWorld(16, steps=20), monkeypatch)
    x = flow.flow.noise()
    free = search(flow, x, only_search(strategy, budget=4.0))
    flow.seconds = 0.0
    easy = search(flow, x, only_search(strategy, budget=4.0, **limit))
    assert easy.stopped == next(iter(limit))
    assert len(easy.records) == 1
    assert easy.cost.calls < free.cost.calls


@EACH
def test_items_of_a_stopped_batch_go_on_from_their_own_best(strategy):
    world = GaussianWorld(16, steps=STEPS, prompts=3)
    settings, x = only_search(strategy, budget=4.0), world.noise(3)
    batch = search(world, x, settings, finish_now=stop_after(3))
    for item in range(3):
        alone = search(world.only(item), x[item : item + 1], settings, finish_now=stop_after(3))
        if alone.stopped == batch.stopped:
            torch.testing.assert_close(
                batch.latents[item : item + 1], alone.latents, atol=1e-3, rtol=1e-3
            )


class CancelError(Exception):
    pass


class Cancelling(Wrapped):
    """Raises at the given call of one method, counting each method's calls."""

    METHODS = ("start", "velocity", "decode", "score", "totals")

    def __init__(self, flow, method=None, call=None):
        super().__init__(flow)
        self.method, self.call = method, call
        self.counts = dict.fromkeys((*self.METHODS, "on_step"), 0)

    def count(self, method):
        self.counts[method] += 1
        if (method, self.counts[method]) == (self.method, self.call):
            raise CancelError(method)

    def start(self, noise, item):
        self.count("start")
        return super().start(noise, item)

    def velocity(self, x, sigma, item):
        self.count("velocity")
        return super().velocity(x, sigma, item)

    def decode(self, x0, item):
        self.count("decode")
        return super().decode(x0, item)

    def score(self, images, item):
        self.count("score")
        return super().score(images, item)

    def totals(self, values, seen):
        self.count("totals")
        return super().totals(values, seen)

    def on_step(self, event):
        self.count("on_step")


@EACH
def test_cancel_stops_at_once_and_leaves_nothing_behind(strategy):
    """From the calls of any method; the same flow and noise then run as if nothing had been."""
    world, settings = GaussianWorld(8, steps=6), only_search(strategy, budget=3.0, keep_better=True)
    x = world.noise()
    whole = Cancelling(world)
    expected, before = search(whole, x, settings, on_step=whole.on_step), x.clone()
    assert all(whole.counts.values())
    for method, calls in whole.counts.items():
        for call in sorted({1, (calls + 1) // 2, calls}):
            flow = Cancelling(world, method, call)
            with pytest.raises(CancelError):
                search(flow, x, settings, on_step=flow.on_step)
            assert flow.counts[method] == call
            assert torch.equal(x, before)
            assert torch.is_grad_enabled()
    assert torch.equal(search(world, x, settings).latents, expected.latents)


@EACH
@pytest.mark.parametrize("keep_better", [False, True])
def test_every_step_is_told_once(strategy, keep_better):
    """With what it has cost so far, the plain sample included."""
    world, events = GaussianWorld(8, steps=STEPS), []
    settings = only_search(strategy, budget=4.0, keep_better=keep_better)
    result = search(world, world.noise(2), settings, on_step=events.append)
    free = search(world, world.noise(2), settings)
    assert torch.equal(result.latents, free.latents)
    assert [event.record for event in events if event.record] == list(result.records)
    planned = {event.planned for event in events}
    plain = STEPS if keep_better and strategy != "best_of_n" else 0  # which makes its own
    assert planned == {result.planned + plain}
    calls = [event.calls for event in events]
    assert calls == sorted(calls)
    assert calls[-1] <= events[-1].planned
    if strategy not in ADAPTING:
        assert calls[-1] == events[-1].planned
    for event in events:
        assert event.latent.shape == event.denoised.shape == (2, 4, 8, 8)
        assert 0 <= event.index <= event.steps == STEPS
    # plain sampling tells of its steps in order, first of all
    if plain:
        assert [event.index for event in events[:STEPS]] == list(range(1, STEPS + 1))
        assert events[STEPS].plain is not None


def test_plain_sampling_is_told_step_by_step():
    world, events = GaussianWorld(8, steps=STEPS), []
    settings = make_settings(budget=1.0)
    result = search(world, world.noise(2), settings, on_step=events.append).latents
    events = events[:STEPS]  # and at last that it is judged
    assert [event.index for event in events] == list(range(1, STEPS + 1))
    assert [event.calls for event in events] == list(range(1, STEPS + 1))
    assert torch.equal(events[-1].latent, result)
    before = world.noise(2)
    for event, sigma in zip(events, world.sigmas.tolist(), strict=False):
        v = world.velocity(before, sigma, torch.arange(2))
        torch.testing.assert_close(event.denoised, before - sigma * v)
        before = event.latent


def test_an_observer_that_is_falsy_is_told_too():
    class Log(list):
        def __call__(self, event):
            self.append(event)

    log, world = Log(), GaussianWorld(8, steps=STEPS)
    search(world, world.noise(), make_settings(budget=1.0), on_step=log)
    assert len(log) == STEPS + 1
