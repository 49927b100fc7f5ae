"""What is told of a search: its steps, its cost as JSON, and warnings only where there is cause."""

import json

import pytest
from probes import EACH, Recorder, only_search, run

from flow_ttrl.sampling import make_settings, search
from flow_ttrl.world.gaussian import GaussianWorld


@EACH
def test_what_was_judged_is_what_is_reported(strategy):
    """No candidate is called missing that was never made."""
    recorder = Recorder(GaussianWorld(8, steps=10))
    result = run(recorder, strategy, recorder.flow.noise(3))
    for record in result.records:
        assert record.not_finite == 0
        assert record.missing == {}
        assert len(record.rewards) == 3
    assert sum(record.price for record in result.records) <= result.cost.calls
    calls = [record.calls for record in result.records]
    assert calls == sorted(calls)


@EACH
def test_the_report_is_json(strategy):
    world = GaussianWorld(8, steps=10)
    result = search(world, world.noise(2), make_settings(strategy, budget=4.0), seed=7)
    report = json.loads(json.dumps(result.report(), allow_nan=False))
    assert report["seed"] == 7
    assert report["steps"] == 10
    assert report["settings"]["strategy"] == strategy
    assert report["values"]["linear"] == report["rewards"] == result.rewards.tolist()
    assert report["cost"]["times_plain"] == pytest.approx(result.cost.calls / 20, abs=1e-3)
    assert report["planned_calls"] == 2 * result.planned
    assert len(report["search_steps"]) == len(result.records) > 0 or strategy == "reward_gradient"
    for step in report["search_steps"]:
        assert len(step["rewards"]) == 2
        assert step["values"]["linear"] == step["rewards"]


@EACH
@pytest.mark.parametrize("keep_better", [False, True])
def test_a_sound_search_has_nothing_to_warn_of(strategy, keep_better):
    """Nor does one that begins with a latent that is noisy already."""
    whole = GaussianWorld(32, steps=20)
    settings = make_settings(strategy, budget=4.0, keep_better=keep_better)
    assert search(whole, whole.noise(2), settings).warnings == ()
    late = GaussianWorld(32, sigmas=whole.sigmas.tolist()[8:], image=whole.data())
    assert search(late, late.noise(2), settings).warnings == ()


@pytest.mark.parametrize("keep_better", [False, True])
def test_a_latent_far_too_wide_is_warned_of(keep_better):
    class Exploding(GaussianWorld):
        """Sampling goes astray in the search, in its stochastic steps, and not in plain steps."""

        def velocity(self, x, sigma, item):
            v = super().velocity(x, sigma, item)
            return v - 40 * x if len(x) > 1 else v

        def score(self, images, item):
            return {"linear": images.std((1, 2, 3))}

    flow = Exploding(16, steps=20)
    settings = make_settings("particles", budget=3.0, keep_better=keep_better)
    (told,) = search(flow, flow.noise(), settings).warnings
    assert "no image any more" in told


def test_one_candidate_alone_is_not_called_flat():
    world = GaussianWorld(8, steps=20)
    for strategy, budget in (("rbf", 4.0), ("reward_gradient", 2.0)):
        records = search(world, world.noise(), only_search(strategy, budget=budget)).records
        assert records
        assert not any(record.flat for record in records)
