"""Settings: what is refused, in which words, and what a released preset stays."""

import math
from dataclasses import asdict, replace

import pytest

from flow_ttrl.sampling import PRESETS, SearchSettings, preset, shifted_sigmas

NAN, INF = math.nan, math.inf
MOVES = {"update": "rotation"}

BAD = [
    {"step": "ode"},
    {"gradient": "none"},
    {"update": "jump"},
    {"group_size": 0},
    {"group_size": 1},
    {"group_size": 257},
    {"group_size": 2.5},
    {"group_size": "6"},
    {"rl_iterations": 0, **MOVES},
    {"rl_iterations": 65, **MOVES},
    {"rl_iterations": 1.5, **MOVES},
    {"rl_iterations": 2},
    {"internal_reward_timestep": -0.1},
    {"internal_reward_timestep": 1.1},
    {"external_reward_timestep": -0.1},
    {"external_reward_timestep": 1.01},
    {"external_reward_timestep": NAN},
    {"noise_range": (0.0, 0.5)},
    {"noise_range": (0.5, 0.0)},
    {"noise_range": (0.5, 1.2)},
    {"noise_range": (11.0, 1.0), "step": "sde"},
    {"noise_range": (NAN, 0.5)},
    {"noise_range": (0.5,)},
    {"noise_range": (0.5, 0.4, 0.3)},
    {"noise_range": 0.5},
    {"update_range": (-0.1, 0.1)},
    {"update_range": (0.1, 4.0)},
    {"update_range": ()},
    {"search_every": 0},
    {"search_every": 1.5},
    {"look_ahead_range": (0, 1)},
    {"look_ahead_range": (2.5, 1)},
    {"look_ahead_range": (65, 1)},
    {"look_ahead_range": 3},
    {"beta1": 0.0},
    {"beta1": NAN},
    {"beta2": -1.0},
    {"clip": 0.0},
    {"clip": INF},
    {"adv_clip_max": 0.0},
    {"scale_factor": -1.0},
    {"scale_factor": INF},
    {"prdp_scale": -1.0},
    {"grpo_scale": -1.0},
    {"reward_diff_threshold": -1.0},
    {"max_calls": -1},
    {"max_calls": NAN},
    {"max_seconds": -1.0},
    {"max_seconds": NAN},
    {"target_reward": NAN},
    {"micro_batch": -1},
    {"micro_batch": 1.5},
]


def says_what_is_wrong(error):
    return "expected" in str(error.value) and "got" in str(error.value)


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_bad_values_are_refused(changes):
    with pytest.raises(ValueError, match="expected") as error:
        SearchSettings(**changes)
    assert says_what_is_wrong(error)
    assert any(name in str(error.value) for name in changes)


SCHEDULES = {
    "one level": [1.0],
    "none": [],
    "rising": [0.0, 0.5, 1.0],
    "flat": [1.0, 0.5, 0.5, 0.0],
    "EDM": [14.6, 3.0, 1.0, 0.0],
    "below zero": [1.0, 0.0, -0.5],
    "NaN": [1.0, NAN, 0.0],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_bad_schedules_are_refused(name):
    with pytest.raises(ValueError, match="expected noise levels") as error:
        SearchSettings().check(SCHEDULES[name])
    assert says_what_is_wrong(error)


def test_cps_never_searches_the_last_step():
    """It has no noise there; few-step schedules are searched up to it."""
    for steps in range(1, 60):
        settings = SearchSettings(external_reward_timestep=1.0)
        settings.check(shifted_sigmas(steps).tolist())
        assert settings.search_steps(steps) == range(steps - 1)
        assert replace(settings, step="sde").search_steps(steps) == range(steps)


def test_max_calls_below_a_plain_sample_is_refused():
    with pytest.raises(ValueError, match="expected max_calls") as error:
        SearchSettings(max_calls=19).check(shifted_sigmas(20).tolist())
    assert says_what_is_wrong(error)


@pytest.mark.parametrize("asked", [("best", None), ("balanced", 99), ("", None)])
def test_unknown_presets_are_refused(asked):
    with pytest.raises(ValueError, match="expected a preset out of balanced v1") as error:
        preset(*asked)
    assert says_what_is_wrong(error)


@pytest.mark.parametrize("steps, shift", [(0, 3.0), (-1, 3.0), (4, 0.0), (4, -1.0)])
def test_bad_schedule_arguments_are_refused(steps, shift):
    with pytest.raises(ValueError, match="expected at least 1 step") as error:
        shifted_sigmas(steps, shift)
    assert says_what_is_wrong(error)


def test_shifted_sigmas_are_sd3s():
    sigmas = shifted_sigmas(4, shift=3.0)
    assert sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert shifted_sigmas(4, shift=1.0).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    "window, early, expected",
    [(0.5, 0.2, (10, 4)), (0.85, 0.0, (17, 0)), (0.0, 0.2, (0, 0)), (1.0, 1.0, (20, 20))],
)
def test_windows_count_steps(window, early, expected):
    """i < T * timestep, as the paper has it."""
    settings = SearchSettings(
        external_reward_timestep=window, internal_reward_timestep=early, step="sde"
    )
    prdp = [settings.is_prdp(i, 20) for i in settings.search_steps(20)]
    assert (len(prdp), sum(prdp)) == expected
    assert len(prdp) == sum(i < 20 * window for i in range(20))


def test_presets_are_taken_by_name_version_and_change():
    newest = max(version for name, version in PRESETS if name == "balanced")
    assert preset("balanced") == PRESETS["balanced", newest]
    assert preset("paper", 1) == PRESETS["paper", 1]
    changed = preset("paper", group_size=4)
    assert asdict(changed) == asdict(preset("paper")) | {"group_size": 4}


RELEASED = {
    ("balanced", 1): {
        "preset": "balanced",
        "version": 1,
        "group_size": 6,
        "rl_iterations": 1,
        "internal_reward_timestep": 0.0,
        "external_reward_timestep": 0.9,
        "step": "midpoint",
        "noise_range": (0.2, 0.5),
        "gradient": "jacobian_free",
        "update": "steered",
        "update_range": (0.5, 0.2),
        "elitist": True,
        "scale_factor": 500.0,
        "prdp_scale": 0.01,
        "grpo_scale": 10.0,
        "beta1": 2e-4,
        "beta2": 0.0,
        "clip": 0.2,
        "adv_clip_max": 5.0,
        "reward_diff_threshold": 0.0,
        "rationorm": True,
        "keep_better": False,
        "max_calls": 0,
        "max_seconds": 0.0,
        "target_reward": None,
        "micro_batch": 0,
        "search_every": 1,
        "look_ahead_range": (1, 1),
    },
    ("balanced", 2): {
        "preset": "balanced",
        "version": 2,
        "group_size": 6,
        "rl_iterations": 1,
        "internal_reward_timestep": 0.0,
        "external_reward_timestep": 0.9,
        "step": "matched",
        "noise_range": (0.8, 0.5),
        "gradient": "jacobian_free",
        "update": "steered",
        "update_range": (0.5, 0.2),
        "elitist": True,
        "scale_factor": 500.0,
        "prdp_scale": 0.01,
        "grpo_scale": 10.0,
        "beta1": 2e-4,
        "beta2": 0.0,
        "clip": 0.2,
        "adv_clip_max": 5.0,
        "reward_diff_threshold": 0.0,
        "rationorm": True,
        "keep_better": False,
        "max_calls": 0,
        "max_seconds": 0.0,
        "target_reward": None,
        "micro_batch": 0,
        "search_every": 4,
        "look_ahead_range": (5, 1),
    },
    ("paper", 1): {
        "preset": "paper",
        "version": 1,
        "group_size": 6,
        "rl_iterations": 2,
        "internal_reward_timestep": 0.2,
        "external_reward_timestep": 0.5,
        "step": "sde",
        "noise_range": (1.5, 0.5),
        "gradient": "exact",
        "update": "scale_factor",
        "update_range": (0.5, 0.2),
        "elitist": True,
        "scale_factor": 500.0,
        "prdp_scale": 0.01,
        "grpo_scale": 10.0,
        "beta1": 2e-4,
        "beta2": 2e-4,
        "clip": 0.02,
        "adv_clip_max": 5.0,
        "reward_diff_threshold": 0.0,
        "rationorm": True,
        "keep_better": False,
        "max_calls": 0,
        "max_seconds": 0.0,
        "target_reward": None,
        "micro_batch": 0,
        "search_every": 1,
        "look_ahead_range": (1, 1),
    },
}
"""Never change an entry: a retuned preset is a new version, and a new entry here."""


@pytest.mark.parametrize("key", PRESETS, ids=str)
def test_a_released_preset_never_changes(key):
    assert key in RELEASED, "freeze the new version here"
    assert asdict(PRESETS[key]) == RELEASED[key]
    assert (PRESETS[key].preset, PRESETS[key].version) == key


def test_no_released_preset_is_gone():
    assert RELEASED.keys() <= PRESETS.keys()
