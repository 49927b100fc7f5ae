"""What a look-ahead sees, and what it costs."""

import pytest
import torch
from probes import Recorder, only_search, spy_on_look_aheads

from flow_ttrl.sampling import search
from flow_ttrl.world.gaussian import GaussianWorld


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_look_ahead_costs_a_call_a_step(length):
    """Over levels of the schedule, evenly spaced in it, from the first to the clean end."""
    recorder = Recorder(GaussianWorld(8, steps=12))
    settings = only_search("drafts", budget=4.0, draft_steps=length)
    search(recorder, recorder.flow.noise(), settings)
    levels = recorder.sigmas.tolist()
    drafts = [call for call in recorder.calls if len(call.x) > 1]
    visited = [levels.index(call.sigma) for call in drafts]
    assert visited == [round(12 * k / length) for k in range(length)]


def test_a_look_ahead_of_one_step_is_the_data_estimate(monkeypatch):
    world = GaussianWorld(8, steps=10)
    looks = spy_on_look_aheads(monkeypatch, world)
    search(world, world.noise(), only_search("rbf", budget=3.0))
    first, sigma = looks[0], world.sigmas.tolist()[looks[0].index]
    v = world.velocity(first.x[0], sigma, torch.arange(1))
    expected = world.judged(first.x[0] - sigma * v)
    torch.testing.assert_close(first.totals[0], expected, atol=1e-5, rtol=1e-5)
