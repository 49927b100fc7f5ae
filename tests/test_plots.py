"""The reward curve of any search's report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flow_ttrl.plots import reward_curve
from flow_ttrl.sampling import STRATEGIES, make_settings, search
from flow_ttrl.world.gaussian import GaussianWorld


def reported(strategy: str = "steered", **changes) -> dict:
    """A report of a batch of two, as JSON gives it back."""
    world = GaussianWorld(8, steps=10)
    settings = make_settings(strategy, keep_better=False, **changes)
    return json.loads(json.dumps(search(world, world.noise(2), settings).report()))


def pixels(report: dict, item: int = 0) -> np.ndarray:
    return np.asarray(reward_curve(report, item))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategys_report_is_drawn(strategy):
    """Candidates differ in number from step to step, and steps may come to the same level."""
    assert pixels(reported(strategy)).std() > 10


def test_each_item_has_its_own_curve():
    report = reported()
    assert not np.array_equal(pixels(report, 0), pixels(report, 1))


def test_the_plain_reward_shows():
    report = reported()
    plain = report | {"plain_rewards": report["rewards"]}
    assert not np.array_equal(pixels(report), pixels(plain))


def test_warnings_are_told_in_the_plot():
    report = reported()
    told = report | {"warnings": ["scorer, which did not drive, fell from 0.9 to 0.7"]}
    assert not np.array_equal(pixels(report), pixels(told))
    assert pixels(told).shape == pixels(report).shape


def test_what_no_reward_could_judge_is_left_out():
    report = reported()
    for record in report["search_steps"]:
        record["rewards"] = [[None] * len(group) for group in record["rewards"]]
    nothing = report | {"rewards": [None, None], "plain_rewards": [None, None]}
    assert pixels(nothing).shape == (440, 720, 3)


def test_a_search_without_a_look_ahead_is_drawn():
    report = reported(budget=1.0) | {"search_steps": []}
    assert pixels(report).shape == (440, 720, 3)
